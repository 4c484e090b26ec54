"""The C++ attention of every variant that runs here: head dimensions, panels and their rests, threads, magnitudes."""

import ctypes
import mmap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_backends import VARIANTS
from test_kernel_parity import (
    DTYPES,
    LAYER,
    TOLERANCE,
    Scene,
    cascade,
    check,
    random_scenes,
    repaired_long,
    shifted,
    tolerance_of,
)

from kernels.backend import get_backend
from kernels.cpu import CpuBackend, make_cpu_plan
from kernels.errors import ShapeError
from kernels.kv_cache import KVCache, block_bytes, write_slots
from kernels.plan import AttentionPlan
from kernels.rope import Rope
from kernels.runs import Run, SequencePlan


@pytest.fixture
def threads():
    """Set how many threads there are, until the test ends."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def long_prompt(scene: Scene, cached: int = 200, new: int = 70) -> None:
    """Cached keys in two runs, then a computed span: several panels and key tiles, each with a rest."""
    first, second = scene.store(cached // 2 + 3, 0), scene.store(cached - cached // 2 - 3, cached // 2 + 3)
    scene.add(range(cached, cached + new), [first.at(), second.at(), scene.store(new, cached).at()])


def assert_like_reference(scene: Scene, out: torch.Tensor, tolerance: float) -> None:
    expected = get_backend("reference").attend(scene.queries(), scene.plan(), scene.cache, LAYER)
    torch.testing.assert_close(out.double(), expected.double(), rtol=0.0, atol=tolerance)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 8, 20, 40, 64, 80, 128])
def test_head_dimensions(dim, dtype, variant):
    scene = Scene(dim=dim, dtype=dtype)
    long_prompt(scene, 90, 40)
    shared = scene.sequences[0][1][0]
    scene.add([130], [shared, scene.store(30, 100).at()])
    q = scene.queries() * min(1.0, 16 / dim) ** 0.5  # scores as in 16 dimensions, of which the tolerance speaks
    out = CpuBackend(variant).attend(q, scene.plan(), scene.cache, LAYER)
    expected = get_backend("reference").attend(q, scene.plan(), scene.cache, LAYER)
    torch.testing.assert_close(out.double(), expected.double(), rtol=0.0, atol=tolerance_of(scene, f"cpu:{variant}"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("new", [1, 2, 3, 5, 11, 21, 22, 43, 65])
def test_row_counts(new, dtype, variant):
    scene = Scene(heads=(9, 3), dim=16, dtype=dtype, block_size=16)
    long_prompt(scene, 150, new)
    out = CpuBackend(variant).attend(scene.queries(), scene.plan(), scene.cache, LAYER)
    assert_like_reference(scene, out, tolerance_of(scene, f"cpu:{variant}"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_more_rows_than_one_piece_takes(variant):
    scene = Scene(heads=(12, 1), dim=4, block_size=64)
    scene.add(range(5, 300), [scene.store(300, 0).at()])
    out = CpuBackend(variant).attend(scene.queries(), scene.plan(), scene.cache, LAYER)
    assert_like_reference(scene, out, TOLERANCE[torch.float32])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("build", [long_prompt, cascade, shifted, repaired_long], ids=lambda build: build.__name__)
def test_any_number_of_threads(build, count, dtype, variant, threads):
    threads(count)
    scene = Scene(dim=64, heads=(9, 3), block_size=16, dtype=dtype)
    build(scene)
    backend, q, plan = CpuBackend(variant), scene.queries(), scene.plan()
    out = backend.attend(q, plan, scene.cache, LAYER)
    assert_like_reference(scene, out, 4 * tolerance_of(scene, f"cpu:{variant}"))
    for later in (3, 2, 1):  # the plan was made for `count`
        threads(later)
        assert torch.equal(backend.attend(q, plan, scene.cache, LAYER), out)


@settings(max_examples=60, deadline=None)
@given(random_scenes(), st.sampled_from(VARIANTS), st.integers(1, 3))
def test_random_scenes_cut_between_threads(scene_and_window, variant, count):
    scene, window = scene_and_window
    if not any(placed for _, placed in scene.sequences):
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        check(scene, f"cpu:{variant}", window)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("window", [1, 17, 64, 100])
def test_windows_over_many_tiles(window, dtype, variant):
    scene = Scene(dim=64, dtype=dtype)
    long_prompt(scene, 190, 60)
    out = CpuBackend(variant).attend(scene.queries(), scene.plan(window), scene.cache, LAYER)
    expected = get_backend("reference").attend(scene.queries(), scene.plan(window), scene.cache, LAYER)
    torch.testing.assert_close(out, expected, rtol=0.0, atol=2 * TOLERANCE[torch.float16])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("key_scale", "value_scale"), [(300.0, 1.0), (3000.0, 1.0), (1.0, 10000.0), (1.0, 1e-6)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("new", [1, 30])
def test_magnitudes_that_overflow_float16(new, dtype, key_scale, value_scale, variant):
    scene = Scene(dim=64, dtype=dtype)
    long_prompt(scene, 140, new)
    keys, values = scene.cache.layer_scales(LAYER) or scene.cache.layer(LAYER)
    keys *= key_scale
    values *= value_scale
    q = scene.queries() * 5
    out = CpuBackend(variant).attend(q, scene.plan(), scene.cache, LAYER)
    expected = get_backend("reference").attend(q, scene.plan(), scene.cache, LAYER)
    assert expected.isfinite().all()
    # scores of thousands are exact in float32 to 1e-4 only
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2 * value_scale)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
def test_one_outlier_key_leaves_the_others_exact(dtype, variant):
    scene = Scene(dim=64, dtype=dtype)
    long_prompt(scene, 140, 30)
    block = scene.sequences[0][1][0].run.block_ids[3]
    keys, _ = scene.cache.layer_scales(LAYER) or scene.cache.layer(LAYER)
    keys[block, :, 1] *= 500
    out = CpuBackend(variant).attend(scene.queries(), scene.plan(), scene.cache, LAYER)
    assert_like_reference(scene, out, 2 * TOLERANCE[torch.float16])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_a_poisoned_query_spoils_no_other_row(poison, dtype, variant):
    scene = Scene(dim=16, dtype=dtype)
    long_prompt(scene, 100, 30)
    q = scene.queries()
    clean = CpuBackend(variant).attend(q, scene.plan(), scene.cache, LAYER)
    q[7] = poison
    out = CpuBackend(variant).attend(q, scene.plan(), scene.cache, LAYER)
    others = [row for row in range(30) if row != 7]
    assert out[7].isnan().all()
    # float16 products give way to float32 ones for the rows beside it
    torch.testing.assert_close(out[others], clean[others], rtol=0.0, atol=tolerance_of(scene, f"cpu:{variant}"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.int8], ids=str)
@pytest.mark.parametrize("new", [1, 20])
def test_nan_among_valid_keys_reaches_every_row_that_sees_it(new, dtype, variant):
    scene = Scene(dim=16, dtype=dtype)
    long_prompt(scene, 100, new)
    block = scene.sequences[0][1][0].run.block_ids[0]
    keys, _ = scene.cache.layer_scales(LAYER) or scene.cache.layer(LAYER)
    keys[block, 0, 0] = torch.nan
    out = CpuBackend(variant).attend(scene.queries(), scene.plan(), scene.cache, LAYER)
    assert out[:, :3].isnan().all()
    assert out[:, 3:].isfinite().all()


def guarded(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Return a tensor that ends where the next byte may not be read."""
    size = torch.Size(shape).numel() * dtype.itemsize
    pages = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(address + pages), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return torch.frombuffer(memory, dtype=dtype, count=size // dtype.itemsize, offset=pages - size).view(shape)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [6, 24, 64])
@pytest.mark.parametrize("new", [1, 19])
def test_nothing_is_read_beyond_the_cache_or_the_queries(new, dim, dtype, variant):
    cache = KVCache.over(guarded((3, block_bytes(8, 1, 2, dim, dtype)), torch.uint8), (3, 1, 2, 2, 8, dim), dtype)
    write_slots(*torch.randn(2, 24, 2, dim), cache, 0, torch.arange(24))
    q = guarded((new, 4, dim), torch.float32)
    q.copy_(torch.randn(q.shape))
    runs = (Run((1, 0, 2), 24, 0),)
    rope = Rope(torch.rand(dim // 2), dim)
    plan = AttentionPlan.build([SequencePlan(range(24 - new, 24), runs)], rope=rope, softmax_scale=0.2, block_size=8)
    out = CpuBackend(variant).attend(q, plan, cache, 0)
    expected = get_backend("reference").attend(q, plan, cache, 0)
    tolerance = TOLERANCE[torch.float16 if dtype is torch.int8 else dtype]
    torch.testing.assert_close(out, expected, rtol=0.0, atol=2 * tolerance)


def test_layers_and_windows_share_what_they_can():
    scene = Scene()
    cascade(scene)
    library, plan = CpuBackend().library, scene.plan()
    first = make_cpu_plan(library, plan, scene.cache, 6)
    assert make_cpu_plan(library, plan, scene.cache, 6) is first
    layouts = [key for key in plan._memo if key[0] == "cpu layout"]
    narrow = make_cpu_plan(library, plan.with_window(3), scene.cache, 6)
    assert narrow is not first
    assert [key for key in plan._memo if key[0] == "cpu layout"] == layouts


def test_other_cache_dtypes_are_refused():
    scene = Scene()
    cascade(scene)
    cache = KVCache(scene.cache.data.to(torch.float64))
    with pytest.raises(ShapeError, match=r"not torch\.float64"):
        CpuBackend().attend(scene.queries(), scene.plan(), cache, LAYER)
