"""The arithmetic of the network: float32 or bfloat16. torch is imported where it is used: common/config.py does not."""

import contextlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "bfloat16"]


def fastest_precision(device: str) -> Precision:
    """bfloat16 where the hardware of `device`, "cpu" or "cuda", has it. On a GPU this creates a CUDA context."""
    import torch

    if device == "cuda":
        has_it = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        has_it = torch.cpu._is_avx512_bf16_supported()
    return "bfloat16" if has_it else "float32"


def autocast(device: "torch.device", precision: Precision, cache: bool = True) -> contextlib.AbstractContextManager:
    """Runs convolutions and large matrix products in `precision`; the network keeps its heads in float32.

    With `cache`, each parameter is rounded once per region; without it, at each use.
    """
    if precision == "float32":
        return contextlib.nullcontext()
    import torch

    return torch.autocast(device.type, torch.bfloat16, cache_enabled=cache)
