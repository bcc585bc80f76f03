"""What a device multiplies well, for the number types that ``auto`` stands for."""

from __future__ import annotations

import torch


def has_tiles(device: torch.device) -> bool:
    """Whether it is a CPU with matrix tiles for bfloat16 (AMX) and a torch that uses them: products in bfloat16 are then quicker than in
    float32."""
    return (
        device.type == "cpu"
        and torch.cpu._is_amx_tile_supported()  # pyright: ignore[reportPrivateUsage]
        and torch.backends.mkldnn.is_available()
    )
