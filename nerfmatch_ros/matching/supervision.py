"""True matches between an image of known pose and scene points: projection, depth sign, occlusion.

The published code tests neither the sign of the depth nor occlusion; both are tested here, against
the depth that the field renders in the image's own view.
"""

from collections.abc import Iterable, Sequence

from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, transform_points
import torch
from torch import Tensor
import torch.nn.functional as F


def visible_points(
    points: Tensor, camera: Camera, map_from_camera: Tensor, depth: Tensor, *,
    relative_tolerance: float = 0.03,
) -> Tensor:
    """Tell which points (m, 3), map frame, lie on the surface that an image sees: (m,) bool.

    depth: (rows, columns) metres along the optical axis, a regular grid over the image. A point
    counts if the depth of its cell or of a neighbouring one agrees with its own; so a point behind
    a surface, in front of it (a flaw of the field) or behind the camera does not.
    """
    rows, columns = depth.shape
    in_camera = transform_points(inverse(map_from_camera), points)
    z = in_camera[:, 2]
    pixels = camera.project(in_camera)
    inside = camera.sees(in_camera)
    column = ((pixels[:, 0] + 0.5) * columns / camera.width).long().clamp(0, columns - 1)
    row = ((pixels[:, 1] + 0.5) * rows / camera.height).long().clamp(0, rows - 1)
    neighbours = F.unfold(F.pad(depth[None, None], (1, 1, 1, 1), mode='replicate'), 3)
    around = neighbours[0].T.reshape(rows, columns, 9)[row, column]
    agrees = ((around - z[:, None]).abs() < relative_tolerance * z[:, None]).any(dim=1)
    return inside & agrees & (z > 0)


def cells_of_pixels(pixels: Tensor, rows: int, columns: int, stride: int) -> Tensor:
    """Index (k,) of the cell that holds each pixel (k, 2)."""
    column = ((pixels[:, 0] + 0.5) / stride).long().clamp(0, columns - 1)
    row = ((pixels[:, 1] + 0.5) / stride).long().clamp(0, rows - 1)
    return row * columns + column


def overlap_matrix(
    points: Iterable[Tensor], cameras: Sequence[Camera], poses: Tensor, depths: Iterable[Tensor],
    samples: int, generator: torch.Generator,
) -> Tensor:
    """Share of view j's points that view i sees: (K, K) indexed [i, j].

    points: per view (n, 3) map frame; poses: (K, 4, 4); depths: per view (rows, columns) metres.
    Points and depths are asked for one view at a time, so that they may come from a file.
    """
    drawn = [p[torch.randint(len(p), (samples,), generator=generator)] if len(p) else
             p.new_full((samples, 3), torch.nan) for p in points]
    pooled = torch.cat(drawn)
    seen = [visible_points(pooled, camera, pose, depth).view(len(drawn), samples).float().mean(1)
            for camera, pose, depth in zip(cameras, poses, depths)]
    return torch.stack(seen)
