"""Merging of partial softmax results: against the whole, and as an algebra."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import BACKENDS, make_backend

ROWS, HEADS, DIM = 3, 2, 4

State = tuple[torch.Tensor, torch.Tensor]


def attend(scores: torch.Tensor, values: torch.Tensor) -> State:
    """Attend to scores [ROWS, HEADS, n] and values [n, DIM] in float64; nothing visible is (0, -inf)."""
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
    return (weights @ values).float(), lse.float()


@st.composite
def states(draw) -> State:
    """A partial result; scores reach far, and some rows or all keys may be masked."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    size, spread = draw(st.integers(0, 5)), draw(st.sampled_from([1.0, 30.0, 1000.0]))
    scores = torch.randn(ROWS, HEADS, size, generator=generator).double() * spread
    hidden = torch.rand(scores.shape, generator=generator) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    values = torch.randn(size, DIM, generator=generator).double()
    return attend(scores.masked_fill(hidden, -torch.inf), values)


def same(a: State, b: State) -> None:
    # the weights inherit the float32 rounding of the LSE
    highest = float(a[1].masked_fill(a[1] == -torch.inf, 0.0).abs().max())
    for left, right in zip(a, b, strict=True):
        assert not left.isnan().any()
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5 + 2e-7 * highest)


EMPTY = (torch.zeros(ROWS, HEADS, DIM), torch.full((ROWS, HEADS), -torch.inf))


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=100, deadline=None)
@given(a=states(), b=states(), c=states())
def test_merge_is_commutative_associative_and_has_an_empty(name, a, b, c):
    merge = make_backend(name).merge
    same(merge(*a, *b), merge(*b, *a))
    same(merge(*merge(*a, *b), *c), merge(*a, *merge(*b, *c)))
    same(merge(*a, *EMPTY), a)
    same(merge(*EMPTY, *a), a)


@pytest.mark.parametrize("name", BACKENDS)
def test_two_empties_are_empty(name):
    out, lse = make_backend(name).merge(*EMPTY, *EMPTY)
    assert torch.equal(out, EMPTY[0])
    assert torch.equal(lse, EMPTY[1])


@pytest.mark.parametrize("name", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.lists(st.integers(0, 7), min_size=1, max_size=5))
def test_any_partition_merges_to_the_whole(name, seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(ROWS, HEADS, sum(sizes), generator=generator).double() * 5
    values = torch.randn(sum(sizes), DIM, generator=generator).double()
    merged = EMPTY
    for part, part_values in zip(scores.split(sizes, -1), values.split(sizes), strict=True):
        merged = make_backend(name).merge(*merged, *attend(part, part_values))
    same(merged, attend(scores, values))


@pytest.mark.parametrize("name", BACKENDS)
def test_the_first_dtype_is_kept(name):
    a = (torch.randn(ROWS, HEADS, DIM).bfloat16(), torch.zeros(ROWS, HEADS))
    out, lse = make_backend(name).merge(*a, *a)
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)
    torch.testing.assert_close(out, a[0])
    torch.testing.assert_close(lse, torch.full((ROWS, HEADS), 2.0).log())
