"""Which photographs are kept from training, and what the others observe."""

import math

from nerfmatch_ros.mapping.sparse_points import SparsePoints
import numpy as np


def held_out(images: int, most: int) -> list[int]:
    """Indices of photographs to keep from training: few, none from sets under a dozen.

    They come in runs of three: with a neighbour on both sides a photograph would be an easy one.
    """
    count = min(most, max(images // 12, 2)) if images >= 12 else 0
    runs = math.ceil(count / 3)
    starts = [round((k + 0.5) * images / runs) - 1 for k in range(runs)]
    return [start + k for start in starts for k in range(3)][:count]


def observations_of(sparse: SparsePoints, kept: list[int]) -> SparsePoints:
    """Keep the observations of some images, renumbered."""
    number = np.full(max([*kept, *sparse.image_index.tolist()], default=0) + 1, -1)
    number[kept] = np.arange(len(kept))
    chosen = number[sparse.image_index] >= 0
    return SparsePoints(
        sparse.points, sparse.reprojection_error, sparse.angle,
        number[sparse.image_index[chosen]], sparse.pixel[chosen], sparse.point_index[chosen])
