"""Training the matcher on one or several maps."""

from collections.abc import Callable
from dataclasses import dataclass
import math
from pathlib import Path

from nerfmatch_ros.mapping.checkpoint import load_checkpoint, save_checkpoint
from nerfmatch_ros.mapping.match_dataset import MatchBatch, MatchDataset
from nerfmatch_ros.mapping.training_clock import TrainingClock
from nerfmatch_ros.matching.coarse_matching import dual_softmax_loss
from nerfmatch_ros.matching.fine_matching import (
    fine_logits,
    fine_loss,
    FINE_STRIDE,
    window_features,
)
from nerfmatch_ros.matching.matcher import cell_centres, COARSE_STRIDE, NeRFMatcher
from nerfmatch_ros.matching.supervision import cells_of_pixels
import numpy as np
import torch
from torch import nn, Tensor
import torch.nn.functional as F

CHECKPOINT_STEPS = 250  # between interim states


@dataclass(frozen=True)
class MatcherTrainingConfig:
    """Budget and learning rate of the training of a matcher."""

    steps: int = 12000  # at most; on a CPU the minutes of the build end it first
    batch: int = 6  # images per step
    points: int = 384  # scene points per image of the batch; all serve all images
    fine_matches: int = 256  # per image
    rate: float = 2e-3
    weight_decay: float = 1e-2
    jitter: float = 0.003  # scene units, std; views never agree exactly on a surface
    seed: int = 0


def matching_loss(
    matcher: NeRFMatcher, batch: MatchBatch, config: MatcherTrainingConfig,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Coarse and fine loss of a batch (paper, Eq. 3 and 4), means over its images.

    Images are encoded in bfloat16. Similarities are not: scaled by the temperature they would be
    rounded to steps of a quarter, which blurs what tells neighbouring points apart.
    """
    device = next(matcher.parameters()).device
    rows, columns = (side // COARSE_STRIDE for side in batch.images.shape[-2:])
    with torch.autocast(device.type, torch.bfloat16):
        tokens, fine = matcher.encode_images(
            batch.images.to(device).contiguous(memory_format=torch.channels_last))
    noise = torch.randn(batch.points.shape, generator=generator)
    features = None if batch.features is None else batch.features.to(device)
    points = matcher.encode_points((batch.points + config.jitter * noise).to(device), features)
    descriptors = F.normalize(points.coarse.float(), dim=-1)
    zero = tokens.sum() * 0
    # Unbound once: the gradient of an indexed image would be a whole batch of zeros each time.
    tokens = tokens.unbind(0)
    fine = fine.split(1) if matcher.config.fine else None
    coarse_losses, fine_losses = [], []
    for k, (seen, pixels) in enumerate(zip(batch.seen, batch.pixels)):
        if len(seen) < 8:
            continue
        cells = F.normalize(tokens[k].float(), dim=-1)
        cell = cells_of_pixels(pixels, rows, columns, COARSE_STRIDE)
        coarse_losses.append(dual_softmax_loss(
            cells, descriptors, cell.to(device), seen.to(device), matcher.scale))
        if not matcher.config.fine:
            continue
        chosen = torch.randperm(len(seen), generator=generator)[:config.fine_matches]
        # The window of a wrong neighbouring cell must lead to the point as well.
        shift = torch.randint(-1, 2, (len(chosen), 2), generator=generator) * FINE_STRIDE
        centres = cell_centres(cell[chosen], columns) + shift
        window, positions, inside = window_features(
            fine[k], torch.zeros_like(chosen).to(device), centres.to(device),
            matcher.config.window)
        logits = fine_logits(window.float(), points.fine[seen[chosen].to(device)].float(),
                             inside, matcher.fine_scale)
        fine_losses.append(fine_loss(logits, positions, inside, pixels[chosen].to(device)))
    return (torch.stack(coarse_losses).mean() if coarse_losses else zero,
            torch.stack(fine_losses).mean() if fine_losses else zero)


def fit_feature_statistics(matcher: NeRFMatcher, datasets: list[MatchDataset]) -> None:
    """Set the mean and spread by which the matcher normalises inner features."""
    if matcher.config.feature_layer is None:
        return
    features = torch.cat([
        reference.features[::7].float() for dataset in datasets
        for reference in dataset.references])
    matcher.feature_mean.copy_(features.mean(0))
    matcher.feature_std.copy_(features.std(0) + 1e-3)


def train_matcher(
    matcher: NeRFMatcher, datasets: list[MatchDataset], config: MatcherTrainingConfig, *,
    checkpoint: Path, minutes: float | None = None, device: str = 'cpu',
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> NeRFMatcher:
    """Train a matcher in place; goes on from `checkpoint` if that exists.

    datasets: one per map; a step draws all its images from one of them. report: called with the
    progress in [0, 1] and the smoothed losses.
    """
    fit_feature_statistics(matcher, datasets)
    matcher.to(device).to(memory_format=torch.channels_last)
    decayed = [p for p in matcher.parameters() if p.dim() > 1]
    plain = [p for p in matcher.parameters() if p.dim() <= 1]
    optimizer = torch.optim.AdamW(
        [{'params': decayed, 'weight_decay': config.weight_decay},
         {'params': plain, 'weight_decay': 0.0}], lr=config.rate, fused=True)
    clock = TrainingClock(steps=config.steps, minutes=minutes)
    if checkpoint.exists():
        load_checkpoint(checkpoint, matcher, optimizer, clock)
    random = np.random.default_rng([config.seed, clock.step])
    generator = torch.Generator().manual_seed(config.seed + clock.step)
    smoothed: dict[str, float] = {}
    matcher.train()
    clock.pause()
    while clock.running:
        rate = config.rate * min(1, (clock.step + 1) / 50) * (
            0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * clock.progress)))
        for group in optimizer.param_groups:
            group['lr'] = rate
        dataset = datasets[random.integers(len(datasets))]
        batch = dataset.draw(config.batch, config.points, random)
        coarse, fine = matching_loss(matcher, batch, config, generator)
        optimizer.zero_grad(set_to_none=True)
        (coarse + fine).backward()
        nn.utils.clip_grad_norm_(matcher.parameters(), 5.0)
        optimizer.step()
        clock.tick()
        for name, value in (('coarse', coarse), ('fine', fine)):
            smoothed[name] = 0.97 * smoothed.get(name, value.item()) + 0.03 * value.item()
        if clock.step % 10 == 0:
            report(clock.progress, {**smoothed, 'step': clock.step})
        if clock.step % CHECKPOINT_STEPS == 0:
            save_checkpoint(checkpoint, matcher, optimizer, clock)
            clock.pause()
    matcher.eval()
    return matcher
