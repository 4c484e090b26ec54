"""Every backend against `reference`, and `reference` against a naive oracle that knows nothing of plans."""

import math
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import BACKENDS, make_backend

from kernels.kv_cache import KVCache
from kernels.plan import AttentionPlan
from kernels.rope import Rope
from kernels.runs import Run, SequencePlan

LAYER, NUM_LAYERS, NUM_BLOCKS = 1, 3, 220
HEADS = [(4, 4), (6, 2), (5, 1)]
SCALE = 0.3
# absolute, on outputs and LSE of unit-variance inputs: float32 differs by summation order and by the angle of a
# shifted query against that of a shifted key; bf16 has 8 bits for q, k, v, the weights and the result; float16 has 11
# bits for them and, where the processor multiplies in float16, for sums of up to 64 products
TOLERANCE = {torch.float32: 3e-5, torch.bfloat16: 4e-2, torch.float16: 1e-2}
DTYPES = [*TOLERANCE, torch.int8]


@dataclass(frozen=True)
class Stored:
    """Tokens in the cache, with their keys before rotation."""

    blocks: tuple[int, ...]
    keys: torch.Tensor  # [n, kv_heads, dim] float64, not rotated
    values: torch.Tensor
    position: int  # at which the KV was computed

    def at(self, start: int | None = None) -> "Placed":
        start = self.position if start is None else start
        return Placed(self, Run(self.blocks, len(self.keys), start, start - self.position))

    def rest(self, num_blocks: int, block_size: int) -> "Stored":
        """What follows the first blocks; they are replaced by a repaired run."""
        skipped = num_blocks * block_size
        parts = self.keys[skipped:], self.values[skipped:]
        return Stored(self.blocks[num_blocks:], *parts, self.position + skipped)


@dataclass(frozen=True)
class Placed:
    stored: Stored
    run: Run


def fill_with_nan(cache: KVCache) -> None:
    """Make every slot NaN; an int8 one is by its scale."""
    if cache.scales is None:
        cache.data.fill_(torch.nan)
    else:
        cache.data.fill_(77)
        cache.scales.fill_(torch.nan)


def tolerance_of(scene: "Scene", backend: str) -> float:
    """How far a backend may be off; the best variant of the C++ library may multiply int8 in float16."""
    in_float16 = scene.cache.dtype is torch.int8 and backend in {"cpu", "cpu:avx512fp16"}
    return TOLERANCE[torch.float16 if in_float16 else scene.dtype]


class Scene:
    """Sequences over a cache whose unused slots are NaN."""

    def __init__(self, heads=(6, 2), dim=16, block_size=4, dtype=torch.float32, rope=None, seed=0):
        self.heads, self.kv_heads = heads
        self.dtype, self.block_size, self.dim = (torch.float32 if dtype is torch.int8 else dtype), block_size, dim
        self.random = torch.Generator().manual_seed(seed)
        inv_freq = 1.0 / 50.0 ** (torch.arange(0, dim, 2) / dim)
        self.rope = rope or Rope(inv_freq, dim)
        self.cache = KVCache.allocate(NUM_BLOCKS, block_size, NUM_LAYERS, self.kv_heads, dim, dtype)
        fill_with_nan(self.cache)
        self.free = torch.randperm(NUM_BLOCKS, generator=self.random).tolist()
        self.sequences: list[tuple[list[int], list[Placed]]] = []

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random).to(self.dtype).to(torch.float64)

    def store(self, num_tokens: int, position: int) -> Stored:
        blocks = tuple(self.free.pop() for _ in range(math.ceil(num_tokens / self.block_size)))
        keys, values = (self.normal(num_tokens, self.kv_heads, self.dim) for _ in range(2))
        positions = torch.arange(position, position + num_tokens)
        rotated = rotate_naively(keys, positions, self.rope).to(self.dtype)
        slots = [blocks[i // self.block_size] * self.block_size + i % self.block_size for i in range(num_tokens)]
        slot_mapping = torch.tensor(slots, dtype=torch.int64)
        backend = make_backend("reference")
        backend.write_kv(rotated, values.to(self.dtype), self.cache, LAYER, slot_mapping)
        if self.cache.scales is not None and num_tokens:  # what was stored is what counts
            stored = self.cache.read_slots(LAYER, slot_mapping // self.block_size, slot_mapping % self.block_size)
            keys, values = (part.to(torch.float64) for part in stored)
            back = Rope(-self.rope.inv_freq, self.rope.rotary_dim, self.rope.interleaved, 1 / self.rope.scale)
            keys = rotate_naively(keys, positions, back)
        return Stored(blocks, keys, values, position)

    def add(self, queries, placed: list[Placed]) -> None:
        self.sequences.append((list(queries), placed))

    def plan(self, window=None) -> AttentionPlan:
        sequences = [SequencePlan(tuple(q), tuple(p.run for p in placed)) for q, placed in self.sequences]
        plan = AttentionPlan.build(
            sequences, rope=self.rope, softmax_scale=SCALE, block_size=self.block_size, sliding_window=None
        )
        return plan.with_window(window)

    def queries(self) -> torch.Tensor:
        num_rows = sum(len(q) for q, _ in self.sequences)
        generator = torch.Generator().manual_seed(77)
        return torch.randn(num_rows, self.heads, self.dim, generator=generator).to(self.dtype)


def rotate_naively(x: torch.Tensor, positions: torch.Tensor, rope: Rope) -> torch.Tensor:
    """Rotate x [n, heads, dim] float64 as complex numbers."""
    half = rope.rotary_dim // 2
    if rope.interleaved:
        pairs = torch.complex(x[..., 0 : 2 * half : 2], x[..., 1 : 2 * half : 2])
    else:
        pairs = torch.complex(x[..., :half], x[..., half : 2 * half])
    turned = pairs * torch.exp(1j * positions[:, None] * rope.inv_freq.to(torch.float64))[:, None] * rope.scale
    halves = torch.view_as_real(turned).flatten(-2), torch.cat((turned.real, turned.imag), -1)
    return torch.cat((halves[0] if rope.interleaved else halves[1], x[..., 2 * half :]), -1)


def oracle(scene: Scene, window: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Return out and LSE per run: float64, one query and head at a time, keys rotated to their prompt positions."""
    q = scene.queries().to(torch.float64)
    max_runs = max(len(placed) for _, placed in scene.sequences)
    out = torch.zeros(q.shape, dtype=torch.float64)
    lse = torch.full((q.shape[0], max_runs, scene.heads), -torch.inf, dtype=torch.float64)
    row = 0
    for queries, placed in scene.sequences:
        prompt_keys = []
        for p in placed:
            positions = torch.arange(p.run.start, p.run.end)
            prompt_keys.append((positions, rotate_naively(p.stored.keys, positions, scene.rope), p.stored.values))
        for position in queries:
            query = rotate_naively(q[row : row + 1], torch.tensor([position]), scene.rope)[0]
            for head in range(scene.heads):
                kv_head = head // (scene.heads // scene.kv_heads)
                scores, values = [], []
                for index, (positions, keys, run_values) in enumerate(prompt_keys):
                    seen = positions <= position
                    if window is not None:
                        seen &= positions > position - window
                    run_scores = keys[seen, kv_head] @ query[head] * SCALE
                    lse[row, index, head] = run_scores.logsumexp(0)
                    scores.append(run_scores)
                    values.append(run_values[seen, kv_head])
                if sum(map(len, scores)):
                    out[row, head] = torch.cat(scores).softmax(0) @ torch.cat(values)
            row += 1
    return out, lse


def check(scene: Scene, backend: str, window: int | None = None) -> None:
    """Compare out, LSE and the merged LSE of a backend with the oracle, or with `reference` for other backends."""
    q = scene.queries()
    plan = scene.plan(window)
    out = make_backend(backend).attend(q, plan, scene.cache, LAYER)
    out_again, lse = make_backend(backend).attend(q, plan, scene.cache, LAYER, lse_per_run=True)
    if backend == "reference":
        expected, expected_lse = oracle(scene, window)
    else:
        expected, expected_lse = make_backend("reference").attend(
            q, scene.plan(window), scene.cache, LAYER, lse_per_run=True
        )
    assert out.dtype == out_again.dtype == q.dtype
    assert lse.dtype == torch.float32
    tolerance = {"rtol": 0.0, "atol": tolerance_of(scene, backend)}
    torch.testing.assert_close(out.double(), expected.double(), **tolerance)
    torch.testing.assert_close(out_again.double(), expected.double(), **tolerance)
    torch.testing.assert_close(lse.double(), expected_lse.double(), **tolerance)


def template_and_tail(scene: Scene, num_new: int) -> None:
    """A cached template, a cached passage, a tail that is partly computed in this step."""
    template, passage = scene.store(9, 0), scene.store(14, 9)
    tail = scene.store(5 + num_new, 23)
    scene.add(range(28, 28 + num_new), [template.at(), passage.at(), tail.at()])


def whole_prompt(scene: Scene) -> None:
    scene.add(range(75), [scene.store(75, 0).at()])


def decode_batch(scene: Scene) -> None:
    """Private prompts of different lengths, one row each, and one of a whole prompt beside them."""
    for length in (1, 30, 33, 7):
        scene.add([length - 1], [scene.store(length, 0).at()])
    scene.add(range(6), [scene.store(6, 0).at()])


def cascade(scene: Scene) -> None:
    """A template and a passage that all read, another passage that two read, private tails."""
    template, first, second = scene.store(6, 0), scene.store(11, 6), scene.store(9, 17)
    scene.add([30], [template.at(), first.at(), second.at(), scene.store(5, 26).at()])
    scene.add(range(26, 31), [template.at(), first.at(), second.at(), scene.store(5, 26).at()])
    scene.add(range(17, 19), [template.at(), first.at(), scene.store(2, 17).at()])


def shifted(scene: Scene) -> None:
    """Passages computed behind the template, read in two orders at shifts of both signs."""
    template, private = scene.store(6, 0), scene.store(10, 6)
    late, early = scene.store(12, 40), scene.store(9, 6)
    scene.add(range(37, 41), [template.at(), private.at(), late.at(16), early.at(28), scene.store(4, 37).at()])
    scene.add([30], [template.at(), early.at(), late.at(15), scene.store(4, 27).at()])


def repaired(scene: Scene) -> None:
    """Passages whose first block is computed in context: a private run, then the rest of the shifted run."""
    size = scene.block_size
    template, passages = scene.store(7, 0), [scene.store(3 * size + 2, 7) for _ in range(3)]
    start, placed, spans = 7, [template.at()], []
    for index, passage in enumerate(passages):
        length = 3 * size + 2
        if index == 0:
            placed.append(passage.at())
        else:
            placed += [scene.store(size, start).at(), passage.rest(1, size).at(start + size)]
            spans += range(start, start + size)
        start += length
    placed.append(scene.store(6, start).at())
    scene.add([*spans, *range(start, start + 6)], placed)


def repaired_long(scene: Scene) -> None:
    """More query rows than one masked call takes, in several spans, some of their keys not yet there."""
    first, second = scene.store(24, 0), scene.store(20, 4)
    placed = [first.at(), scene.store(40, 24).at(), second.at(64), scene.store(70, 84).at()]
    scene.add([*range(24, 64), *range(84, 154)], placed)
    scene.add([*range(30, 64), *range(84, 154)], placed)
    scene.add(range(90), [first.at(), scene.store(41, 24).at()])


def holes(scene: Scene) -> None:
    """Positions that no run covers, inside the prompt, inside the query span and before the first run."""
    scene.add(range(10, 14), [scene.store(3, 2).at(), scene.store(2, 10).at(), scene.store(1, 13).at()])
    scene.add(range(100), [scene.store(20, 30).at(), scene.store(30, 60).at()])
    scene.add([0, 1, 2], [scene.store(5, 1).at()])


def empties(scene: Scene) -> None:
    """Sequences without queries, without runs, with empty runs, and with nothing visible yet."""
    scene.add([], [scene.store(3, 0).at()])
    scene.add([4, 5], [])
    scene.add([2, 3], [Stored((), *(torch.zeros(0, scene.kv_heads, scene.dim).double(),) * 2, 0).at()])
    scene.add([0, 1], [scene.store(3, 8).at()])
    scene.add([7], [scene.store(8, 0).at()])


SCENES = [
    lambda s: template_and_tail(s, 1),
    lambda s: template_and_tail(s, 9),
    lambda s: template_and_tail(s, 80),
    whole_prompt,
    decode_batch,
    cascade,
    shifted,
    repaired,
    repaired_long,
    holes,
    empties,
]
NAMES = ["one-token", "few-tokens", "many-tokens", *(scene.__name__ for scene in SCENES[3:])]


def test_the_cpu_has_these_backends():
    assert {"cpu", "reference", "torch"} <= set(BACKENDS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("build", SCENES, ids=NAMES)
def test_scenes(build, dtype, backend):
    scene = Scene(dtype=dtype)
    build(scene)
    check(scene, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("window", "dtype"), [(1, torch.float32), (5, torch.int8), (16, torch.float32), (1000, torch.int8)]
)
@pytest.mark.parametrize("build", SCENES, ids=NAMES)
def test_sliding_windows(build, window, dtype, backend):
    scene = Scene(dtype=dtype)
    build(scene)
    check(scene, backend, window)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("heads", HEADS, ids=str)
@pytest.mark.parametrize("block_size", [1, 3, 16])
@pytest.mark.parametrize("build", [cascade, repaired, shifted], ids=["cascade", "repaired", "shifted"])
def test_block_sizes_and_head_ratios(build, block_size, heads, backend):
    # heads of a ratio each are kept in another way
    dtype = torch.int8 if heads == (6, 2) else torch.float32
    scene = Scene(heads=heads, block_size=block_size, dim=8, dtype=dtype)
    build(scene)
    check(scene, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("interleaved", [False, True])
def test_partial_interleaved_and_scaled_rope(interleaved, backend):
    rope = Rope(torch.tensor([1.0, 0.2, 0.03]), rotary_dim=6, interleaved=interleaved, scale=1.2)
    scene = Scene(rope=rope, dim=10)
    shifted(scene)
    check(scene, backend)


def test_shifts_of_thousands_of_positions_stay_exact_in_float32():
    scene = Scene()
    far = scene.store(20, 5)
    scene.add(range(6020, 6024), [scene.store(5, 0).at(), far.at(6000), scene.store(4, 6020).at()])
    q, plan = scene.queries(), scene.plan()
    expected, _ = oracle(scene, None)
    for backend in BACKENDS:
        out = make_backend(backend).attend(q, plan, scene.cache, LAYER)
        # the angle itself has 2^-11 radians of float32 rounding at position 6000
        torch.testing.assert_close(out.double(), expected, rtol=0.0, atol=2e-3)


@st.composite
def random_scenes(draw) -> tuple[Scene, int | None]:
    dtype = draw(st.sampled_from([torch.float32, torch.float32, torch.int8]))
    scene = Scene(heads=draw(st.sampled_from(HEADS)), block_size=draw(st.sampled_from([1, 2, 5])), dim=4, dtype=dtype)
    scene.random.manual_seed(draw(st.integers(0, 99)))
    shared = [scene.store(draw(st.integers(1, 9)), draw(st.integers(0, 9))) for _ in range(2)]
    for _ in range(draw(st.integers(1, 4))):
        position, placed = 0, []
        for _ in range(draw(st.integers(0, 4))):
            position += draw(st.sampled_from([0, 0, 0, 1, 4]))
            if draw(st.booleans()):
                placed.append(draw(st.sampled_from(shared)).at(position))
            else:
                computed = max(0, position - draw(st.sampled_from([0, 0, 3, -3])))
                placed.append(scene.store(draw(st.integers(1, 12)), computed).at(position))
            position = placed[-1].run.end
        scene.add(sorted(draw(st.sets(st.integers(0, position + 2), max_size=12))), placed)
    return scene, draw(st.sampled_from([None, None, 1, 4, 11]))


@settings(max_examples=80, deadline=None)
@given(random_scenes())
def test_random_scenes(scene_and_window):
    scene, window = scene_and_window
    if not any(placed for _, placed in scene.sequences):
        return
    for backend in BACKENDS:
        check(scene, backend, window)
    # the same scene as if it had many rows: spans, causal squares and window chunks instead of one masked call
    with patch("kernels.torch_calls.FEW_ROWS", 0), patch("kernels.torch_calls.WINDOW_ROWS", 3):
        check(scene, "torch", window)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_does_not_depend_on_what_shares_its_step(backend):
    together, alone = Scene(), Scene()
    for scene in (together, alone):
        template, passage = scene.store(9, 0), scene.store(14, 9)
        scene.add([25, 26], [template.at(), passage.at(), scene.store(4, 23).at()])
    template, passage = (placed.stored for placed in together.sequences[0][1][:2])
    together.add(range(23, 95), [template.at(), passage.at(), together.store(72, 23).at()])
    first, second = (
        make_backend(backend).attend(scene.queries(), scene.plan(), scene.cache, LAYER) for scene in (together, alone)
    )
    torch.testing.assert_close(first[:2], second, rtol=0.0, atol=TOLERANCE[torch.float32])


def test_the_layers_of_a_step_share_the_plan_and_not_the_data():
    scene = Scene()
    cascade(scene)
    plan, q = scene.plan(), scene.queries()
    scene.cache.data[:, 2] = scene.cache.data[:, LAYER] * 0.5
    for backend in map(make_backend, BACKENDS):
        first = backend.attend(q, plan, scene.cache, LAYER)
        other = backend.attend(q, plan, scene.cache, 2)
        again = backend.attend(q, plan, scene.cache, LAYER)
        assert torch.equal(first, again)
        assert not torch.allclose(first, other, atol=1e-2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_int8_touches_only_its_slots_and_their_scales(backend):
    cache = KVCache.allocate(5, 4, 3, 2, 8, torch.int8)
    fill_with_nan(cache)
    k, v = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    make_backend(backend).write_kv(k, v, cache, 1, torch.tensor([19, 0, 6]))
    stored = cache.read_slots(1, torch.tensor([4, 0, 1]), torch.tensor([3, 0, 2]))
    for part, x in zip(stored, (k, v), strict=True):
        assert ((part - x).abs() <= x.abs().amax(-1, keepdim=True) / 253).all()
    assert int(cache.scales.isnan().logical_not().sum()) == 2 * 3 * 2
    assert int((cache.data != 77).sum()) > 2 * k.numel() * 0.9
    assert int((cache.data != 77).sum()) <= 2 * k.numel()


@pytest.mark.parametrize("backend", BACKENDS)
def test_write_kv_touches_only_its_slots(backend):
    cache = KVCache.allocate(5, 4, 3, 2, 8, torch.bfloat16)
    cache.data.fill_(torch.nan)
    k, v = torch.randn(3, 2, 8), torch.randn(3, 2, 8)
    make_backend(backend).write_kv(k, v, cache, 1, torch.tensor([19, 0, 6]))
    keys, values = cache.layer(1)
    for token, (block, offset) in enumerate([(4, 3), (0, 0), (1, 2)]):
        assert torch.equal(keys[block, :, offset], k[token].bfloat16())
        assert torch.equal(values[block, :, offset], v[token].bfloat16())
    assert int(cache.data.isnan().logical_not().sum()) == 2 * k.numel()
