"""Training a radiance field on posed photographs, on one process or on several together."""

from collections.abc import Callable
from contextlib import nullcontext
import math
from pathlib import Path
import time
from typing import TYPE_CHECKING

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.checkpoint import load_checkpoint, save_checkpoint
from nerfmatch_ros.mapping.engine import from_first, gathered, total
from nerfmatch_ros.mapping.field_loss import FieldLoss, FieldTrainingConfig, RayPiece
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.training_clock import TrainingClock
from nerfmatch_ros.radiance_field.field import RadianceField
from nerfmatch_ros.radiance_field.grid_field import GridField
import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT_STEPS = 1000  # between interim states, at most
CHECKPOINT_SECONDS = 300.0  # the same, where steps are slow
SAMPLES_ON_CPU = 1 << 17  # whose gradients are computed at once; a Mip-NeRF keeps 3 KB of each
PAPER_FINAL_RATE = 1e-8  # learning rate at the end of a training with the paper's loss


def train_field(
    field: RadianceField, dataset: RayDataset, config: FieldTrainingConfig, *,
    engine: 'Fabric', checkpoint: Path, minutes: float | None = None,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> RadianceField:
    """Train a field in place; goes on from `checkpoint` if that exists.

    dataset: on the engine's device. All processes draw the same rays of a step, by its number, and
    each renders its share; so their number does not change what is learned, and a training that
    was interrupted goes on as if it had not been.
    report: called now and then with the progress in [0, 1] and {'psnr': dB of recent batches}.
    """
    if config.rays < engine.world_size:
        raise ConfigError(f'{config.rays} rays a step cannot be shared by {engine.world_size} '
                          'processes; give at least one ray to each')
    optimizer = _optimizer(field, config)
    clock = TrainingClock(steps=config.steps, minutes=minutes, engine=engine)
    field.to(engine.device)
    load_checkpoint(checkpoint, field, optimizer, clock, engine=engine)
    field.train()
    loss, stepping = engine.setup(FieldLoss(field, config), optimizer)
    generator = torch.Generator(device=engine.device)
    smoothed, saved = None, time.monotonic()
    clock.pause()
    while clock.running:
        rate = _rate(config, clock)
        for group in optimizer.param_groups:
            group['lr'] = rate(group['first_rate'])
        generator.manual_seed(_seed(config, clock.step))
        pieces, random = _share(dataset, config, engine, clock, generator, field.ray_samples)
        optimizer.zero_grad(set_to_none=True)
        error, cells = torch.zeros((), device=engine.device), []
        for k, piece in enumerate(pieces):
            last = k == len(pieces) - 1
            with nullcontext() if last else engine.no_backward_sync(loss):
                value, (edges, density, colour) = loss(piece)
                engine.backward(value)
            error += (colour - piece.batch.colour)[random[k]].square().sum()
            if isinstance(field, GridField) and clock.step % 2 == 0:
                cells.append(field.guide_entries(piece.batch.rays, edges, density))
        stepping.step()
        if isinstance(field, GridField):
            if cells:
                field.update_guide(*_of_all(engine, cells), 0.05)
            if clock.step % 16 == 0:
                field.refresh_guide(32768 if clock.step < 1000 else 16384, generator)
        error = total(engine, error).item() / (3 * config.rays)
        smoothed = error if smoothed is None else 0.98 * smoothed + 0.02 * error
        clock.tick()
        if clock.step % 20 == 0:
            report(clock.progress, {'psnr': -10 * math.log10(max(smoothed, 1e-10)),
                                    'step': clock.step})
        if clock.step % CHECKPOINT_STEPS == 0 or clock.step % 10 == 0 and from_first(
                engine, time.monotonic() - saved > CHECKPOINT_SECONDS):
            save_checkpoint(checkpoint, field, optimizer, clock, engine=engine)
            saved = time.monotonic()
            clock.pause()
    field.eval()
    return field


def _optimizer(field: RadianceField, config: FieldTrainingConfig) -> torch.optim.Optimizer:
    tables = [p for name, p in field.named_parameters() if name.endswith('table')]
    others = [p for name, p in field.named_parameters() if not name.endswith('table')]
    groups = [{'params': others, 'lr': config.network_rate}]
    if tables:
        groups.append({'params': tables, 'lr': config.table_rate})
    for group in groups:
        group['first_rate'] = group['lr']
    if config.loss == 'paper':
        return torch.optim.Adam(groups, fused=True)
    return torch.optim.Adam(groups, betas=(0.9, 0.99), eps=1e-15, fused=True)


def _rate(config: FieldTrainingConfig, clock: TrainingClock) -> Callable[[float], float]:
    """Give the learning rate of this step as a function of the first one."""
    if config.loss == 'paper':
        share = 0.5 * (1 + math.cos(math.pi * clock.progress))
        return lambda first: PAPER_FINAL_RATE + (first - PAPER_FINAL_RATE) * share
    share = min(1, clock.step / 100) * config.final_rate ** max(0, (clock.progress - 0.2) / 0.8)
    return lambda first: share * first


def _seed(config: FieldTrainingConfig, step: int, piece: int = 0) -> int:
    """Number the random draws of a training: piece 0 is the choice of the rays of a step."""
    return ((config.seed * 1_000_003 + step) << 16) + piece


def _share(
    dataset: RayDataset, config: FieldTrainingConfig, engine: 'Fabric', clock: TrainingClock,
    generator: torch.Generator, ray_samples: int,
) -> tuple[list[RayPiece], list[Tensor]]:
    """Draw the rays of a step and give this process's pieces of them.

    ray_samples: of the field along a ray; a CPU takes few at once, which costs it no time.
    Also which rays (R,) bool of each piece are of random pixels, not of depth. Gradients are
    averaged over the processes, so shares are times their number.
    """
    batch = dataset.draw(config.rays, config.depth_rays, generator)
    count, known = len(batch.colour), (batch.distance > 0).sum().item()
    most = config.rays_at_once or count
    if engine.device.type == 'cpu':
        most = min(most, max(1, SAMPLES_ON_CPU // ray_samples))
    processes = engine.world_size
    pieces = processes * math.ceil(math.ceil(count / processes) / most)
    near, far = batch.rays.near.min().item(), batch.rays.far.max().item()
    own, random = [], []
    for k in range(engine.global_rank, pieces, processes):
        part = batch[k::pieces]
        index = torch.arange(k, count, pieces, device=engine.device)
        own.append(RayPiece(
            part, torch.Generator(device=engine.device).manual_seed(
                _seed(config, clock.step, 1 + k)),
            progress=clock.progress, share=processes * len(part.colour) / count,
            known_share=processes * (part.distance > 0).sum().item() / max(known, 1),
            first=not own, near=near, far=far))
        random.append(index < config.rays)
    return own, random


def _of_all(engine: 'Fabric', entries: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Join cells (n,) and densities (n,) of the density grid, of all pieces and processes."""
    joined = [torch.cat(values) for values in zip(*entries)]
    return [gathered(engine, value) for value in joined]
