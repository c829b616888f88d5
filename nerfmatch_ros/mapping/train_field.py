"""Training a radiance field on posed photographs."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from pathlib import Path

from nerfmatch_ros.mapping.checkpoint import load_checkpoint, save_checkpoint
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.training_clock import TrainingClock
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.grid_field import GridField
from nerfmatch_ros.radiance_field.renderer import render_rays, RenderedRays
from nerfmatch_ros.radiance_field.volume_rendering import depth_loss, distortion_loss
import torch
from torch import nn, Tensor

CHECKPOINT_STEPS = 1000  # between interim states


@dataclass(frozen=True)
class FieldTrainingConfig:
    """Budget, learning rates and loss weights of the training of a field."""

    steps: int = 12000  # at most; on a CPU the minutes of the build end it first
    rays: int = 2560  # per step
    depth_rays: int = 384  # further rays per step, through triangulated points
    longest_side: int = 640  # photographs are reduced to this, pixels
    size: tuple[int, int] | None = None  # (width, height) they are squeezed to instead
    table_rate: float = 1e-2  # learning rate of hash tables
    network_rate: float = 3e-3  # learning rate of everything else
    final_rate: float = 0.03  # share of the learning rate at the end
    distortion_weight: float = 1e-2
    opacity_weight: float = 1e-3
    depth_weight: float = 0.3
    delayed: float = 0.06  # share of the training after which distortion and opacity set in
    bfloat16: bool = True  # matrix products of the training in half the time
    seed: int = 0


def training_loss(
    rendered: RenderedRays, colour: Tensor, distance: Tensor, tolerance: Tensor,
    config: FieldTrainingConfig, progress: float,
) -> Tensor:
    """Photometric loss with distortion, opacity and, where a distance is known, depth terms."""
    loss = nn.functional.mse_loss(rendered.colour, colour)
    if rendered.proposal_colour is not None:
        loss = loss + nn.functional.mse_loss(rendered.proposal_colour, colour)
    ramp = min(1.0, max(0.0, progress / config.delayed - 1))
    if ramp > 0:
        loss = loss + ramp * config.distortion_weight * distortion_loss(
            rendered.weights, rendered.edges)
        loss = loss + config.opacity_weight * ((1 - rendered.opacity) ** 2).mean()
    known = distance > 0
    if known.any():
        charged = depth_loss(rendered.weights[known], rendered.edges[known], distance[known],
                             tolerance[known])
        loss = loss + config.depth_weight * charged.mean()
    return loss


def _optimizer(field: RadianceField, config: FieldTrainingConfig) -> torch.optim.Optimizer:
    tables = [p for name, p in field.named_parameters() if name.endswith('table')]
    others = [p for name, p in field.named_parameters() if not name.endswith('table')]
    groups = [{'params': others, 'lr': config.network_rate}]
    if tables:
        groups.append({'params': tables, 'lr': config.table_rate})
    for group in groups:
        group['first_rate'] = group['lr']
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def train_field(
    field: RadianceField, dataset: RayDataset, config: FieldTrainingConfig, *,
    checkpoint: Path, minutes: float | None = None,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> RadianceField:
    """Train a field in place; goes on from `checkpoint` if that exists.

    report: called now and then with the progress in [0, 1] and {'psnr': dB of recent batches}.
    """
    device = dataset.device
    optimizer = _optimizer(field, config)
    clock = TrainingClock(steps=config.steps, minutes=minutes)
    generator = torch.Generator(device=device).manual_seed(config.seed)
    if checkpoint.exists():
        load_checkpoint(checkpoint, field, optimizer, clock)
        generator.manual_seed(config.seed + clock.step)
    smoothed = None
    field.train()
    clock.pause()
    while clock.running:
        rate = min(1, clock.step / 100) * config.final_rate ** max(
            0, (clock.progress - 0.2) / 0.8)
        for group in optimizer.param_groups:
            group['lr'] = rate * group['first_rate']
        batch = dataset.draw(config.rays, config.depth_rays, generator)
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config.bfloat16):
            rendered = render_rays(field, batch.rays, generator=generator)
        loss = training_loss(rendered, batch.colour, batch.distance, batch.tolerance, config,
                             clock.progress)
        if isinstance(field, GridField):
            loss = loss + 1e-2 * (field.exposure.mean(0) ** 2).sum() + 1e-3 * (
                field.exposure ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if isinstance(field, GridField):
            if clock.step % 2 == 0:
                field.update_guide(batch.rays, rendered.edges, rendered.density, 0.05)
            if clock.step % 16 == 0:
                field.refresh_guide(32768 if clock.step < 1000 else 16384, generator)
        error = (rendered.colour.detach() - batch.colour)[:config.rays].square().mean().item()
        smoothed = error if smoothed is None else 0.98 * smoothed + 0.02 * error
        clock.tick()
        if clock.step % 20 == 0:
            report(clock.progress, {'psnr': -10 * math.log10(max(smoothed, 1e-10)),
                                    'step': clock.step})
        if clock.step % CHECKPOINT_STEPS == 0:
            save_checkpoint(checkpoint, field, optimizer, clock)
            clock.pause()
    field.eval()
    return field
