"""The arithmetic of the network: float32, or bfloat16 where the hardware computes it natively."""

import contextlib
from typing import Literal

import torch

Precision = Literal["float32", "bfloat16"]


def choose_precision(requested: str, device: torch.device) -> Precision:
    """`auto` is bfloat16 where the hardware computes it natively, else float32."""
    if requested in ("float32", "bfloat16"):
        return requested  # type: ignore[return-value]
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if torch.cpu._is_avx512_bf16_supported() else "float32"


def autocast(device: torch.device, precision: Precision, cache: bool = True) -> contextlib.AbstractContextManager:
    """Convolutions and large matrix products in `precision`; the network keeps its heads in float32.

    With `cache` each parameter is rounded once in the whole region, without it at each use.
    """
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=cache)
