"""Training the matcher on one or several maps, by one process or by several."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math
from pathlib import Path
from typing import TYPE_CHECKING

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.checkpoint import load_checkpoint, save_checkpoint
from nerfmatch_ros.mapping.engine import total
from nerfmatch_ros.mapping.match_dataset import MatchBatch, MatchDataset
from nerfmatch_ros.mapping.matching_loss import MatchingLoss
from nerfmatch_ros.mapping.pair_dataset import PairDataset, PairGroup
from nerfmatch_ros.mapping.pair_loss import PairLoss
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.mapping.training_clock import TrainingClock
from nerfmatch_ros.matching.make_matcher import Matcher
from nerfmatch_ros.matching.matcher import NeRFMatcher
from nerfmatch_ros.memory import keep_freed_memory, return_large_blocks
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import torch
from torch import nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric

CHECKPOINT_STEPS = 250  # between interim states


@dataclass(frozen=True)
class MatcherTrainingConfig:
    """Budget and learning rate of the training of a matcher."""

    steps: int = 12000  # at most; on a CPU the minutes of the build end it first
    batch: int = 6  # images per step, of all processes; kind 'paper': pairs of image and view
    points: int = 384  # scene points per image of the batch; all serve all images
    fine_matches: int = 256  # per image
    rate: float = 2e-3
    weight_decay: float = 1e-2
    jitter: float = 0.003  # scene units, std; views never agree exactly on a surface
    bfloat16: bool = True  # matrix products of the networks in half the time
    seed: int = 0
    # The rest is for a matcher of kind 'paper', which needs no points, fine_matches and jitter.
    loss: str = 'focal'  # 'focal' as released, 'log' as in the paper (Eq. 3 and 4)
    pairs_at_once: int = 2  # whose loss is one mean; processes share these groups of the batch
    partners: int = 20  # most covisible reference views of an image, of which its pairs are made
    self_pairs: int = 10  # times an image is listed with its own view
    augment: bool = False  # vary the images as `augmentation` says

    def __post_init__(self):
        """Refuse values that no training can work with."""
        if self.loss not in ('focal', 'log'):
            raise ConfigError(f"matcher_training.loss is '{self.loss}'; use focal or log")
        least = {'steps': 1, 'batch': 1, 'points': 1, 'fine_matches': 1, 'pairs_at_once': 1,
                 'partners': 0, 'self_pairs': 0}
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ConfigError(f'matcher_training.{name} is {getattr(self, name)}; '
                                  f'give {smallest} or more')
        if not self.partners and not self.self_pairs:
            raise ConfigError('matcher_training has partners 0 and self_pairs 0, which leaves no '
                              'pair to learn from; raise one of them')


def check_shares(config: MatcherTrainingConfig, kind: str, processes: int) -> None:
    """Refuse a batch that has no share for each process; kind: of the matcher."""
    if kind == 'own' and config.batch < processes:
        raise ConfigError(f'a batch of {config.batch} images cannot be shared by {processes} '
                          'processes; raise matcher_training.batch or start fewer')
    if kind == 'paper' and math.ceil(config.batch / config.pairs_at_once) < processes:
        raise ConfigError(
            f'a batch of {config.batch} pairs in groups of {config.pairs_at_once} cannot be '
            f'shared by {processes} processes; raise matcher_training.batch, lower '
            'matcher_training.pairs_at_once or start fewer')


def training_data(
    images: Sequence[PosedImage], references: Sequence[ReferenceView], frame: SceneFrame,
    kind: str, config: MatcherTrainingConfig, augmentation: AugmentationConfig,
) -> MatchDataset | PairDataset:
    """Make the data set of one map for a matcher of a kind, 'own' or 'paper'."""
    if kind == 'own':
        return MatchDataset(images, references, frame, augmentation)
    return PairDataset(images, references, partners=config.partners,
                       self_pairs=config.self_pairs,
                       augmentation=augmentation if config.augment else None)


def rate_at(config: MatcherTrainingConfig, kind: str, step: int, progress: float) -> float:
    """Learning rate of a step; progress in [0, 1] of the training."""
    falling = 0.5 * (1 + math.cos(math.pi * progress))
    if kind == 'paper':  # as published: no warm-up, down to 1e-8
        return 1e-8 + (config.rate - 1e-8) * falling
    return config.rate * min(1, (step + 1) / 50) * (0.01 + 0.99 * falling)


def fit_feature_statistics(matcher: NeRFMatcher, datasets: list[MatchDataset]) -> None:
    """Set the mean and spread by which the matcher normalises inner features."""
    if matcher.config.feature_layer is None:
        return
    count, total_, squares = 0, 0.0, 0.0
    for dataset in datasets:
        for reference in dataset.references:  # one at a time: they may lie in a file
            features = reference.features[::7].double()
            count += len(features)
            total_ = total_ + features.sum(0)
            squares = squares + features.square().sum(0)
    mean = total_ / count
    spread = ((squares - count * mean ** 2) / max(count - 1, 1)).clamp(min=0).sqrt()
    matcher.feature_mean.copy_(mean)
    matcher.feature_std.copy_(spread + 1e-3)


def train_matcher(
    matcher: Matcher, datasets: list[MatchDataset] | list[PairDataset],
    config: MatcherTrainingConfig, *, engine: 'Fabric', checkpoint: Path,
    minutes: float | None = None,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> Matcher:
    """Train a matcher in place; goes on from `checkpoint` if that exists.

    datasets: one per map, PairDataset for a matcher of kind 'paper'; a step draws all its images
    from one of them. All processes of the engine call this and share each step's images; what a
    step draws depends on the seed and the step alone, so a training that was interrupted goes on
    as it would have. report: called with the progress in [0, 1] and the smoothed losses.
    """
    check_shares(config, matcher.config.kind, engine.world_size)
    paper = matcher.config.kind == 'paper'
    if paper:
        # A CPU tries this network rather than trains it, and has less memory to spare than time.
        matcher.backbone.backbone.recompute(engine.device.type == 'cpu')
        return_large_blocks()
    else:
        fit_feature_statistics(matcher, datasets)
    matcher.to(memory_format=torch.channels_last)
    loss = PairLoss(matcher, kind=config.loss, bfloat16=config.bfloat16) if paper \
        else MatchingLoss(matcher, jitter=config.jitter, fine_matches=config.fine_matches,
                          bfloat16=config.bfloat16)
    wrapped, optimizer, bare = _set_up(engine, loss, config)
    clock = TrainingClock(steps=config.steps, minutes=minutes, engine=engine)
    # The state of the matcher, not of the loss around it, is what a checkpoint holds.
    load_checkpoint(checkpoint, matcher, bare, clock, engine=engine)
    smoothed: dict[str, float] = {}
    wrapped.train()
    clock.pause()
    while clock.running:
        for group in bare.param_groups:
            group['lr'] = rate_at(config, matcher.config.kind, clock.step, clock.progress)
        seed = [config.seed, clock.step]
        dataset = datasets[np.random.default_rng(seed).integers(len(datasets))]
        losses = _step(engine, wrapped, optimizer, _shares(dataset, config, seed, engine),
                       clip=None if paper else 5.0)
        clock.tick()
        for name, value in zip(('coarse', 'fine'), losses):
            smoothed[name] = 0.97 * smoothed.get(name, value) + 0.03 * value
        if clock.step % 10 == 0:
            report(clock.progress, {**smoothed, 'step': clock.step})
        if clock.step % CHECKPOINT_STEPS == 0:
            save_checkpoint(checkpoint, matcher, bare, clock, engine=engine)
            clock.pause()
    if paper:
        matcher.backbone.backbone.recompute(False)
        keep_freed_memory()
    return matcher.eval()


def _set_up(engine: 'Fabric', loss: nn.Module, config: MatcherTrainingConfig,
            ) -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.Optimizer]:
    """Give the loss and its optimizer as the engine wraps them, and the optimizer bare."""
    loss.to(engine.device)
    decayed = [p for p in loss.parameters() if p.dim() > 1]
    plain = [p for p in loss.parameters() if p.dim() <= 1]
    bare = torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': config.weight_decay},
         {'params': plain, 'weight_decay': 0.0}], lr=config.rate, fused=True)
    wrapped, optimizer = engine.setup(loss, bare)
    return wrapped, optimizer, bare


def _shares(
    dataset: MatchDataset | PairDataset, config: MatcherTrainingConfig, seed: list[int],
    engine: 'Fabric',
) -> list[MatchBatch] | list[PairGroup]:
    """Draw a step's batch and give this process's share of it, in parts that fit into memory."""
    own = {'rank': engine.global_rank, 'processes': engine.world_size}
    if isinstance(dataset, PairDataset):
        return dataset.draw(config.batch, config.pairs_at_once, seed, **own)
    return [dataset.draw(config.batch, config.points, seed, **own)]


def _step(engine: 'Fabric', wrapped: nn.Module, optimizer: torch.optim.Optimizer,
          shares: list[MatchBatch] | list[PairGroup], *, clip: float | None) -> list[float]:
    """Make one step with the mean loss of all processes' shares; gives both losses of it."""
    optimizer.zero_grad(set_to_none=True)
    counted = total(engine, torch.tensor(
        float(sum(share.size for share in shares)), device=engine.device)).item()
    sums = torch.zeros(2, device=engine.device)
    for number, share in enumerate(shares, 1):
        # Gradients are averaged over the processes, with the last part of each one's share.
        with engine.no_backward_sync(wrapped, enabled=number < len(shares)):
            losses = wrapped(share)
            weight = share.size / max(counted, 1)
            engine.backward(losses.sum() * weight * engine.world_size)
        sums += weight * losses.detach()
    if clip is not None:
        nn.utils.clip_grad_norm_(wrapped.parameters(), clip)
    optimizer.step()
    return total(engine, sums).tolist()
