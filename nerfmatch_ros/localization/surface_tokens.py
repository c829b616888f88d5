"""The matcher's tokens of a map's surface cache: computed when a point is first seen, then kept.

A token depends on its point alone, so a camera that moves pays only for what comes into sight.
Letters: G points of the cache, C and Cf coarse and fine channels.
"""

from nerfmatch_ros.matching.matcher import PointTokens
from nerfmatch_ros.radiance_field.surface_cache import cached_points
from nerfmatch_ros.scene_map import SceneMap
import torch
from torch import Tensor

FILLED_AT_ONCE = 8192  # points
_LARGEST = torch.finfo(torch.float16).max


class SurfaceTokens:
    """Points and tokens of chosen points of a map's surface cache, which the map must have.

    Tokens are kept in half precision, G (C + Cf) numbers: 84 MB of the default cache and matcher,
    taken as they fill. Where a matcher's points attend to one another (`self_attention`), a token
    depends on all points shown, and nothing is kept.
    """

    def __init__(self, scene_map: SceneMap):
        self._map, self._cache = scene_map, scene_map.surface_cache
        self.kept = scene_map.matcher_config.self_attention == 0
        self._known = torch.zeros(len(self._cache), dtype=torch.bool,
                                  device=self._cache.points.device)
        self._all_known = False
        self._coarse: Tensor | None = None  # (G, C)
        self._fine: Tensor | None = None  # (G, Cf)

    @torch.no_grad()
    def __call__(self, index: Tensor) -> tuple[Tensor, PointTokens]:
        """Give the points (m, 3), map frame, metres, and tokens of `index` (m,)."""
        if not self.kept:
            points, features = self._inputs(index)
            return points, self._map.encode_points(points, features)
        if not self._all_known:
            self._learn(index[~self._known[index]])
        return self._cache.points[index], PointTokens(
            self._coarse[index].float(),
            None if self._fine is None else self._fine[index].float())

    @torch.no_grad()
    def fill(self) -> None:
        """Compute the tokens of all points, after which a GPU is never waited for."""
        if not self.kept:
            return
        for index in torch.arange(len(self._cache), device=self._known.device).split(
                FILLED_AT_ONCE):
            self._learn(index[~self._known[index]])
        self._all_known = self._coarse is not None

    def _inputs(self, index: Tensor) -> tuple[Tensor, Tensor | None]:
        return cached_points(self._cache, index, self._map.field, self._map.frame,
                             self._map.matcher_config.feature_layer)

    def _learn(self, index: Tensor) -> None:
        """Compute and keep the tokens of these points."""
        if not len(index) and self._coarse is not None:
            return
        tokens = self._map.encode_points(*self._inputs(index))
        if self._coarse is None:
            tables = [None if side is None else self._table(side)
                      for side in (tokens.coarse, tokens.fine)]
            self._coarse, self._fine = tables  # both or, out of memory, neither
        self._coarse[index] = tokens.coarse.clamp(-_LARGEST, _LARGEST).half()
        if tokens.fine is not None:
            self._fine[index] = tokens.fine.clamp(-_LARGEST, _LARGEST).half()
        self._known[index] = True

    def _table(self, tokens: Tensor) -> Tensor:
        # Not zeroed: pages that no token was written to take no memory.
        with torch.inference_mode(False):  # else they could be filled in that mode only
            return torch.empty(len(self._cache), tokens.shape[1], dtype=torch.float16,
                               device=tokens.device)
