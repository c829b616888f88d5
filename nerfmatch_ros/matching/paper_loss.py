"""Losses of the published matchers: of the dual softmax and of the place in the window.

`focal_loss` and `squared_distance_loss` are what the released code minimises, `log_loss` and
`distance_loss` what the paper writes (Eq. 3 and 4). Letters: n cells, m points of one view,
k true pairs, M matches; positions are pixels.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

FOCAL_ALPHA, FOCAL_GAMMA = 0.25, 2  # of true and of wrong pairs alike
FINE_REACH = 10.0  # pixels from the cell's centre, beyond which a match teaches the window nothing
MATCH_SHARE = 0.3  # of the cells of a batch, that the fine stage learns from
PREDICTED_SHARE = 0.3  # of these, that are the matcher's own at most


class Draws(Protocol):
    """Part of numpy's generators, old and new, that draws numbers."""

    def choice(self, a: int, size: int) -> np.ndarray:
        """Draw `size` of the numbers below `a`, with replacement."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of cells and points of several images."""

    image: Tensor  # (k,) int64, of the batch
    cell: Tensor  # (k,) int64
    point: Tensor  # (k,) int64

    def __len__(self) -> int:
        return len(self.cell)

    def at(self, index: Tensor) -> 'Pairs':
        """Choose some of them."""
        return Pairs(self.image[index], self.cell[index], self.point[index])


def true_pairs(
    pixels: list[Tensor], visible: list[Tensor], grids: list[tuple[int, int]], stride: int, *,
    border: int = 0,
) -> Pairs:
    """Pair points with the cells that see them.

    pixels: per image (m, 2), where its points project; visible: per image (m,) bool; grids: per
    image, rows and columns of its cells; border: rows at the top and columns at the left that take
    part in no pair (the released code: 1).
    """
    found = []
    for image, (place, seen, (rows, columns)) in enumerate(
            zip(pixels, visible, grids, strict=True)):
        cell = torch.floor((place + 0.5) / stride)
        cell = cell.nan_to_num(nan=-1).clamp(-1, max(rows, columns)).long()
        inside = seen & (cell >= border).all(-1) & (cell[:, 0] < columns) & (cell[:, 1] < rows)
        point = inside.nonzero()[:, 0]
        # Ordered by cell, as the entries of a matrix are.
        order = torch.argsort(cell[point, 1] * columns + cell[point, 0], stable=True)
        point = point[order]
        found.append((torch.full_like(point, image), cell[point, 1] * columns + cell[point, 0],
                      point))
    return Pairs(*(torch.cat(parts) for parts in zip(*found)))


def _of_image(pairs: Pairs, image: int) -> tuple[Tensor, Tensor]:
    own = pairs.image == image
    return pairs.cell[own], pairs.point[own]


def focal_loss(
    log_probability: list[Tensor], pairs: Pairs, *, clamp: float | None = None,
) -> Tensor:
    """Focal loss: mean over the true pairs of all images, and mean over all the others.

    log_probability: per image (n, m), of the dual softmax; clamp: least distance of a probability
    from 0 and 1.
    """
    right, wrong, others = [], [], 0
    for image, logarithm in enumerate(log_probability):
        probability = logarithm.exp()
        if clamp is not None:
            probability = probability.clamp(clamp, 1 - clamp)
            logarithm = probability.log()
        at = _of_image(pairs, image)
        chosen, unlike = probability[at], 1 - probability
        right.append(-FOCAL_ALPHA * (1 - chosen) ** FOCAL_GAMMA * logarithm[at])
        # All pairs but the true ones, which are taken away where they stand.
        as_wrong = probability ** FOCAL_GAMMA * torch.log(unlike.index_put(
            at, torch.ones_like(chosen)))
        wrong.append(-FOCAL_ALPHA * as_wrong.sum())
        others += probability.numel() - len(chosen)
    right = torch.cat(right)
    return (right.mean() if len(right) else right.sum()) + torch.stack(wrong).sum() / others


def log_loss(log_probability: list[Tensor], pairs: Pairs) -> Tensor:
    """-log of the dual softmax of the true pairs of all images, averaged (paper, Eq. 3)."""
    right = torch.cat([logarithm[_of_image(pairs, image)]
                       for image, logarithm in enumerate(log_probability)])
    return -(right.mean() if len(right) else right.sum())


def matches_to_learn(
    predicted: Pairs, truth: Pairs, cells: int, random: Draws,
) -> tuple[Pairs, int]:
    """Choose the matches that the fine stage learns from: predicted ones, and true ones.

    cells: of all images. Returns them, and how many of them, the first ones, are predicted.
    """
    total = int(MATCH_SHARE * cells)
    most = min(int(PREDICTED_SHARE * total), len(predicted))
    own = predicted.at(_drawn(len(predicted), most, random, predicted.cell))
    rest = truth.at(_drawn(len(truth), total - most if len(truth) else 0, random, truth.cell))
    return Pairs(*(torch.cat([getattr(side, name) for side in (own, rest)])
                   for name in ('image', 'cell', 'point'))), most


def _drawn(among: int, count: int, random: Draws, like: Tensor) -> Tensor:
    if not count:
        return like.new_zeros(0)
    return torch.from_numpy(np.asarray(random.choice(among, count))).to(like)


def squared_distance_loss(found: Tensor, std: Tensor, truth: Tensor, near: Tensor) -> Tensor:
    """Squared distance from the truth, weighted by 1 / std against each other, as released.

    found, truth: (M, 2); std: (M,), of which only the ratios count; near: (M,) bool, matches that
    count. The mean goes over all matches.
    """
    weight = 1 / std.detach()
    distance = (found - truth).square().sum(-1)
    return (weight / weight.mean() * distance * near).mean()


def distance_loss(found: Tensor, std: Tensor, truth: Tensor, near: Tensor) -> Tensor:
    """Distance from the truth over the variance (paper, Eq. 4), averaged over the near matches.

    std: (M,) pixels; it counts as half a pixel at least, else a sure match outweighs all others.
    """
    weight = 1 / std.detach().clamp(min=0.5).square()
    distance = torch.linalg.vector_norm(found - truth, dim=-1)
    return (weight * distance * near).sum() / near.sum().clamp(min=1)


def near_its_cell(truth: Tensor, centres: Tensor) -> Tensor:
    """Tell which true pixels (M, 2) the window of their cells, centred at (M, 2), can lead to."""
    return (truth - centres).norm(dim=-1) < FINE_REACH
