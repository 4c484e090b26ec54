"""Work items of the Triton kernels: what they cover, how they are cut, and how they are laid out. Needs no Triton."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel_parity import Scene, cascade, decode_batch, holes, random_scenes, shifted, template_and_tail

from kernels.plan import AttentionPlan
from kernels.rope import Rope
from kernels.runs import Run, SequencePlan
from kernels.triton_plan import DeviceWork, HostWork, StaticWork, Tiling, make_work

CPU = torch.device("cpu")
TILINGS = [
    Tiling(heads_per_kv=3, lanes=(16, 32), target_items=1, min_blocks=1),
    Tiling(heads_per_kv=1, lanes=(16,), target_items=50, min_blocks=2),
    Tiling(heads_per_kv=20, lanes=(32,), target_items=7, min_blocks=1),
]

Pairs = Counter[tuple[int, int, int]]


def plan_of(*sequences: SequencePlan, window: int | None = None) -> AttentionPlan:
    rope = Rope(torch.ones(2), 4)
    return AttentionPlan.build(sequences, rope=rope, softmax_scale=1.0, block_size=4, sliding_window=window)


def visible_pairs(plan: AttentionPlan) -> Pairs:
    """(row, slot, relative position) of every pair that a plan shows, from its definition."""
    pairs: Pairs = Counter()
    window = plan.sliding_window or 10**9
    for sequence, rows in zip(plan.sequences, plan.rows, strict=True):
        for row, position in zip(rows, sequence.query_positions, strict=True):
            for run in sequence.runs:
                for i in range(run.num_tokens):
                    if 0 <= position - run.start - i < window:
                        slot = run.block_ids[i // plan.block_size] * plan.block_size + i % plan.block_size
                        pairs[row, slot, position - run.shift] += 1
    return pairs


def item_pairs(plan: AttentionPlan, work: HostWork) -> Pairs:
    """The same as the kernel goes about it: item by item, row by row, masked by position."""
    positions, window = plan.query_positions.tolist(), plan.sliding_window or 10**9
    pairs: Pairs = Counter()
    for items in work.items.values():
        for first, num_entries, first_row, num_rows, shift in items.tolist():
            for row, _ in work.rows[first_row : first_row + num_rows].tolist():
                for block, start, length in work.entries[first : first + num_entries].tolist():
                    for i in range(length):
                        if 0 <= positions[row] - start - i < window:
                            pairs[row, block * plan.block_size + i, positions[row] - shift] += 1
    return pairs


@settings(max_examples=150, deadline=None)
@given(random_scenes(), st.sampled_from(TILINGS), st.booleans())
def test_items_cover_every_visible_pair_once(scene_and_window, tiling, per_run):
    scene, window = scene_and_window
    plan = scene.plan(window)
    work = make_work(plan, tiling, per_run=per_run)
    pairs = visible_pairs(plan)
    assert item_pairs(plan, work) == pairs
    assert work.num_angles > max((angle for _, _, angle in pairs), default=0)
    check_layout(plan, tiling, work)
    if per_run:
        check_runs(plan, work)


def check_layout(plan: AttentionPlan, tiling: Tiling, work: HostWork) -> None:
    """Tiles hold their rows, and the parts of each row are adjacent and written once."""
    for lanes, items in work.items.items():
        assert lanes in tiling.lanes
        assert (items[:, 1] > 0).all()
        assert (items[:, 3] * tiling.heads_per_kv <= lanes).all()
        assert (np.diff(items[:, 1]) <= 0).all(), "longest first"
    assert sorted(work.rows[:, 1]) == list(range(len(work.rows)))
    for row in range(plan.num_rows):
        parts = work.rows[work.rows[:, 0] == row, 1]
        assert sorted(parts) == list(range(work.row_parts[row], work.row_parts[row + 1]))
    assert work.is_direct == (len(work.rows) == plan.num_rows == len({*work.rows[:, 0]}))


def check_runs(plan: AttentionPlan, work: HostWork) -> None:
    """Each run's parts read blocks of this run only."""
    for items in work.items.values():
        for first, num_entries, first_row, num_rows, _ in items.tolist():
            blocks = set(work.entries[first : first + num_entries, 0].tolist())
            for row, part in work.rows[first_row : first_row + num_rows].tolist():
                owner = int(np.searchsorted(work.run_parts, part, side="right")) - 1
                index = next(i for i, rows in enumerate(plan.rows) if row in rows)
                assert owner // plan.max_runs == row
                assert blocks <= set(plan.sequences[index].runs[owner % plan.max_runs].block_ids)


@pytest.mark.parametrize(
    ("target_items", "min_blocks", "lengths"),
    [(1, 1, [100]), (8, 1, [13] * 7 + [9]), (8, 25, [25] * 4), (99, 60, [60, 40])],
)
def test_a_long_sequence_is_cut_for_many_processors(target_items, min_blocks, lengths):
    plan = plan_of(SequencePlan((399,), (Run(tuple(range(100)), 400, 0),)))
    work = make_work(plan, Tiling(3, (16,), target_items, min_blocks))
    assert work.items[16][:, 1].tolist() == lengths
    assert work.row_parts.tolist() == [0, len(lengths)]


def test_enough_tiles_are_not_cut():
    plan = plan_of(SequencePlan(range(400), (Run(tuple(range(100)), 400, 0),)))
    work = make_work(plan, Tiling(1, (16,), 25, 1))
    assert len(work.items[16]) == 25
    assert work.is_direct
    assert work.items[16][:, 1].tolist() == list(range(100, 0, -4)), "a tile reads no block after its last row"


def test_a_window_leaves_out_blocks_that_no_row_sees():
    plan = plan_of(SequencePlan((399,), (Run(tuple(range(100)), 400, 0),)), window=10)
    ((first, num_entries, *_),) = make_work(plan, Tiling(1, (16,), 1, 1)).items[16].tolist()
    assert (first, num_entries) == (97, 3)


def test_a_group_takes_the_lowest_tile_that_holds_it():
    tiling = Tiling(heads_per_kv=3, lanes=(16, 32, 64), target_items=1, min_blocks=1)
    assert [tiling.lanes_for(rows) for rows in (1, 5, 6, 10, 11, 21, 22, 1000)] == [16, 16, 32, 32, 64, 64, 64, 64]


def test_the_device_gets_the_same_numbers():
    scene = Scene()
    cascade(scene)
    host = make_work(scene.plan(), TILINGS[0], per_run=True)
    work = DeviceWork.copy_of(host, CPU)
    assert work.items.keys() == host.items.keys()
    for name in ("rows", "entries", "row_parts", "run_parts"):
        assert np.array_equal(getattr(work, name).numpy(), getattr(host, name))
    for lanes, items in work.items.items():
        assert np.array_equal(items.numpy(), host.items[lanes])
    assert all(tensor.dtype == torch.int32 for tensor in (work.rows, *work.items.values()))
    assert work.longest >= max(int(items[0, 1]) for items in host.items.values())


def static_contents(static: StaticWork) -> HostWork:
    work = static.work
    items = {lanes: tensor[tensor[:, 3] > 0].numpy() for lanes, tensor in work.items.items()}
    rows = work.rows[: int(work.row_parts[-1])].numpy()
    parts = work.row_parts.numpy(), work.run_parts.numpy()
    return HostWork(items, rows, work.entries.numpy(), *parts, work.num_angles)


def test_static_work_holds_one_step_after_the_other():
    """What an earlier and larger step has left is not read by a later one; padding rows have no parts."""
    tiling = Tiling(heads_per_kv=3, lanes=(16, 32), target_items=9, min_blocks=1)
    static = StaticWork(16, tiling, max_blocks=200, num_angles=300, device=CPU)
    addresses = [tensor.data_ptr() for tensor in (static.work.rows, static.work.entries, *static.work.items.values())]
    for build in (cascade, decode_batch, shifted, lambda scene: template_and_tail(scene, 1)):
        scene = Scene()
        build(scene)
        plan = scene.plan()
        assert static.fill(plan)
        held = static_contents(static)
        assert item_pairs(plan, held) == visible_pairs(plan)
        assert (held.row_parts[plan.num_rows :] == held.row_parts[plan.num_rows]).all()
    work = static.work
    assert addresses == [tensor.data_ptr() for tensor in (work.rows, work.entries, *work.items.values())]


@pytest.mark.parametrize(
    ("num_rows", "max_blocks", "num_angles", "build"),
    [
        (4, 200, 300, cascade),
        (16, 5, 300, cascade),
        (16, 200, 20, cascade),
        (16, 200, 300, holes),
    ],
    ids=["rows", "blocks", "positions", "more rows than it has"],
)
def test_what_does_not_fit_is_refused_and_leaves_the_last_step(num_rows, max_blocks, num_angles, build):
    tiling = Tiling(heads_per_kv=3, lanes=(16,), target_items=2, min_blocks=1)
    static = StaticWork(num_rows, tiling, max_blocks=max_blocks, num_angles=num_angles, device=CPU)
    small = plan_of(SequencePlan((2,), (Run((0,), 3, 0),)))
    assert static.fill(small)
    scene = Scene()
    build(scene)
    assert not static.fill(scene.plan())
    assert item_pairs(small, static_contents(static)) == visible_pairs(small)
