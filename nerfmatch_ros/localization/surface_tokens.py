"""Tokens of the points of a surface cache, encoded when they are first seen."""

from nerfmatch_ros.matching.matcher import PointTokens
from nerfmatch_ros.radiance_field.surface_cache import cached_points
from nerfmatch_ros.scene_map import points_attend, SceneMap
import torch
from torch import Tensor

_AT_ONCE = 16384  # points


class SurfaceTokens:
    """Keeps tokens in half precision where they depend on their point alone.

    On a CPU points are encoded as they come into view. A GPU would have to be waited for to learn
    which ones are new, and encodes all of them at the start. A matcher whose points attend to one
    another gets them anew for each view.
    """

    def __init__(self, scene_map: SceneMap):
        self._map, self._cache = scene_map, scene_map.surface_cache
        self._kept: PointTokens | None = None
        self._known: Tensor | None = None
        self._attends = points_attend(scene_map.matcher_config)
        if self._cache.points.is_cuda and not self._attends:
            for first in range(0, len(self._cache), _AT_ONCE):
                self._encode(torch.arange(first, min(first + _AT_ONCE, len(self._cache)),
                                          device=self._cache.points.device))

    @torch.no_grad()
    def get(self, index: Tensor) -> tuple[Tensor, PointTokens]:
        """Give the points (m, 3), map frame, metres, and tokens of what is numbered (m,)."""
        if self._attends:
            points, features = self._features(index)
            return points, self._map.encode_points(points, features)
        if not self._cache.points.is_cuda:
            new = index if self._known is None else index[~self._known[index]]
            if len(new):
                self._encode(new)
        kept = self._kept
        return self._cache.points[index], PointTokens(
            kept.coarse[index].float(),
            None if kept.fine is None else kept.fine[index].float())

    def _features(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        scene_map = self._map
        return cached_points(self._cache, index, scene_map.field, scene_map.frame,
                             scene_map.matcher_config.feature_layer)

    def _encode(self, index: Tensor) -> None:
        tokens = self._map.encode_points(*self._features(index))
        if self._kept is None:
            self._kept = PointTokens(*(
                None if side is None else torch.zeros(
                    len(self._cache), side.shape[1], dtype=torch.float16, device=side.device)
                for side in (tokens.coarse, tokens.fine)))
            self._known = torch.zeros(len(self._cache), dtype=torch.bool, device=index.device)
        self._known[index] = True
        self._kept.coarse[index] = tokens.coarse.half()
        if tokens.fine is not None:
            self._kept.fine[index] = tokens.fine.half()
