# ruff: noqa: N803, N806, PLR0913, PLR0915, PLR0917 - Triton's way to write kernels: many arguments, compile-time constants in capitals
"""Device code of the Triton backend. `triton_attention` and `triton_kv` launch it.

Where Triton's interpreter is on (TRITON_INTERPRET=1 when triton is imported), the same code runs on the CPU.
"""

from typing import Any

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "attend_items", "merge_states", "reduce_parts", "sensible_configs", "store_kv"]

INTERPRETED = bool(triton.knobs.runtime.interpret)

# of scores and accumulator; up to so many ptxas spills at most 300 bytes, from 6,144 on 500 and more
MAX_ELEMENTS_PER_WARP = 4608
LN_2 = tl.constexpr(0.6931471805599453)
LOG2_E = tl.constexpr(1.4426950408889634)


def _attend_configs() -> list[triton.Config]:
    """Return what autotuning may choose from; of a single one it times nothing, as the interpreter cannot."""
    if INTERPRETED:
        return [triton.Config({"KEYS": 64})]
    # Stages are odd: blocks are looked up a stage ahead of the keys they lead to, so that 3 stages load one tile of
    # keys ahead and 5 load two.
    choices = [(32, 2, 5), (32, 4, 3), (64, 4, 3), (64, 4, 5), (64, 8, 3), (128, 4, 3), (128, 8, 3)]
    return [triton.Config({"KEYS": keys}, num_warps=warps, num_stages=stages) for keys, warps, stages in choices]


def sensible_configs(configs: list[triton.Config], arguments: dict[str, Any], **constants: Any) -> list[triton.Config]:
    """Leave out what cannot keep a tile's scores and accumulator in registers; the least demanding stays."""
    tile = {**arguments, **constants}
    if tile.get("SCALED"):  # int8 also passes through registers on its way from memory to the product
        fewest = min(config.kwargs["KEYS"] / config.num_warps for config in configs)
        configs = [config for config in configs if config.kwargs["KEYS"] / config.num_warps == fewest]
    per_warp = [tile["LANES"] * (tile["DIM_PAD"] + config.kwargs["KEYS"]) // config.num_warps for config in configs]
    limit = max(MAX_ELEMENTS_PER_WARP, min(per_warp))
    return [config for config, elements in zip(configs, per_warp, strict=True) if elements <= limit]


@triton.jit  # type: ignore[untyped-decorator]
def _rotated(
    base: tl.tensor,
    angles: tl.tensor,
    active: tl.tensor,
    cos: tl.tensor,
    sin: tl.tensor,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
) -> tl.tensor:
    """Load heads at pointers `base` [rows] and rotate them by rows `angles` [rows] of the tables; float32."""
    dim = tl.arange(0, DIM_PAD)
    HALF: tl.constexpr = ROTARY // 2
    if INTERLEAVED:
        frequency = dim // 2
        is_first = dim % 2 == 0
        partner = dim + 1 - 2 * (dim % 2)
    else:
        frequency = dim % HALF
        is_first = dim < HALF
        partner = tl.where(is_first, dim + HALF, dim - HALF)
    turns = active[:, None] & (dim < ROTARY)[None, :]
    x = tl.load(base[:, None] + dim[None, :], mask=active[:, None] & (dim < DIM)[None, :], other=0.0).to(tl.float32)
    other = tl.load(base[:, None] + partner[None, :], mask=turns, other=0.0).to(tl.float32)
    angle = angles[:, None] * HALF + frequency[None, :]
    cosine = tl.load(cos + angle, mask=turns, other=1.0)
    sine = tl.load(sin + angle, mask=turns, other=0.0)
    return x * cosine + tl.where(is_first[None, :], -other, other) * sine


@triton.autotune(  # type: ignore[untyped-decorator]
    configs=_attend_configs(),
    key=["GROUP", "DIM", "LANES", "BLOCK_SIZE", "longest"],
    prune_configs_by={"early_config_prune": sensible_configs},
    cache_results=True,
)
@triton.jit(do_not_specialize=["longest", "window"])  # type: ignore[untyped-decorator]
def attend_items(
    q: tl.tensor,  # [T, heads, DIM], not rotated
    keys: tl.tensor,  # [blocks, kv_heads, BLOCK_SIZE, DIM] of this layer
    values: tl.tensor,
    key_scales: tl.tensor,  # [blocks, kv_heads, BLOCK_SIZE]; read only when SCALED
    value_scales: tl.tensor,
    positions: tl.tensor,  # [T] prompt positions of the rows
    items: tl.tensor,  # [I, 5]
    rows: tl.tensor,  # [P, 2]
    entries: tl.tensor,  # [E, 3]
    cos: tl.tensor,  # [relative positions, ROTARY // 2]
    sin: tl.tensor,
    out: tl.tensor,  # DIRECT: [T, heads, DIM], else [P, heads, DIM]
    lse: tl.tensor,  # [P, heads] float32; not written when DIRECT
    q_row_stride: tl.tensor,
    q_head_stride: tl.tensor,
    block_stride: tl.tensor,
    scale_stride: tl.tensor,  # of the scales of a block
    scale: tl.tensor,
    window: tl.tensor,
    longest: tl.tensor,  # noqa: ARG001 - tells autotuning apart which items are long and which are short
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    LANES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    SCALED: tl.constexpr,  # int8 with scales
    DIRECT: tl.constexpr,
    COMPUTE: tl.constexpr,  # the dtype to which operands are rounded
    OPERAND: tl.constexpr,  # and in which they are multiplied: another one only under the interpreter
    KEYS: tl.constexpr,
) -> None:
    """Attend with one tile of query rows, all heads of one key-value head, to one stretch of blocks.

    Grid (items, kv_heads). A lane is a row and one of its GROUP heads. Blocked online softmax in base 2
    (Dao 2023, arXiv:2307.08691); a row that sees no key leaves (0, -inf).
    """
    item = items + tl.program_id(0) * 5
    first_entry, num_entries = tl.load(item), tl.load(item + 1)
    first_row, num_rows, shift = tl.load(item + 2), tl.load(item + 3), tl.load(item + 4)
    if num_rows == 0:  # a captured graph has room for more items than a step has
        return
    kv_head = tl.program_id(1)
    num_heads = tl.num_programs(1) * GROUP

    lane = tl.arange(0, LANES)
    active = lane // GROUP < num_rows
    row_entry = rows + (first_row + lane // GROUP) * 2
    row = tl.load(row_entry, mask=active, other=0)
    head = kv_head * GROUP + lane % GROUP
    position = tl.load(positions + row, mask=active, other=-1).to(tl.int32)
    # rows before the run was computed see none of it; their angle does not matter, their address does
    angles = tl.maximum(position - shift, 0)
    heads = q + row.to(tl.int64) * q_row_stride + head * q_head_stride
    query = _rotated(heads, angles, active, cos, sin, DIM, DIM_PAD, ROTARY, INTERLEAVED)
    query = query.to(COMPUTE).to(OPERAND)

    dim = tl.arange(0, DIM_PAD)
    inner = (dim < DIM)[None, :]
    head_offset = kv_head * (BLOCK_SIZE * DIM)
    highest = tl.full([LANES], float("-inf"), tl.float32)
    total = tl.full([LANES], 0.0, tl.float32)
    accumulated = tl.full([LANES, DIM_PAD], 0.0, tl.float32)
    for start in range(0, num_entries * BLOCK_SIZE, KEYS):
        slot = start + tl.arange(0, KEYS)
        offset = slot % BLOCK_SIZE
        entry = entries + (first_entry + slot // BLOCK_SIZE) * 3
        inside = slot // BLOCK_SIZE < num_entries
        block = tl.load(entry, mask=inside, other=0).to(tl.int64)
        key_position = tl.load(entry + 1, mask=inside, other=0) + offset
        # slots that hold no token may hold NaN: they are never loaded
        valid = offset < tl.load(entry + 2, mask=inside, other=0)
        address = (block * block_stride + head_offset + offset * DIM)[:, None] + dim[None, :]
        key = tl.load(keys + address, mask=valid[:, None] & inner, other=0)
        if SCALED:  # a detour only for the interpreter, which makes no bfloat16 of integers
            key = key.to(tl.float32)
        key = key.to(COMPUTE).to(OPERAND)
        scores = tl.dot(query, tl.trans(key), input_precision="ieee") * (scale * LOG2_E)
        if SCALED:
            scale_address = block * scale_stride + kv_head * BLOCK_SIZE + offset
            scores = scores * tl.load(key_scales + scale_address, mask=valid, other=0.0)[None, :]

        visible = valid[None, :] & (key_position[None, :] <= position[:, None])
        if HAS_WINDOW:
            visible = visible & (position[:, None] - key_position[None, :] < window)
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(highest, tl.max(scores, 1))
        # -inf minus -inf is NaN; against 0 everything masked weighs exp2(-inf) = 0
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(scores - base[:, None])
        decay = tl.exp2(highest - base)
        value = tl.load(values + address, mask=valid[:, None] & inner, other=0)
        if SCALED:  # not the weights: they would be too small for float16
            value = value.to(tl.float32) * tl.load(value_scales + scale_address, mask=valid, other=0.0)[:, None]
        value = value.to(COMPUTE).to(OPERAND)
        total = total * decay + tl.sum(weights, 1)
        accumulated = accumulated * decay[:, None]
        accumulated = tl.dot(weights.to(COMPUTE).to(OPERAND), value, accumulated, input_precision="ieee")
        highest = higher

    part = row if DIRECT else tl.load(row_entry + 1, mask=active, other=0)
    target = part.to(tl.int64) * num_heads + head
    result = accumulated / tl.where(total == 0.0, 1.0, total)[:, None]
    tl.store(out + target[:, None] * DIM + dim[None, :], result.to(out.dtype.element_ty), mask=active[:, None] & inner)
    if not DIRECT:
        # an empty row has highest -inf
        tl.store(lse + target, highest * LN_2 + tl.log(tl.where(total == 0.0, 1.0, total)), mask=active)


@triton.jit(do_not_specialize=["num_elements"])  # type: ignore[untyped-decorator]
def reduce_parts(
    parts: tl.tensor,  # [P, heads, DIM] float32
    parts_lse: tl.tensor,  # [P, heads] float32
    bounds: tl.tensor,  # [owners + 1]
    out: tl.tensor,  # [owners, heads, DIM], or with ONLY_LSE their log-sum-exp [owners, heads]
    num_elements: tl.tensor,  # of out
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    ONLY_LSE: tl.constexpr,
    ELEMENTS: tl.constexpr,
) -> None:
    """Merge the parts of an owner, bounds[owner] to bounds[owner + 1], by log-sum-exp. Grid (elements / ELEMENTS)."""
    element = tl.program_id(0).to(tl.int64) * ELEMENTS + tl.arange(0, ELEMENTS)
    inside = element < num_elements
    # state: owner and head; a state's elements weigh its parts alike, and each works the weights out again
    state = element if ONLY_LSE else element // DIM
    head = state % HEADS
    first = tl.load(bounds + state // HEADS, mask=inside, other=0)
    stop = tl.load(bounds + state // HEADS + 1, mask=inside, other=0)
    highest = tl.full([ELEMENTS], float("-inf"), tl.float32)
    total = tl.full([ELEMENTS], 0.0, tl.float32)
    accumulated = tl.full([ELEMENTS], 0.0, tl.float32)
    for step in range(tl.max(stop - first, 0)):
        has_part = first + step < stop
        source = (first + step).to(tl.int64) * HEADS + head
        part_lse = tl.load(parts_lse + source, mask=has_part, other=float("-inf"))
        higher = tl.maximum(highest, part_lse)
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weight, decay = tl.exp(part_lse - base), tl.exp(highest - base)
        total = total * decay + weight
        if not ONLY_LSE:
            part = tl.load(parts + source * DIM + element % DIM, mask=has_part, other=0.0)
            accumulated = accumulated * decay + part * weight
        highest = higher
    seen = tl.where(total == 0.0, 1.0, total)
    result = highest + tl.log(seen) if ONLY_LSE else accumulated / seen
    tl.store(out + element, result.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["num_states"])  # type: ignore[untyped-decorator]
def merge_states(
    out_a: tl.tensor,  # [num_states, DIM]
    lse_a: tl.tensor,  # [num_states] float32
    out_b: tl.tensor,
    lse_b: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    num_states: tl.tensor,
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    STATES: tl.constexpr,
) -> None:
    """Merge pairs of partial results, an empty one being (0, -inf). Grid (num_states / STATES)."""
    state = tl.program_id(0).to(tl.int64) * STATES + tl.arange(0, STATES)
    dim = tl.arange(0, DIM_PAD)
    inside = state < num_states
    element = state[:, None] * DIM + dim[None, :]
    mask = inside[:, None] & (dim < DIM)[None, :]
    left = tl.load(lse_a + state, mask=inside, other=float("-inf"))
    right = tl.load(lse_b + state, mask=inside, other=float("-inf"))
    highest = tl.maximum(left, right)
    base = tl.where(highest == float("-inf"), 0.0, highest)
    weight_a, weight_b = tl.exp(left - base), tl.exp(right - base)
    total = weight_a + weight_b
    seen = tl.where(total == 0.0, 1.0, total)
    values_a = tl.load(out_a + element, mask=mask, other=0.0).to(tl.float32)
    values_b = tl.load(out_b + element, mask=mask, other=0.0).to(tl.float32)
    merged = values_a * (weight_a / seen)[:, None] + values_b * (weight_b / seen)[:, None]
    tl.store(out + element, merged.to(out.dtype.element_ty), mask=mask)
    tl.store(lse + state, highest + tl.log(seen), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _store_heads(
    heads: tl.tensor,  # [TOKENS, DIM_PAD], 0 beyond DIM
    target: tl.tensor,  # pointers [TOKENS]
    scale_target: tl.tensor,  # the same for scales
    active: tl.tensor,  # [TOKENS]
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    SCALED: tl.constexpr,
) -> None:
    """Store heads in the dtype of the cache; with a scale, which is NaN where one of a head is not finite."""
    dim = tl.arange(0, DIM_PAD)
    if SCALED:
        heads = heads.to(tl.float32)
        finite = tl.min((tl.abs(heads) < float("inf")).to(tl.int32), 1) > 0
        heads = tl.where(finite[:, None], heads, 0.0)
        scales = tl.div_rn(tl.max(tl.abs(heads), 1), 127.0)
        tl.store(scale_target, tl.where(finite, scales, float("nan")), mask=active)
        heads = tl.div_rn(heads, tl.where(scales > 0, scales, 1.0)[:, None])
        # 1.5 * 2^23: adding it rounds to a whole number
        heads = tl.minimum(tl.maximum(heads, -127.0), 127.0) + 12582912.0 - 12582912.0
    heads = heads.to(target.dtype.element_ty)
    tl.store(target[:, None] + dim[None, :], heads, mask=active[:, None] & (dim < DIM)[None, :])


@triton.jit(do_not_specialize=["num_tokens"])  # type: ignore[untyped-decorator]
def store_kv(
    k: tl.tensor,  # [T, kv_heads, DIM]
    v: tl.tensor,
    keys: tl.tensor,  # [blocks, kv_heads, BLOCK_SIZE, DIM] of this layer
    values: tl.tensor,
    key_scales: tl.tensor,  # [blocks, kv_heads, BLOCK_SIZE]; written only when SCALED
    value_scales: tl.tensor,
    slots: tl.tensor,  # [T], block * BLOCK_SIZE + offset; rows of a negative slot are left out
    positions: tl.tensor,  # [T]; read only when ROTARY
    cos: tl.tensor,  # [positions, ROTARY // 2]
    sin: tl.tensor,
    num_tokens: tl.tensor,
    k_row_stride: tl.tensor,
    k_head_stride: tl.tensor,
    v_row_stride: tl.tensor,
    v_head_stride: tl.tensor,
    block_stride: tl.tensor,
    scale_stride: tl.tensor,  # of the scales of a block
    DIM: tl.constexpr,
    DIM_PAD: tl.constexpr,
    ROTARY: tl.constexpr,
    INTERLEAVED: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    SCALED: tl.constexpr,  # int8 with scales
) -> None:
    """Store keys, rotated on the way when ROTARY is not 0, and values. Grid (T / TOKENS, kv_heads)."""
    token = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    kv_head = tl.program_id(1)
    dim = tl.arange(0, DIM_PAD)
    slot = tl.load(slots + token, mask=token < num_tokens, other=-1).to(tl.int64)
    active = slot >= 0
    mask = active[:, None] & (dim < DIM)[None, :]
    source = k + token.to(tl.int64) * k_row_stride + kv_head * k_head_stride
    if ROTARY > 0:
        position = tl.load(positions + token, mask=active, other=0).to(tl.int32)
        key = _rotated(source, position, active, cos, sin, DIM, DIM_PAD, ROTARY, INTERLEAVED)
    else:
        key = tl.load(source[:, None] + dim[None, :], mask=mask, other=0.0)
    source = v + token.to(tl.int64) * v_row_stride + kv_head * v_head_stride
    value = tl.load(source[:, None] + dim[None, :], mask=mask, other=0.0)
    slot = tl.maximum(slot, 0)
    block, place = slot // BLOCK_SIZE, kv_head * BLOCK_SIZE + slot % BLOCK_SIZE
    target, scale_target = block * block_stride + place * DIM, block * scale_stride + place
    _store_heads(key, keys + target, key_scales + scale_target, active, DIM, DIM_PAD, SCALED)
    _store_heads(value, values + target, value_scales + scale_target, active, DIM, DIM_PAD, SCALED)
