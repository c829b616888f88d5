"""Coarse to fine: a window over the bands of an encoding (BARF, Eq. 14; L2G-NeRF).

A pose is pulled towards what the field shows around it, and fine bands make that pull point
anywhere. So bands open one after the other: octaves of a positional encoding, levels of a hash
grid (as in BAA-NGP, arXiv 2306.04166).
"""

import torch
from torch import Tensor


def band_weights(bands: int, opened: float) -> Tensor:
    """Give the weight in [0, 1] of each band when `opened` of them are: (bands,) float32.

    Whole bands count 1, the next one rises smoothly with the fraction of `opened`, those after it
    count 0: (1 - cos(pi clamp(opened - k, 0, 1))) / 2.
    """
    share = (opened - torch.arange(bands, dtype=torch.float32)).clamp(0, 1)
    return 0.5 * (1 - torch.cos(torch.pi * share))


def opened_bands(bands: int, detail: float, first: float) -> float:
    """Tell how many bands are open: `first` of them at detail 0, all at detail 1."""
    first = min(first, bands)
    return first + (bands - first) * min(max(detail, 0.0), 1.0)
