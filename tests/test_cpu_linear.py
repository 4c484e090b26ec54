import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu

from kernels.cpu_library import available_variants, load_library
from kernels.cpu_linear import FORMATS, LinearStruct, PackedLinear
from kernels.errors import ShapeError

pytestmark = pytest.mark.skipif(not available_variants(), reason="the C++ kernels are not compiled")

ROWS = (1, 2, 3, 7, 12, 13, 16, 31, 64, 110, 257)
# one panel and less, several, odd counts, chunks of inputs cut off
SHAPES = ((1, 1), (33, 70), (96, 64), (160, 200), (224, 129))

# |error| over |row| |channel| (norms), of random operands. bfloat16 and int8: mostly their rounding of the weights.
# int8_dynamic: of activations too. float16: sums of 64 products in float16, half a unit in the last place a step.
TOLERANCE = {"float32": 3e-7, "bfloat16": 2.5e-3, "float16": 1.6e-3, "int8": 4.2e-3, "int8_dynamic": 7e-3}

variants = pytest.mark.parametrize("variant", available_variants())
formats = pytest.mark.parametrize("weight_format", FORMATS)


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def exact(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    result = x.double() @ weight.double().T
    return result if bias is None else result + bias.double()


def errors(y: Tensor, wanted: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    norms = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)[None]
    return (y.double() - wanted).abs() / norms.clamp_min(1e-300)


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@variants
@formats
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_float64(variant, weight_format, shape):
    weight = random(*shape, scale=0.05)
    packed = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))
    for rows in ROWS:
        x = random(rows, shape[1], seed=rows)
        y = packed(x)
        assert y.dtype == torch.float32
        assert errors(y, exact(x, weight), x, weight).max() < TOLERANCE[weight_format]


@variants
@formats
def test_deep_inputs_keep_the_tolerance(variant, weight_format):
    weight, x = random(40, 3001, scale=0.02), random(3, 3001, seed=1)
    y = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))(x)
    assert errors(y, exact(x, weight), x, weight).max() < TOLERANCE[weight_format]


@variants
@formats
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_half_precision(variant, weight_format, dtype):
    weight, x = random(70, 90, scale=0.05).to(dtype), random(5, 90, seed=1)
    y = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))(x)
    assert errors(y, exact(x, weight), x, weight).max() < TOLERANCE[weight_format]


@variants
@formats
@pytest.mark.parametrize("rows", [1, 5, 30])
def test_bias_and_adding_to_the_output(variant, weight_format, rows):
    weight, bias, x, start = random(75, 66), random(75, seed=1), random(rows, 66, seed=2), random(rows, 75, seed=3)
    packed = PackedLinear.pack(weight, bias, weight_format, library=load_library(variant))
    assert errors(packed(x), exact(x, weight, bias), x, weight).max() < TOLERANCE[weight_format]
    out = start.clone()
    assert packed(x, out, "add") is out
    assert errors(out, exact(x, weight, bias) + start, x, weight).max() < TOLERANCE[weight_format]


@variants
@formats
@pytest.mark.parametrize("half", [1, 32, 50, 96])
@pytest.mark.parametrize("rows", [1, 14, 40])
def test_gated_weights(variant, weight_format, half, rows):
    weight, bias, x = random(2 * half, 70, scale=0.1), random(2 * half, seed=1), random(rows, 70, seed=2)
    packed = PackedLinear.pack(weight, bias, weight_format, silu_mul=True, library=load_library(variant))
    gate, up = exact(x, weight, bias).chunk(2, dim=1)
    y = packed(x)
    assert y.shape == (rows, half)
    # an error e of both goes into a product of them at most e (|up| 1.1 + |silu(gate)|)
    slack = TOLERANCE[weight_format] * x.norm(dim=1)[:, None] * weight.norm(dim=1).max()
    assert ((y - silu(gate) * up).abs() <= slack * (1.2 * up.abs() + silu(gate).abs() + 1) + 1e-6).all()


@variants
@formats
def test_rows_do_not_depend_on_other_rows(variant, weight_format):
    weight, x = random(200, 150), random(300, 150, seed=1)
    packed = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))
    whole = packed(x)
    for first, last in ((0, 1), (299, 300), (7, 9), (20, 31), (40, 53), (60, 76), (100, 131), (3, 113), (150, 290)):
        assert torch.equal(packed(x[first:last]), whole[first:last])


@variants
@formats
@pytest.mark.parametrize("rows", [1, 20, 300])
def test_threads_do_not_change_the_result(variant, weight_format, rows):
    weight, x = random(300, 100), random(rows, 100, seed=1)
    packed = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))
    results = []
    for count in (1, 2, 3):
        with threads(count):
            results.append(packed(x))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@variants
@formats
@pytest.mark.parametrize("rows", [2, 40])
def test_strided_rows_and_nothing_written_outside(variant, weight_format, rows):
    weight = random(45, 70)
    packed = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))
    wide = torch.full((rows, 100), torch.nan)
    wide[:, 10:80] = random(rows, 70, seed=1)
    target = torch.full((rows, 64), 7.0)
    packed(wide[:, 10:80], target[:, 3:48])
    assert torch.equal(target[:, 3:48], packed(wide[:, 10:80].contiguous()))
    assert (target[:, :3] == 7).all()
    assert (target[:, 48:] == 7).all()


@variants
@formats
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_rows_of_any_magnitude(variant, weight_format, scale):
    weight, x = random(50, 64, scale=0.05), random(4, 64, seed=1)
    x[1] *= scale
    y = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))(x)
    # numbers below the smallest normal one have fewer digits
    slack = 1e-2 * (scale < 1e-38) + TOLERANCE[weight_format]
    assert errors(y, exact(x, weight), x, weight).max() < slack


@variants
@formats
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_channels_of_any_magnitude(variant, weight_format, scale):
    weight, x = random(50, 64), random(4, 64, seed=1)
    weight[7] *= scale
    y = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))(x)
    assert errors(y, exact(x, weight), x, weight).max() < TOLERANCE[weight_format]


@variants
@formats
def test_equal_signs_do_not_overflow(variant, weight_format):
    weight, x = torch.full((40, 640), 3e4), torch.full((2, 640), 6e4)
    y = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))(x)
    torch.testing.assert_close(y.double(), exact(x, weight), rtol=5e-3, atol=0)


@variants
@formats
@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_bad_rows_stay_alone(variant, weight_format, bad):
    weight, x = random(50, 70), random(20, 70, seed=1)
    packed = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))
    good = packed(x)
    x[3, 65] = bad
    y = packed(x)
    assert not y[3].isfinite().any()
    keep = [row for row in range(20) if row != 3]
    assert torch.equal(y[keep], good[keep])


@variants
@formats
def test_zeros_and_no_rows(variant, weight_format):
    packed = PackedLinear.pack(torch.zeros(40, 70), None, weight_format, library=load_library(variant))
    assert torch.equal(packed(random(3, 70)), torch.zeros(3, 40))
    assert packed(torch.empty(0, 70)).shape == (0, 40)
    packed = PackedLinear.pack(random(40, 70), None, weight_format, library=load_library(variant))
    assert torch.equal(packed(torch.zeros(3, 70)), torch.zeros(3, 40))


@variants
@pytest.mark.parametrize("in_features", [17, 64, 150])
def test_int8_rounds_groups_of_64_to_the_nearest_step(variant, in_features):
    weight, x = random(70, in_features, scale=0.05), random(5, in_features, seed=1)
    weight[3, :10] = 0
    weight[4, :64] = 0
    rounded = []
    for group in weight.split(64, dim=1):
        most = group.abs().amax(1, keepdim=True)
        step = torch.where(most > 0, most / 127, 1.0).bfloat16().float()
        rounded.append((group / step).round().clamp(-127, 127) * step)
    y = PackedLinear.pack(weight, None, "int8", library=load_library(variant))(x)
    tolerance = TOLERANCE["float16" if variant == "avx512fp16" else "float32"]
    assert errors(y, exact(x, torch.cat(rounded, 1)), x, weight).max() < tolerance


@variants
@pytest.mark.parametrize("rows", [1, 40])
def test_a_large_weight_costs_digits_only_in_its_group(variant, rows):
    weight, x = random(70, 300), random(rows, 300, seed=1)
    weight[:, 70] = 1e4
    x[:, 64:128] = 0
    y = PackedLinear.pack(weight, None, "int8", library=load_library(variant))(x)
    near = weight.clone()
    near[:, 64:128] = 0
    assert errors(y, exact(x, weight), x, near).max() < TOLERANCE["int8"]


@variants
def test_rounded_activations_are_the_same_everywhere(variant):
    weight, x = random(70, 300), random(20, 300, seed=1)
    y, portable = (
        PackedLinear.pack(weight, None, "int8_dynamic", library=load_library(name))(x) for name in (variant, "portable")
    )
    torch.testing.assert_close(y, portable, rtol=0, atol=1e-6 * float(y.abs().max()))


@variants
def test_an_outlier_costs_digits_only_beside_it(variant):
    weight, x = random(70, 300), random(20, 300, seed=1)
    x[:, 140] = 1e4
    weight[:, 128:256] = 0
    y = PackedLinear.pack(weight, None, "int8_dynamic", library=load_library(variant))(x)
    near = x.clone()
    near[:, 128:256] = 0
    assert errors(y, exact(x, weight), near, weight).max() < TOLERANCE["int8_dynamic"]


@settings(max_examples=60, deadline=None)
@given(
    variant=st.sampled_from(available_variants() or ("",)),
    weight_format=st.sampled_from(FORMATS),
    rows=st.integers(1, 140),
    out_features=st.integers(1, 300),
    in_features=st.integers(1, 300),
    seed=st.integers(0, 1000),
)
def test_any_shape(variant, weight_format, rows, out_features, in_features, seed):
    weight, x = random(out_features, in_features, seed=seed), random(rows, in_features, seed=seed + 1)
    y = PackedLinear.pack(weight, None, weight_format, library=load_library(variant))(x)
    # the errors of few inputs average out less
    assert errors(y, exact(x, weight), x, weight).max() < TOLERANCE[weight_format] * (2 if in_features < 64 else 1)


def test_bytes_and_structure():
    packed = PackedLinear.pack(random(70, 40), random(70), "int8")
    assert packed.nbytes == 96 * 40 + 96 * 2 + 96 * 4
    assert PackedLinear.pack(random(70, 130), None, "int8").nbytes == 96 * 130 + 96 * 2 * 3
    struct = packed.struct
    assert (struct.format, struct.out_features, struct.in_features, struct.gated) == (3, 70, 40, 0)
    assert struct.panels == packed.panels.data_ptr()
    assert ctypes.sizeof(LinearStruct) == 48


@pytest.mark.parametrize(
    ("weight", "bias", "weight_format", "gated", "message"),
    [
        (torch.zeros(4), None, "float32", False, r"a weight is \[out, in\]"),
        (torch.zeros(0, 4), None, "float32", False, "at least one"),
        (torch.zeros(3, 4), None, "float32", True, "even number of rows"),
        (torch.zeros(3, 4, dtype=torch.int64), None, "float32", False, "float32, bfloat16 or float16"),
        (torch.zeros(3, 4), torch.zeros(4), "float32", False, r"is \[3\]"),
        (torch.zeros(3, 4), None, "int4", False, "'int4' does not exist; choose from float32"),
    ],
)
def test_bad_weights_are_refused(weight, bias, weight_format, gated, message):
    with pytest.raises(ShapeError, match=message):
        PackedLinear.pack(weight, bias, weight_format, silu_mul=gated)


@pytest.mark.parametrize(
    ("x", "out", "epilogue", "message"),
    [
        (torch.zeros(2, 5), None, None, r"x is float32 \[rows, 4\]"),
        (torch.zeros(4), None, None, "x is float32"),
        (torch.zeros(2, 4, dtype=torch.float64), None, None, "got torch.float64"),
        (torch.zeros(4, 2).T, None, None, "adjacent columns"),
        (torch.zeros(2, 4), torch.zeros(3, 3), None, r"out is float32 \[2, 3\]"),
        (torch.zeros(2, 4), None, "add", "needs the tensor to add to"),
        (torch.zeros(2, 4), None, "silu_mul", "does not fit a weight packed with silu_mul=False"),
        (torch.zeros(2, 4), None, "gelu", "the choices are"),
    ],
)
def test_bad_arguments_are_refused(x, out, epilogue, message):
    packed = PackedLinear.pack(torch.ones(3, 4))
    with pytest.raises(ShapeError, match=message):
        packed(x, out, epilogue)
