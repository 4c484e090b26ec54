"""Chunk reuse written out: dense attention over a decoder's weights, every key at its prompt position.

Nothing of blocks, runs, plans or shifts is used here; cached keys are rotated anew to where the prompt has them.
"""

from dataclasses import dataclass

import torch

from engine.models.decoder import Decoder


@dataclass
class KeyValues:
    """Keys before rotation and values of every layer: [layers][tokens, kv_heads, dim]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]


def rotate(decoder: Decoder, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Rotate x [T, heads, dim] as complex numbers of halves."""
    rope = decoder.rope
    angles = positions.double()[:, None, None] * rope.inv_freq.double()
    pairs = torch.complex(*(half.double() for half in x.chunk(2, dim=-1)))
    turned = pairs * torch.polar(torch.full_like(angles, rope.scale), angles)
    return torch.cat((turned.real, turned.imag), dim=-1).to(x.dtype)


def run(
    decoder: Decoder, tokens: list[int], computed: list[int], cached: dict[int, tuple[KeyValues, int]]
) -> tuple[torch.Tensor, KeyValues]:
    """Compute some positions of a prompt while the others' keys and values are given.

    Args:
        decoder: whose weights are used.
        tokens: of the whole prompt.
        computed: positions to compute, ascending.
        cached: of every other position the source and its row there.

    Returns:
        Logits [vocab] of the last computed position, and keys and values of the computed ones.
    """
    config = decoder.config
    places = torch.tensor(computed)
    order = sorted([*computed, *cached])
    everywhere = torch.tensor(order)
    hidden = decoder.embedding[torch.tensor([tokens[p] for p in computed])]
    made = KeyValues([], [])
    for index, layer in enumerate(decoder.layers):
        q, k, v = layer.project(hidden, config)
        made.keys.append(k)
        made.values.append(v)
        row = {p: i for i, p in enumerate(computed)}
        keys = [k[row[p]] if p in row else cached[p][0].keys[index][cached[p][1]] for p in order]
        values = [v[row[p]] if p in row else cached[p][0].values[index][cached[p][1]] for p in order]
        groups = config.num_heads // config.num_kv_heads
        full_keys = rotate(decoder, torch.stack(keys), everywhere).repeat_interleave(groups, dim=1)
        full_values = torch.stack(values).repeat_interleave(groups, dim=1)
        scores = torch.einsum("qhd,khd->hqk", rotate(decoder, q, places), full_keys) * config.softmax_scale
        distance = places[:, None] - everywhere
        window = config.layer_windows[index] or len(tokens) + 1
        scores = scores.masked_fill(~((distance >= 0) & (distance < window)), -torch.inf)
        hidden = layer.finish(hidden, torch.einsum("hqk,khd->qhd", scores.softmax(-1), full_values))
    return decoder.head(decoder.norm(hidden))[-1].float(), made


@torch.inference_mode()
def chunk_answer(
    decoder: Decoder, template: list[int], passages: list[list[int]], tail: list[int], *, repair: int, steps: int
) -> tuple[torch.Tensor, list[int]]:
    """Return the first logits [vocab] and the greedy tokens of a prompt under chunk reuse."""
    tokens = [token for part in (template, *passages, tail) for token in part]
    cached: dict[int, tuple[KeyValues, int]] = {}
    start = len(template)
    for number, passage in enumerate(passages):
        if number and len(passage) > repair:
            _, canonical = run(decoder, [*template, *passage], list(range(len(template) + len(passage))), {})
            cached |= {start + i: (canonical, len(template) + i) for i in range(repair, len(passage))}
        start += len(passage)
    answer: list[int] = []
    first = None
    for _ in range(steps):
        computed = [p for p in range(len(tokens)) if p not in cached]
        logits, _ = run(decoder, tokens, computed, cached)
        first = logits if first is None else first
        answer.append(int(logits.argmax()))
        tokens.append(answer[-1])
    assert first is not None
    return first, answer
