"""What there is to match an image with: the whole surface, reference views, the view from a pose.

All of it is encoded once and kept on the device. A pose is looked from by showing it the points of
the surface cache; where these cover too little of the picture, the field is rendered.
"""

from dataclasses import dataclass

from nerfmatch_ros.data.working_image import WorkingView
from nerfmatch_ros.localization.reference_cache import ReferenceCache
from nerfmatch_ros.localization.surface_tokens import SurfaceTokens
from nerfmatch_ros.matching.matcher import COARSE_STRIDE, PointTokens
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.splatting import splat
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import torch
from torch import Tensor

RAYS_AT_ONCE = 4096  # of a rendering


@dataclass(frozen=True)
class Seen:
    """Points that an image may be matched with."""

    points: Tensor  # (N, 3) map frame, metres, on the device
    tokens: PointTokens  # of the points
    source: str  # where they come from, in words


class MapViews:
    """The encoded views of one map; call it from one thread at a time."""

    def __init__(self, scene_map: SceneMap, device: torch.device):
        """Begin with nothing encoded."""
        self.scene_map = scene_map
        self.rays_at_once = RAYS_AT_ONCE
        self.cache = ReferenceCache(scene_map, device)  # of reference views
        self._surface: Seen | None = None
        self._cached = None if scene_map.surface_cache is None else SurfaceTokens(scene_map)
        if self._cached is not None and device.type == 'cuda':
            self._cached.fill()

    def surface(self) -> Seen:
        """Give the thinned points of the whole map."""
        if self._surface is None:
            surface = self.scene_map.surface
            tokens = self.scene_map.encode_points(surface.points, surface.features)
            self._surface = Seen(surface.points, tokens, 'surface')
        return self._surface

    def references(self, numbers: list[int]) -> list[Seen]:
        """Give reference views, each by itself if the matcher wants that, else as one set."""
        if self.scene_map.matcher.per_view:
            views = [self.cache.get(k) for k in numbers]
        else:
            views = [self.cache.get_together(numbers)]
        return [Seen(*view, 'reference views') for view in views]

    def at(
        self, map_from_camera: np.ndarray, view: WorkingView, least_coverage: float,
    ) -> Seen:
        """Give the points that a camera at a pose (4, 4) sees, about one a cell.

        least_coverage: share of the cells that the surface cache has to cover, else the field is
        rendered.
        """
        if self._cached is None:
            return self._rendered(map_from_camera, view, 'the map has no surface cache')
        shown = splat(self.scene_map.surface_cache, view.camera, map_from_camera, COARSE_STRIDE)
        if shown.coverage < least_coverage:
            return self._rendered(
                map_from_camera, view,
                f'the surface cache covers {100 * shown.coverage:.0f} % of the view')
        return Seen(*self._cached(shown.index), 'splatted')

    def save_memory(self) -> None:
        """Compute half as many rays at once and keep half as much of the reference views."""
        self.rays_at_once = max(1, self.rays_at_once // 2)
        self.cache.halve()

    def _rendered(self, map_from_camera: np.ndarray, view: WorkingView, reason: str) -> Seen:
        scene_map = self.scene_map
        rendered = render_view(
            scene_map.field, scene_map.frame, view.camera,
            torch.from_numpy(np.ascontiguousarray(map_from_camera)), stride=COARSE_STRIDE,
            feature_layer=scene_map.matcher_config.feature_layer, chunk=self.rays_at_once)
        solid = rendered.solid()
        features = None if rendered.features is None else rendered.features[solid]
        points = rendered.points[solid]
        return Seen(points, scene_map.encode_points(points, features), f'rendered: {reason}')
