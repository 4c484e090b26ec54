"""Rope types: from the settings of a config.json to frequencies.

Only ropes whose angle is linear in the position are here, because shifting the query instead of the cache needs that.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from engine.errors import ModelFileError, UnsupportedModelError
from kernels.rope import Rope

__all__ = ["ROPE_TYPES", "RopeSettings", "build_rope"]

RopeSettings = dict[str, Any]
"""What config.json says about the rope in transformers' v5 form, with rope_type and rope_theta always there."""


def build_rope(settings: RopeSettings, head_dim: int) -> Rope:
    """Build the rope that the settings describe.

    Raises:
        UnsupportedModelError: the rope type is not one of `ROPE_TYPES`.
        ModelFileError: a setting that the type needs is missing or no number.
    """
    rope_type = settings["rope_type"]
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"rope type {rope_type!r} is not supported; supported are {', '.join(sorted(ROPE_TYPES))}"
        )
    try:
        inv_freq, scale = ROPE_TYPES[rope_type](settings, head_dim)
    except KeyError as error:
        raise ModelFileError(f"rope type {rope_type!r} needs {error} in config.json; add it there") from error
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelFileError(f"the rope settings {settings} of config.json do not work: {error}") from error
    if not (bool(inv_freq.isfinite().all()) and math.isfinite(scale)):
        raise ModelFileError(f"the rope settings {settings} of config.json give infinite frequencies; correct them")
    return Rope(inv_freq=inv_freq, rotary_dim=head_dim, scale=scale)


def _default(settings: RopeSettings, dim: int) -> tuple[Tensor, float]:
    exponents = torch.arange(0, dim, 2, dtype=torch.int64).to(torch.float32) / dim
    return 1.0 / (settings["rope_theta"] ** exponents), 1.0


def _linear(settings: RopeSettings, dim: int) -> tuple[Tensor, float]:
    inv_freq, scale = _default(settings, dim)
    return inv_freq / settings["factor"], scale


def _llama3(settings: RopeSettings, dim: int) -> tuple[Tensor, float]:
    """Slow frequencies are divided by the factor, fast ones kept, those between interpolated (Llama 3.1)."""
    inv_freq, scale = _default(settings, dim)
    factor, context = settings["factor"], settings["original_max_position_embeddings"]
    low, high = settings["low_freq_factor"], settings["high_freq_factor"]
    wavelength = 2 * math.pi / inv_freq
    scaled = torch.where(wavelength > context / low, inv_freq / factor, inv_freq)
    smooth = (context / wavelength - low) / (high - low)
    between = ~(wavelength < context / high) & ~(wavelength > context / low)
    return torch.where(between, (1 - smooth) * scaled / factor + smooth * scaled, scaled), scale


def _yarn(settings: RopeSettings, dim: int) -> tuple[Tensor, float]:
    """NTK-by-parts interpolation with an attention factor (Peng et al. 2023, arXiv:2309.00071), static."""
    base, context = settings["rope_theta"], settings["original_max_position_embeddings"]
    factor = settings.get("factor") or settings["max_position_embeddings"] / context
    low, high = _yarn_range(settings, dim, base, context)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low)).clamp(0, 1)
    frequencies = base ** (torch.arange(0, dim, 2).to(torch.float32) / dim)
    kept = 1 - ramp
    inv_freq = 1.0 / (factor * frequencies) * (1 - kept) + 1.0 / frequencies * kept
    return inv_freq, _yarn_scale(settings, factor)


def _yarn_range(settings: RopeSettings, dim: int, base: float, context: int) -> tuple[float, float]:
    """Return the dimensions between which YaRN interpolates."""

    def dimension(rotations: float) -> float:
        return dim * math.log(context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    low, high = dimension(settings.get("beta_fast") or 32), dimension(settings.get("beta_slow") or 1)
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    return low, high if high != low else high + 0.001


def _yarn_scale(settings: RopeSettings, factor: float) -> float:
    """Return what multiplies cos and sin."""
    given = settings.get("attention_factor")
    if given is not None:
        return float(given)
    mscale, mscale_all_dim = settings.get("mscale"), settings.get("mscale_all_dim")

    def scale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    return scale(mscale) / scale(mscale_all_dim) if mscale and mscale_all_dim else scale(1.0)


ROPE_TYPES: dict[str, Callable[[RopeSettings, int], tuple[Tensor, float]]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
