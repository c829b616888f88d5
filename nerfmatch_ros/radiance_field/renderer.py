"""Rendering colour, depth, surface points and inner features of a field along rays."""

from dataclasses import dataclass

from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.radiance_field.encoding import frustum_distances
from nerfmatch_ros.radiance_field.field import RadianceField, Rays
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.radiance_field.volume_rendering import (
    composite,
    interval_weights,
    median_distance,
    midpoints,
)
import torch
from torch import Tensor

OPAQUE = 0.7  # a ray that meets less than this opacity has no surface point


@dataclass(frozen=True)
class RenderedRays:
    """A field composited along R rays, in the scene frame."""

    weights: Tensor  # (R, S)
    edges: Tensor  # (R, S + 1)
    opacity: Tensor  # (R,) sum of the weights
    colour: Tensor | None  # (R, 3)
    feature: Tensor | None  # (R, C) Eq. 2 of the paper
    density: Tensor  # (R, S)
    proposal_colour: Tensor | None  # (R, 3) of a field whose proposing pass renders

    @property
    def mean_distance(self) -> Tensor:
        """Distance (R,) of the composited point (Eq. 1), normalised by the opacity."""
        return self.summed_distance / self.opacity.clamp(min=1e-6)

    @property
    def summed_distance(self) -> Tensor:
        """Distance (R,) of the composited point as published, not divided by the opacity."""
        return (self.weights * midpoints(self.edges)).sum(-1)

    @property
    def median_distance(self) -> Tensor:
        """Distance (R,) that half of the weight lies before."""
        return median_distance(self.weights, self.edges)


def render_rays(
    field: RadianceField, rays: Rays, *, colour: bool = True, feature_layer: int | None = None,
    generator: torch.Generator | None = None,
) -> RenderedRays:
    """Render R rays; differentiable in the rays and the field, deterministic without generator."""
    proposal = field.propose(rays, generator)
    samples = field.evaluate(rays, proposal.edges, colour=colour, feature_layer=feature_layer,
                             generator=generator)
    weights = interval_weights(samples.density, proposal.edges)
    opacity, shown = weights.sum(-1), None
    if colour:
        shown = composite(weights, samples.colour)
        if field.white_background:
            shown = shown + (1 - opacity[:, None])
        elif field.last_background:
            shown = shown + (1 - opacity[:, None]) * samples.colour[:, -1]
    return RenderedRays(
        weights, proposal.edges, opacity, shown,
        composite(weights, samples.feature) if feature_layer is not None else None,
        samples.density, proposal.colour)


@dataclass(frozen=True)
class RenderedView:
    """What a camera sees of the field, on a grid of rows x columns cells, N = rows * columns."""

    points: Tensor  # (N, 3) map frame, metres
    features: Tensor | None  # (N, C) f^j
    colour: Tensor | None  # (N, 3) in [0, 1]
    opacity: Tensor  # (N,)
    depth: Tensor  # (N,) metres along the optical axis
    rows: int
    columns: int
    composited: bool = False  # points and features are means along rays, not of a surface

    def solid(self) -> Tensor:
        """Tell which points (N,) may be matched: those on a surface; composited ones all may."""
        if self.composited:
            return torch.ones_like(self.opacity, dtype=torch.bool)
        return self.opacity > OPAQUE


@torch.no_grad()
def render_view(
    field: RadianceField, frame: SceneFrame, camera: Camera, map_from_camera: Tensor, *,
    stride: int = 8, colour: bool = False, feature_layer: int | None = None, chunk: int = 4096,
) -> RenderedView:
    """Render the centre of every stride x stride cell of an image; the same in every call.

    Points lie at the median distance, features are those of that point: both are functions of
    one place on the surface (a mean over two surfaces would be of neither). An `official` field's
    are composited (Eq. 1-2), and it may sample its rays at random, the same way in every call.
    """
    device = next(field.parameters()).device
    pixels = camera.pixel_grid(stride)
    directions = camera.rays(pixels).float().to(device)
    pose = torch.as_tensor(map_from_camera, dtype=torch.float32, device=device)
    angle = camera.pixel_angles(pixels.double()).float().to(device) if frame.ball \
        else 1 / camera.fx
    rays = frame.rays(pose, directions, angle)
    generator = torch.Generator(device).manual_seed(0) if field.random_rendering else None
    parts = [
        _render_part(field, rays[start:start + chunk], colour, feature_layer, generator)
        for start in range(0, len(rays), chunk)]
    surface, distance, opacity, colours, features = (
        None if values[0] is None else torch.cat(values) for values in zip(*parts))
    return RenderedView(
        frame.to_map(surface), features, colours, opacity,
        distance / frame.scene_from_map.scale * directions[:, 2],
        camera.height // stride, camera.width // stride, field.official)


def _render_part(
    field: RadianceField, rays: Rays, colour: bool, feature_layer: int | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None]:
    """Give points (R, 3) of the scene, their distances, opacity, colour and features."""
    rendered = render_rays(field, rays, colour=colour, generator=generator,
                           feature_layer=feature_layer if field.official else None)
    shown = rendered.colour.clamp(0, 1) if colour else None
    if field.official:
        return (composited_points(rendered, rays), rendered.summed_distance, rendered.opacity,
                shown, rendered.feature)
    distance = rendered.median_distance
    surface = rays.origins + distance[:, None] * rays.directions
    features = None
    if feature_layer is not None:
        features = field.point_features(surface, feature_layer)
    return surface, distance, rendered.opacity, shown, features


def composited_points(rendered: RenderedRays, rays: Rays) -> Tensor:
    """Points (R, 3), scene frame: the weighted sum of the middles of the frustums (Eq. 1).

    As in the published code the sum is not divided by the opacity: where a ray stays transparent
    the point is drawn towards the origin of the scene.
    """
    along, _, _ = frustum_distances(rendered.edges)
    distance = (rendered.weights * along).sum(-1, keepdim=True)
    return rendered.opacity[:, None] * rays.origins + distance * rays.directions
