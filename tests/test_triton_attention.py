"""The Triton kernels against `reference`: under Triton's interpreter, or compiled on a GPU with TRITON_INTERPRET=0."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import pytest
import torch
import triton
from hypothesis import given, settings
from test_kernel_parity import (
    LAYER,
    NAMES,
    SCENES,
    TOLERANCE,
    Scene,
    cascade,
    decode_batch,
    holes,
    random_scenes,
    repaired,
    shifted,
    template_and_tail,
    whole_prompt,
)

from kernels.backend import get_backend
from kernels.errors import BackendUnavailableError, ShapeError
from kernels.kv_cache import KVCache
from kernels.plan import AttentionPlan
from kernels.rope import Rope
from kernels.triton_attention import TritonBackend
from kernels.triton_kernels import INTERPRETED, attend_items, sensible_configs

DEVICE = "cpu" if INTERPRETED else "cuda"
TOLERANCES = TOLERANCE | {torch.float16: 6e-3}


def on_device(scene: Scene, window: int | None) -> tuple[torch.Tensor, AttentionPlan, KVCache]:
    """Queries, plan and cache of a scene on the device under test."""
    rope = Rope(scene.rope.inv_freq.to(DEVICE), scene.rope.rotary_dim, scene.rope.interleaved, scene.rope.scale)
    plan = scene.plan(window)
    settings = {"softmax_scale": plan.softmax_scale, "block_size": plan.block_size, "sliding_window": window}
    plan = AttentionPlan.build(plan.sequences, rope=rope, device=DEVICE, **settings)
    return scene.queries().to(DEVICE), plan, copy_of(scene.cache)


def copy_of(cache: KVCache) -> KVCache:
    """A cache on the device under test with the same bytes."""
    shape = (cache.num_blocks, cache.block_size, cache.num_layers, cache.num_kv_heads, cache.head_dim)
    copy = KVCache.allocate(*shape, cache.dtype, DEVICE)
    blocks = range(cache.num_blocks)
    copy.write_blocks(blocks, torch.stack(cache.block_views(blocks)))
    return copy


def check(scene: Scene, window: int | None = None, backend: TritonBackend | None = None) -> None:
    """Compare results and each run's LSE, of one launch for all runs and of one that keeps them apart."""
    q, plan, cache = on_device(scene, window)
    backend = backend or TritonBackend()
    expected, expected_lse = get_backend("reference").attend(
        scene.queries(), scene.plan(window), scene.cache, LAYER, lse_per_run=True
    )
    out = backend.attend(q, plan, cache, LAYER)
    again, lse = backend.attend(q, plan, cache, LAYER, lse_per_run=True)
    assert out.dtype == again.dtype == q.dtype
    assert lse.dtype == torch.float32
    tolerance = {"rtol": 0.0, "atol": TOLERANCES[scene.dtype]}
    for part, wanted in ((out, expected), (again, expected), (lse, expected_lse)):
        torch.testing.assert_close(part.cpu().double(), wanted.double(), **tolerance)


@contextmanager
def cut(*, processors: int, keys: int, keys_per_item: int = 1, max_lanes: int = 128) -> Iterator[None]:
    """Cut work as for a device of so many multiprocessors, with tiles of so many keys."""
    module = "kernels.triton_attention."
    with ExitStack() as stack:
        stack.enter_context(patch(module + "_num_processors", lambda device: processors))
        stack.enter_context(patch(module + "MIN_KEYS_PER_ITEM", keys_per_item))
        stack.enter_context(patch(module + "MAX_LANES", max_lanes))
        for config in attend_items.configs:
            stack.enter_context(patch.dict(config.kwargs, {"KEYS": keys}))
        yield


@dataclass(frozen=True)
class Launch:
    lanes: int
    num_items: int
    direct: bool


@contextmanager
def launches() -> Iterator[list[Launch]]:
    """Note how often and how the attention kernel is launched."""
    seen: list[Launch] = []
    original = type(attend_items).run

    def run(self, *args, grid, **kwargs):
        if self is attend_items:
            seen.append(Launch(kwargs["LANES"], grid[0], kwargs["DIRECT"]))
        return original(self, *args, grid=grid, **kwargs)

    with patch.object(type(attend_items), "run", run):
        yield seen


@pytest.mark.parametrize("build", SCENES, ids=NAMES)
def test_scenes(build):
    scene = Scene()
    build(scene)
    check(scene)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("build", [cascade, shifted, repaired, whole_prompt], ids=lambda build: build.__name__)
def test_half_precisions(build, dtype):
    scene = Scene(dtype=dtype)
    build(scene)
    check(scene)


@pytest.mark.parametrize("build", [cascade, shifted, whole_prompt], ids=lambda build: build.__name__)
def test_int8_with_scales(build):
    scene = Scene(dtype=torch.int8, dim=20)
    build(scene)
    check(scene)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_int8_is_multiplied_in_the_dtype_of_the_queries(dtype):
    scene = Scene(dtype=torch.int8)
    repaired(scene)
    q, plan, cache = on_device(scene, None)
    out = TritonBackend().attend(q.to(dtype), plan, cache, LAYER)
    assert out.dtype is dtype
    expected = get_backend("reference").attend(scene.queries(), scene.plan(), scene.cache, LAYER)
    torch.testing.assert_close(out.cpu().float(), expected, rtol=0.0, atol=TOLERANCES[dtype])


@pytest.mark.parametrize("window", [1, 5, 16])
@pytest.mark.parametrize("build", [cascade, holes], ids=lambda build: build.__name__)
def test_sliding_windows(build, window):
    scene = Scene()
    build(scene)
    check(scene, window)


@pytest.mark.parametrize(("block_size", "heads"), [(1, (4, 4)), (3, (5, 1)), (16, (6, 2))], ids=str)
def test_block_sizes_and_head_ratios(block_size, heads):
    scene = Scene(heads=heads, block_size=block_size, dim=8)
    shifted(scene)
    check(scene)


@pytest.mark.parametrize(
    "heads", [(20, 1), (18, 2)], ids=["more heads than the lowest tile has lanes", "one row fills a tile"]
)
def test_many_heads_share_a_key_value_head(heads):
    scene = Scene(heads=heads, dim=8)
    cascade(scene)
    check(scene)


@pytest.mark.parametrize("dim", [2, 24, 80])
def test_head_dims_are_padded_to_a_power_of_two(dim):
    scene = Scene(dim=dim)
    repaired(scene)
    check(scene)


@pytest.mark.parametrize("interleaved", [False, True])
def test_partial_interleaved_and_scaled_rope(interleaved):
    rope = Rope(torch.tensor([1.0, 0.2, 0.03]), rotary_dim=6, interleaved=interleaved, scale=1.2)
    scene = Scene(rope=rope, dim=10)
    shifted(scene)
    check(scene)


@pytest.mark.parametrize("keys", [16, 128])
@pytest.mark.parametrize("build", [decode_batch, shifted], ids=lambda build: build.__name__)
def test_work_cut_into_small_pieces(build, keys):
    """Split-KV down to single blocks, and tiles of keys that end inside, at and beyond a piece."""
    scene = Scene()
    build(scene)
    with cut(processors=200, keys=keys), launches() as seen:
        check(scene)
    assert sum(launch.num_items for launch in seen) > len(scene.sequences)
    assert not any(launch.direct for launch in seen)


@pytest.mark.parametrize("max_lanes", [16, 32])
def test_prompts_of_several_tiles(max_lanes):
    scene = Scene()
    template_and_tail(scene, 40)
    with cut(processors=1, keys=64, max_lanes=max_lanes), launches() as seen:
        check(scene)
    assert seen[0].num_items == -(-40 // (max_lanes // 3))
    assert seen[0].direct, "one stretch for each row needs no merge"


def test_a_shared_run_is_read_once_for_all_sequences():
    scene = Scene(block_size=16)
    shared = scene.store(60, 0)
    for _ in range(5):
        scene.add([63], [shared.at(), scene.store(4, 60).at()])
    q, plan, cache = on_device(scene, None)
    with launches() as seen:
        out = TritonBackend().attend(q, plan, cache, LAYER)
    # 5 rows of 3 heads fit the 16 lanes of one tile; the tails are one item each
    assert seen == [Launch(lanes=16, num_items=1 + 5, direct=False)]
    expected = get_backend("reference").attend(scene.queries(), scene.plan(), scene.cache, LAYER)
    torch.testing.assert_close(out.cpu(), expected, rtol=0.0, atol=TOLERANCE[torch.float32])


def test_a_small_group_does_not_pay_for_the_tiles_of_a_large_one():
    scene = Scene()
    decode_batch(scene)
    whole_prompt(scene)
    q, plan, cache = on_device(scene, None)
    with launches() as seen:
        TritonBackend().attend(q, plan, cache, LAYER)
    assert [launch.lanes for launch in seen] == [16, 32, 128]


def test_shifts_of_thousands_of_positions():
    scene = Scene()
    far = scene.store(20, 5)
    scene.add(range(6020, 6024), [scene.store(5, 0).at(), far.at(6000), scene.store(4, 6020).at()])
    check(scene)


@settings(max_examples=6, deadline=None)
@given(random_scenes())
def test_random_scenes(scene_and_window):
    scene, window = scene_and_window
    if not any(placed for _, placed in scene.sequences):
        return
    with cut(processors=9, keys=16, max_lanes=16):
        check(scene, window)


def test_queries_may_be_part_of_a_wider_row():
    """As they come from a fused product of q, k and v."""
    scene = Scene()
    shifted(scene)
    q, plan, cache = on_device(scene, None)
    wide = torch.full((q.shape[0], 11, q.shape[2]), torch.nan, device=DEVICE)
    wide[:, 2:8] = q
    backend = TritonBackend()
    assert torch.equal(backend.attend(wide[:, 2:8], plan, cache, LAYER), backend.attend(q, plan, cache, LAYER))


def test_float32_queries_over_a_cache_of_half_precision_are_not_rounded():
    scene = Scene(dtype=torch.float16)
    cascade(scene)
    q, plan, cache = on_device(scene, None)
    q = q.float() + 1e-4
    out = TritonBackend().attend(q, plan, cache, LAYER)
    expected = get_backend("reference").attend(q.cpu(), scene.plan(), scene.cache, LAYER)
    torch.testing.assert_close(out.cpu(), expected, rtol=0.0, atol=TOLERANCE[torch.float32])


def test_layers_of_a_step_share_the_work_and_not_the_data():
    scene = Scene()
    cascade(scene)
    q, plan, cache = on_device(scene, None)
    cache.data[:, 2] = cache.data[:, LAYER] * 0.5
    backend = TritonBackend()
    first = backend.attend(q, plan, cache, LAYER)
    with patch("kernels.triton_attention.make_work", side_effect=AssertionError("made twice")):
        other = backend.attend(q, plan, cache, 2)
        again = backend.attend(q, plan, cache, LAYER)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_misfits_are_named():
    scene = Scene()
    cascade(scene)
    q, plan, cache = on_device(scene, None)
    with pytest.raises(ShapeError, match=r"must be \[8, heads, 16\]"):
        TritonBackend().attend(q[:, :, :8], plan, cache, LAYER)
    with pytest.raises(ShapeError, match=r"no kernels for torch\.float64"):
        TritonBackend().attend(q, plan, KVCache(cache.data.to(torch.float64)), LAYER)


def test_availability():
    with pytest.raises(BackendUnavailableError, match="CUDA devices, not on meta"):
        get_backend("triton", "meta")
    with patch("kernels.triton_attention.INTERPRETED", False):
        assert "TRITON_INTERPRET=1" in str(TritonBackend.unavailable_reason("cpu"))
    with patch("kernels.triton_attention.INTERPRETED", True):
        assert TritonBackend.unavailable_reason("cpu") is None
    with patch("torch.cuda.is_available", return_value=False):
        assert "no CUDA device" in str(TritonBackend.unavailable_reason("cuda"))
    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.get_device_capability", return_value=(7, 5)),
    ):
        assert "below 8.0" in str(TritonBackend.unavailable_reason("cuda:0"))
    with (
        patch("torch.cuda.is_available", return_value=True),
        patch("torch.cuda.get_device_capability", return_value=(8, 6)),
    ):
        assert TritonBackend.unavailable_reason("cuda") is None
        assert get_backend("auto", "cuda").name == "triton"


@pytest.mark.parametrize("lanes", [16, 32, 64, 128])
@pytest.mark.parametrize("dim", [16, 64, 128, 256])
def test_every_tile_has_configurations_to_choose_from(dim, lanes):
    """More warps than needed are left in, fewer are left out."""
    every = [triton.Config({"KEYS": keys}, num_warps=warps) for keys in (32, 128) for warps in (1, 2, 4, 8)]
    chosen = sensible_configs(every, {}, LANES=lanes, DIM_PAD=dim)
    assert chosen
    assert chosen[-1] is every[-1] or lanes * dim > 128 * 128
    assert (every[4] in chosen) == (lanes * (dim + 128) <= 4608)
