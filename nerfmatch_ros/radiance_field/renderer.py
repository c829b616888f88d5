"""Rendering colour, depth, surface points and inner features of a field along rays."""

from dataclasses import dataclass

from nerfmatch_ros.geometry.camera import Camera
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
        return ((self.weights * midpoints(self.edges)).sum(-1)
                / self.opacity.clamp(min=1e-6))

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
    return RenderedRays(
        weights, proposal.edges, weights.sum(-1),
        composite(weights, samples.colour) if colour else None,
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


@torch.no_grad()
def render_view(
    field: RadianceField, frame: SceneFrame, camera: Camera, map_from_camera: Tensor, *,
    stride: int = 8, colour: bool = False, feature_layer: int | None = None, chunk: int = 4096,
) -> RenderedView:
    """Render the centre of every stride x stride cell of an image; deterministic.

    Points lie at the median distance, features are those of that point: both are functions of
    one place on the surface (a mean over two surfaces would be of neither).
    """
    device = next(field.parameters()).device
    directions = camera.rays(camera.pixel_grid(stride)).float().to(device)
    pose = torch.as_tensor(map_from_camera, dtype=torch.float32, device=device)
    rays = frame.rays(pose, directions, 1 / camera.fx)
    points, features, colours, opacity, depth = [], [], [], [], []
    for start in range(0, len(rays), chunk):
        part = rays[start:start + chunk]
        rendered = render_rays(field, part, colour=colour)
        distance = rendered.median_distance
        surface = part.origins + distance[:, None] * part.directions
        points.append(frame.to_map(surface))
        opacity.append(rendered.opacity)
        depth.append(distance / frame.scene_from_map.scale
                     * directions[start:start + chunk, 2])
        if colour:
            colours.append(rendered.colour.clamp(0, 1))
        if feature_layer is not None:
            features.append(field.point_features(surface, feature_layer))
    return RenderedView(
        torch.cat(points), torch.cat(features) if features else None,
        torch.cat(colours) if colours else None, torch.cat(opacity), torch.cat(depth),
        camera.height // stride, camera.width // stride)
