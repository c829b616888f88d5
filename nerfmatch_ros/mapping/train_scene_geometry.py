"""Training of scene geometry from posed photographs, and going on with positions alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import math
from pathlib import Path

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.checkpoint import load_checkpoint, save_checkpoint
from nerfmatch_ros.mapping.scene_geometry_data import GeometryBatch, GeometryData, stacked
from nerfmatch_ros.mapping.scene_geometry_loss import (
    GeometryLabels,
    scene_geometry_losses,
    SceneGeometryLossConfig,
)
from nerfmatch_ros.mapping.training_clock import TrainingClock
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
import numpy as np
import torch
from torch import nn, Tensor

CHECKPOINT_STEPS = 250  # between interim states
_WARM_UP = 100  # steps
_CLIP = 1.0  # norm of the gradient


@dataclass(frozen=True)
class SceneGeometryTraining:
    """The network, its losses, and the budget of its training."""

    network: SceneGeometryConfig = SceneGeometryConfig()
    losses: SceneGeometryLossConfig = SceneGeometryLossConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    labels: str = 'pose'  # 'position': the rotations of the photographs are not looked at
    steps: int = 40000  # at most; on a CPU the minutes of the build end it first
    batch: int = 8  # photographs per step
    rate: float = 2e-3
    weight_decay: float = 1e-2
    average: float = 0.998  # of the weights over steps (EMA): what is left of them after one
    bfloat16: bool = True  # the convolutions, in half the time where the processor can
    seed: int = 0

    def __post_init__(self):
        """Refuse values that no training can work with."""
        if self.labels not in ('pose', 'position'):
            raise ConfigError(f"scene_geometry.labels is '{self.labels}'; use pose or position")
        for name in ('steps', 'batch'):
            if getattr(self, name) < 1:
                raise ConfigError(f'scene_geometry.{name} is {getattr(self, name)}; '
                                  'give 1 or more')
        if not 0 < self.rate < math.inf:
            raise ConfigError(f'scene_geometry.rate is {self.rate}; give a positive number')
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f'scene_geometry.weight_decay is {self.weight_decay}; '
                              'give 0 or a positive number')
        if not 0 <= self.average < 1:
            raise ConfigError(f'scene_geometry.average is {self.average}; '
                              'give 0 or more and less than 1')


def train_scene_geometry(
    images: Sequence[PosedImage], config: SceneGeometryTraining, *, checkpoint: Path,
    start: SceneGeometry | None = None, anchors: Sequence[PosedImage] = (),
    minutes: float | None = None, device: str = 'cpu',
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> SceneGeometry:
    """Train on photographs with poses; goes on from `checkpoint` if that exists.

    start: a trained network to go on from, which stays as it is; None makes one. It is needed
    where only positions are known, as then it says how the axes of the map lie. anchors: posed
    photographs that are half of each step then, so that the network keeps what it knows. What a
    step draws depends on the seed and the step alone, so a training that was interrupted goes on
    as it would have. report: called with the progress in [0, 1] and the smoothed losses. Gives
    the average of the weights over the last steps, ready to predict. Raises DataError for
    photographs without poses or too few of them, ConfigError for a training that diverges.
    """
    if start is None and config.labels == 'position':
        raise ConfigError('positions alone say nothing of the axes of the map; start from a '
                          'network that was trained with poses')
    if not images:
        raise DataError('no photographs are given to learn scene geometry from')
    if config.losses.points > 0 and not any(
            image.depth is not None or image.depth_path is not None
            for image in (*images, *anchors)):
        raise ConfigError(f'scene_geometry.losses.points is {config.losses.points:g}, but no '
                          'photograph has depth; set it to 0, or train in a map, whose field has '
                          'the depth')
    focal = None if start is None else start.config.working_focal
    side = (config.network if start is None else start.config).longest_side
    data = [GeometryData(given, side, focal, augmentation=config.augmentation,
                         with_depth=config.losses.points > 0)
            for given in (images, anchors) if len(given)]
    torch.manual_seed(config.seed)
    model = new_network(data[0], config.network) if start is None else _copy(start)
    both = nn.ModuleDict({'model': model, 'average': _copy(model)}).to(device)
    both.to(memory_format=torch.channels_last)
    optimizer = _optimizer(model, config)
    clock = TrainingClock(steps=config.steps, minutes=minutes)
    load_checkpoint(checkpoint, both, optimizer, clock)
    smoothed: dict[str, float] = {}
    model.train()
    clock.pause()
    while clock.running:
        for group in optimizer.param_groups:
            group['lr'] = rate_at(config, clock.step, clock.progress)
        if model.config.dropout > 0:
            torch.manual_seed(_seed_of(config, clock.step))
        try:
            losses = step_losses(model, _draw(data, config, clock.step), config)
        except torch.linalg.LinAlgError as error:  # of points that are not numbers
            raise _diverged(config, clock.step, 'the predicted points') from error
        optimizer.zero_grad(set_to_none=True)
        sum(losses.values()).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), _CLIP)
        optimizer.step()
        kept = min(config.average, (1 + clock.step) / (10 + clock.step))
        follow(both['average'], model, kept)
        *values, steepness = torch.stack([*losses.values(), norm]).tolist()
        if not math.isfinite(sum(values) + steepness):
            raise _diverged(config, clock.step, 'the loss or its gradient')
        clock.tick()
        for name, value in zip(losses, values, strict=True):
            smoothed[name] = 0.97 * smoothed.get(name, value) + 0.03 * value
        if clock.step % 10 == 0:
            report(clock.progress, {**smoothed, 'step': clock.step})
        if clock.step % CHECKPOINT_STEPS == 0:
            save_checkpoint(checkpoint, both, optimizer, clock)
            clock.pause()
    save_checkpoint(checkpoint, both, optimizer, clock)  # so that it need not end twice
    report(1.0, {**smoothed, 'step': clock.step})
    return both['average'].eval().requires_grad_(False)


def new_network(data: GeometryData, config: SceneGeometryConfig) -> SceneGeometry:
    """Make an untrained network for a scene, with its unit of length and its middle."""
    model = SceneGeometry(replace(config, working_focal=data.focal))
    centre, extent = middle_and_extent(
        np.stack([image.map_from_camera for image in data.images]))
    model.centre.copy_(torch.from_numpy(centre))
    model.extent.fill_(extent)
    return model


def middle_and_extent(poses: np.ndarray) -> tuple[np.ndarray, float]:
    """Guess the middle (3,) and extent of a scene, metres, of the poses (K, 4, 4) alone.

    The extent is the diagonal of the box about the camera centres; the middle is half of it ahead
    of a mean camera.
    """
    centres = poses[:, :3, 3]
    extent = float(np.linalg.norm(np.ptp(centres, axis=0)))
    if not extent > 0:
        raise DataError(f'{len(poses)} photographs were all taken in one place; scene geometry '
                        'needs views from different places')
    return (centres + extent / 2 * poses[:, :3, 2]).mean(0), extent


def step_losses(
    model: SceneGeometry, batch: GeometryBatch, config: SceneGeometryTraining,
) -> dict[str, Tensor]:
    """Give the losses of one batch by name."""
    device = model.extent.device
    with torch.autocast(device.type, torch.bfloat16, enabled=config.bfloat16):
        geometry = model(batch.pictures.to(device, memory_format=torch.channels_last),
                         batch.rays.to(device))
    labels = GeometryLabels(
        batch.map_from_camera.to(device), batch.seen.to(device),
        None if batch.rotation_known.all() else batch.rotation_known.to(device),
        None if batch.depth is None else batch.depth.to(device), batch.still.to(device))
    return scene_geometry_losses(geometry, labels, model.extent, config.losses)


def _draw(
    data: Sequence[GeometryData], config: SceneGeometryTraining, step: int,
) -> GeometryBatch:
    """Draw the batch of a step: of the images, and one of the same size of the anchors."""
    first, *others = (one.draw(config.batch, [config.seed, step]) for one in data)
    known = torch.full((len(first.pictures),), config.labels == 'pose')
    return stacked([replace(first, rotation_known=known), *others])


def _diverged(config: SceneGeometryTraining, step: int, what: str) -> ConfigError:
    """Give the error of a training whose numbers have no end."""
    return ConfigError(f'scene geometry: in step {step + 1} {what} became infinite or no number, '
                       f'with scene_geometry.rate {config.rate:g}; give a lower rate')


def _seed_of(config: SceneGeometryTraining, step: int) -> int:
    """Give the seed of what a step leaves out."""
    return int(np.random.SeedSequence([config.seed, step]).generate_state(1, np.uint64)[0])


def rate_at(config: SceneGeometryTraining, step: int, progress: float) -> float:
    """Learning rate of a step: a warm-up, then a cosine down to a hundredth."""
    falling = 0.5 * (1 + math.cos(math.pi * progress))
    return config.rate * min(1, (step + 1) / _WARM_UP) * (0.01 + 0.99 * falling)


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, kept: float) -> None:
    """Move the average of a network towards its present state; kept: share of the old average."""
    for old, new in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
        if old.is_floating_point():
            old.lerp_(new, 1 - kept)
        else:
            old.copy_(new)


def _optimizer(model: nn.Module, config: SceneGeometryTraining) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': config.weight_decay},
         {'params': plain, 'weight_decay': 0.0}], lr=config.rate, fused=True)


def _copy(model: SceneGeometry) -> SceneGeometry:
    """Give the same network again, with weights of its own that may be trained."""
    copy = SceneGeometry(replace(model.config, pretrained=False))
    copy.load_state_dict(model.state_dict())
    copy.to(model.extent.device)
    return copy
