"""Coarse matching: dual softmax between image cells and scene points, and its loss.

Letters: n image cells, m points, C channels; similarities are scaled cosines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
import torch.nn.functional as F


@dataclass(frozen=True)
class CoarseMatches:
    """Pairs of cells and points, at most one of each cell."""

    cells: Tensor  # (M,) int64
    points: Tensor  # (M,) int64
    confidence: Tensor  # (M,) probability of the pair under the dual softmax
    tokens: Tensor | None = None  # (M, C) of the points, where attention to the image changed them


def log_dual_softmax(similarity: Tensor) -> Tensor:
    """Give log P: (..., n, m); P = softmax over cells x softmax over points (paper, Sec. 3.3)."""
    per_cell = torch.logsumexp(similarity, dim=-1, keepdim=True)
    per_point = torch.logsumexp(similarity, dim=-2, keepdim=True)
    return 2 * similarity - per_cell - per_point


def masked_log_dual_softmax(
    similarity: Tensor, cell_mask: Tensor | None, point_mask: Tensor | None,
) -> Tensor:
    """Give log P (n, m) where pairs of a cell (n,) or a point (m,) masked False are as unlike.

    A cell and a point that are both masked share what nothing else can have: 1 / (n m).
    """
    mask = torch.ones_like(similarity, dtype=torch.bool)
    if cell_mask is not None:
        mask = mask & cell_mask.bool()[:, None]
    if point_mask is not None:
        mask = mask & point_mask.bool()[None]
    # Not by `log_dual_softmax`: log n would be lost beside -1e9.
    similarity = similarity.masked_fill(~mask, -1e9)
    return similarity.log_softmax(dim=0) + similarity.log_softmax(dim=1)


def match_cells(similarity: Tensor, threshold: float, *, mutual: bool = True) -> CoarseMatches:
    """Pair cells with points: (n, m) scaled similarities -> pairs surer than `threshold`.

    mutual: only pairs that are the best of their cell and of their point; else the best of each
    cell. Only the row and column log-sums are needed, not both softmaxes.
    """
    return match_log_probability(
        log_dual_softmax(similarity) if similarity.numel() else similarity, threshold,
        mutual=mutual)


def match_log_probability(
    log_probability: Tensor, threshold: float, *, mutual: bool = True, ties: bool = False,
) -> CoarseMatches:
    """Do what `match_cells` does with log P (n, m).

    ties: let all cells that a point likes equally well have it, as the published code does, not
    only the first.
    """
    if not log_probability.numel():
        nothing = torch.zeros(0, dtype=torch.int64, device=log_probability.device)
        return CoarseMatches(nothing, nothing, log_probability.new_zeros(0))
    best, point = log_probability.max(dim=1)
    confidence = best.exp()
    cells = torch.arange(len(log_probability), device=log_probability.device)
    chosen = confidence > threshold
    if mutual and ties:
        chosen &= log_probability.amax(dim=0)[point] == best
    elif mutual:
        chosen &= log_probability.argmax(dim=0)[point] == cells
    return CoarseMatches(cells[chosen], point[chosen], confidence[chosen])


def dual_softmax_loss(
    cells: Tensor, points: Tensor, cell_of_pair: Tensor, point_of_pair: Tensor, scale: Tensor,
) -> Tensor:
    """-log of both softmax factors of the true pairs (paper, Eq. 3), averaged.

    cells: (n, C) and points: (m, C) of unit length; pairs (k,): point `point_of_pair` is seen in
    cell `cell_of_pair`. A cell may see several points: each of them is a right answer for it.
    Only the rows and columns that hold a true pair are computed.
    """
    paired = points[point_of_pair]
    over_cells = F.cross_entropy(scale * paired @ cells.T, cell_of_pair)
    seeing, row = torch.unique(cell_of_pair, return_inverse=True)
    similarity = scale * cells[seeing] @ points.T
    true_pair = similarity[row, point_of_pair]
    largest = torch.full_like(similarity[:, 0], -torch.inf).scatter_reduce(
        0, row, true_pair.detach(), 'amax')
    right = largest + torch.zeros_like(largest).index_add(
        0, row, (true_pair - largest[row]).exp()).log()
    return over_cells + (torch.logsumexp(similarity, 1) - right).mean()
