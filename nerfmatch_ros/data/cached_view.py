"""Reference views as the published NeRFMatch caches them: one .npy file a view."""

from dataclasses import dataclass
from pathlib import Path

from nerfmatch_ros.data.plain_pickle import read_pickled_arrays
from nerfmatch_ros.errors import DataError
import numpy as np

_NAMES = ('pt3d', 'pt_feat', 'pt_color', 'unnorm_scene')


@dataclass(frozen=True, eq=False)
class CachedView:
    """What a radiance field shows from the pose of an image: a point a cell, row by row."""

    points: np.ndarray  # (N, 3) float32, map frame, metres
    features: np.ndarray  # (N, C) float32
    colour: np.ndarray  # (N, 3) float32, 0 to 1
    map_from_scene: np.ndarray  # (4, 4) float32, similarity from the unit ball of the field


def cached_view_name(image_name: str) -> str:
    """Give the name of the file that caches the view of an image (its file_path)."""
    return image_name.replace('/', '_').replace('.color', '').replace('.png', '') + '.npy'


def read_cached_view(path: Path) -> CachedView:
    """Read a cached view; nothing in the file is run."""
    stored = read_pickled_arrays(path)
    missing = [name for name in _NAMES if name not in stored]
    if missing:
        raise DataError(f"{path} has no '{missing[0]}'; it holds {', '.join(stored) or 'nothing'}")
    points, features, colour, map_from_scene = (stored[name] for name in _NAMES)
    count = len(points) if points.ndim else 0
    for name, array, shape in (
            ('pt3d', points, (count, 3)), ('pt_feat', features, (count, *features.shape[-1:])),
            ('pt_color', colour, (count, 3)), ('unnorm_scene', map_from_scene, (4, 4))):
        if array.shape != shape or array.dtype.kind != 'f' or not np.isfinite(array).all():
            raise DataError(f"{path}: '{name}' is {array.dtype} {array.shape}; finite floating "
                            f'point numbers {shape} are needed')
    return CachedView(*(array.astype(np.float32, copy=False)
                        for array in (points, features, colour, map_from_scene)))
