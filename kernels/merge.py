"""Merging of partial softmax results by log-sum-exp (Milakov and Gimelshein 2018; FlashInfer merge_state)."""

import torch
from torch import Tensor

__all__ = ["merge"]


def merge(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """Merge attention over two disjoint sets of keys into attention over both.

    An empty or fully masked set is (0, -inf); merging two of them gives (0, -inf), never NaN.

    Args:
        out_a: [..., heads, dim], softmax-weighted values of the first set.
        lse_a: [..., heads] float32, log of the sum of exponentiated scores of the first set.
        out_b: as `out_a`, of the second set.
        lse_b: as `lse_a`, of the second set.

    Returns:
        out [..., heads, dim] in out_a's dtype, lse [..., heads] float32.
    """
    highest = torch.maximum(lse_a, lse_b)
    # -inf minus -inf is NaN; against 0 both weights become exp(-inf) = 0
    highest = highest.masked_fill(highest == -torch.inf, 0.0)
    weight_a, weight_b = (lse_a - highest).exp(), (lse_b - highest).exp()
    total = weight_a + weight_b
    lse = highest + total.log()
    total = total.masked_fill(total == 0.0, 1.0)
    out = out_a * (weight_a / total)[..., None] + out_b * (weight_b / total)[..., None]
    return out.to(out_a.dtype), lse
