"""What the training of a field charges: the guided loss of grid fields, and the paper's."""

from dataclasses import dataclass

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.ray_dataset import RayBatch
from nerfmatch_ros.radiance_field.grid_field import GridField
from nerfmatch_ros.radiance_field.renderer import render_rays, RenderedRays
from nerfmatch_ros.radiance_field.volume_rendering import (
    depth_loss,
    disparity_positions,
    distortion,
    distortion_loss,
)
import torch
from torch import nn, Tensor
from torch.nn.functional import mse_loss


@dataclass(frozen=True)
class FieldTrainingConfig:
    """Budget, learning rates and loss weights of the training of a field."""

    steps: int = 12000  # at most; on a CPU the minutes of the build end it first
    rays: int = 2560  # per step
    rays_at_once: int = 0  # rendered together in one process, to save memory; 0: all its share
    depth_rays: int = 384  # further rays per step, through triangulated points
    longest_side: int = 640  # photographs are reduced to this, pixels
    size: tuple[int, int] | None = None  # (width, height) they are squeezed to instead
    loss: str = 'guided'  # by depth and opacity, or 'paper': colours and distortion
    table_rate: float = 1e-2  # learning rate of hash tables
    network_rate: float = 3e-3  # learning rate of everything else
    final_rate: float = 0.03  # share of the learning rate at the end; 'paper' ends at 1e-8
    distortion_weight: float = 1e-2
    opacity_weight: float = 1e-3
    depth_weight: float = 0.3
    delayed: float = 0.06  # share of the training after which distortion and opacity set in
    bfloat16: bool = True  # matrix products of the training in half the time
    seed: int = 0

    def __post_init__(self):
        """Refuse what cannot be trained."""
        if self.loss not in ('guided', 'paper'):
            raise ConfigError(f"field_training.loss is '{self.loss}'; use guided or paper")
        for name, least in (('rays', 1), ('rays_at_once', 0), ('depth_rays', 0)):
            if getattr(self, name) < least:
                raise ConfigError(f'field_training.{name} is {getattr(self, name)}; '
                                  f'give at least {least}')


class RayPiece:
    """Rays of a step that are rendered together, and what share of the step they are."""

    def __init__(self, batch: RayBatch, generator: torch.Generator | None, *,
                 progress: float = 1.0, share: float = 1.0, known_share: float = 1.0,
                 first: bool = True, near: float | None = None, far: float | None = None):
        """Share: of the rays of the step; known_share: of those with a known distance.

        generator: of the intervals; first: of its process, which charges what is no ray's; near,
        far: scene units, of all rays of the step.
        """
        self.batch, self.generator, self.progress, self.first = batch, generator, progress, first
        self.share, self.known_share = share, known_share
        self.near = batch.rays.near.min().item() if near is None else near
        self.far = batch.rays.far.max().item() if far is None else far


class FieldLoss(nn.Module):
    """Renders rays and gives the loss, in one forward pass as several processes need it."""

    def __init__(self, field: nn.Module, config: FieldTrainingConfig):
        super().__init__()
        self.field, self.config = field, config

    def forward(self, piece: RayPiece) -> tuple[Tensor, list[Tensor]]:
        """Give the loss, and edges (R, S + 1), density (R, S), colour (R, 3) it was found at."""
        batch, config = piece.batch, self.config
        with torch.autocast(batch.colour.device.type, torch.bfloat16, enabled=config.bfloat16):
            rendered = render_rays(self.field, batch.rays, generator=piece.generator)
        if config.loss == 'paper':
            loss = piece.share * paper_loss(rendered, batch.colour, piece.near, piece.far,
                                            config.distortion_weight)
        else:
            loss = training_loss(
                rendered, batch.colour, batch.distance, batch.tolerance, config, piece.progress,
                share=piece.share, known_share=piece.known_share)
        if isinstance(self.field, GridField):
            loss = loss + float(piece.first) * exposure_loss(self.field.exposure)
        found = (rendered.edges, rendered.density, rendered.colour)
        return loss, [value.detach() for value in found]


def exposure_loss(exposure: Tensor) -> Tensor:
    """Hold gains and offsets (K, 6) of the photographs small, and none on the mean."""
    return 1e-2 * (exposure.mean(0) ** 2).sum() + 1e-3 * (exposure ** 2).mean()


def training_loss(
    rendered: RenderedRays, colour: Tensor, distance: Tensor, tolerance: Tensor,
    config: FieldTrainingConfig, progress: float, *, share: float = 1.0, known_share: float = 1.0,
) -> Tensor:
    """Photometric loss with distortion, opacity and, where a distance is known, depth terms.

    Each term is a mean over these rays, times their share of a step that has more of them.
    """
    loss = mse_loss(rendered.colour, colour)
    if rendered.proposal_colour is not None:
        loss = loss + mse_loss(rendered.proposal_colour, colour)
    ramp = min(1.0, max(0.0, progress / config.delayed - 1))
    if ramp > 0:
        loss = loss + ramp * config.distortion_weight * distortion_loss(
            rendered.weights, rendered.edges)
        loss = loss + config.opacity_weight * ((1 - rendered.opacity) ** 2).mean()
    loss = share * loss
    known = distance > 0
    if known.any():
        charged = depth_loss(rendered.weights[known], rendered.edges[known], distance[known],
                             tolerance[known])
        loss = loss + known_share * config.depth_weight * charged.mean()
    return loss


def paper_loss(
    rendered: RenderedRays, colour: Tensor, near: float, far: float, distortion_weight: float,
) -> Tensor:
    """Half the squared errors of both passes' colours, and distortion in disparity."""
    loss = 0.5 * mse_loss(rendered.colour, colour)
    if rendered.proposal_colour is not None:
        loss = loss + 0.5 * mse_loss(rendered.proposal_colour, colour)
    positions = disparity_positions(rendered.edges, near, far)
    return loss + distortion_weight * distortion(rendered.weights, positions)
