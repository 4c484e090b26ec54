"""Rotary position embedding whose angle is linear in the position (Su et al. 2021, arXiv:2104.09864)."""

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rope"]


@dataclass(frozen=True, eq=False, slots=True)
class Rope:
    """Frequencies and layout of a rotary embedding.

    Attributes:
        inv_freq: [rotary_dim // 2] float32, radians per position.
        rotary_dim: leading dimensions of a head that are rotated; the rest pass through.
        interleaved: pairs are (0, 1), (2, 3), ... instead of (i, i + rotary_dim // 2).
        scale: multiplies cos and sin (YaRN's attention factor).
    """

    inv_freq: Tensor
    rotary_dim: int
    interleaved: bool = False
    scale: float = 1.0

    def rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        """Rotate x [T, heads, dim] by its positions [T]; angles in float32, result in x.dtype."""
        cos, sin = self.cos_sin(positions)
        return self.apply(x, cos, sin)

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin [T, 1, rotary_dim // 2] float32 of positions [T], for calls of `apply`."""
        angles = positions.to(torch.float32)[:, None] * self.inv_freq
        return (angles.cos() * self.scale)[:, None], (angles.sin() * self.scale)[:, None]

    def apply(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate x [T, heads, dim] by cos and sin from `cos_sin`; result in x.dtype."""
        if self.interleaved:
            first, second = x[..., 0 : self.rotary_dim : 2], x[..., 1 : self.rotary_dim : 2]
        else:
            first, second = x[..., : self.rotary_dim // 2], x[..., self.rotary_dim // 2 : self.rotary_dim]
        # float32 cos and sin promote bf16 operands, so the products are exact enough before the one rounding
        turned = (first * cos - second * sin, second * cos + first * sin)
        rotated = torch.stack(turned, dim=-1).flatten(-2) if self.interleaved else torch.cat(turned, dim=-1)
        rotated = rotated.to(x.dtype)
        if self.rotary_dim == x.shape[-1]:
            return rotated
        return torch.cat((rotated, x[..., self.rotary_dim :]), dim=-1)
