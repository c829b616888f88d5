"""Coarse matching: dual softmax between image cells and scene points, and its loss.

Letters: n image cells, m points, C channels; similarities are scaled cosines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
import torch.nn.functional as F


@dataclass(frozen=True)
class CoarseMatches:
    """Pairs of cells and points, at most one of each cell.

    On a GPU every cell has a row, and those without a point have confidence 0: how many pairs
    there are would have to be waited for.
    """

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


def match_log_probability(
    log_probability: Tensor, threshold: float, *, mutual: bool = True, ties: bool = False,
) -> CoarseMatches:
    """Pair cells with points: log P (n, m) -> pairs surer than `threshold`.

    mutual: only pairs that are the best of their cell and of their point; else the best of each
    cell. ties: let all cells that a point likes equally well have it, as the published code does,
    not only the first.
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


def match_unit_vectors(
    cells: Tensor, points: Tensor, scale: Tensor, threshold: float, *, mutual: bool = True,
    ties: bool = False, padded: bool | None = None,
) -> CoarseMatches:
    """Pair cells with points by the dual softmax of scale * cells @ points.T.

    cells: (n, C) and points: (m, C) of unit length, so that no similarity exceeds the scale and
    one exponential serves both softmaxes: P = E / (sum of its row) * E / (sum of its column).
    On a CPU this is done in tiles that stay in the cache of a core. mutual, ties: as in
    `match_log_probability`; padded: a row for every cell, None: on a GPU.
    """
    if not len(cells) or not len(points):
        return match_log_probability(cells.new_zeros(len(cells), len(points)), threshold)
    # The largest exponent stays below 60, whose square and sums single precision still holds.
    shift = torch.maximum(0.25 * scale, scale - 60)
    row_sum, column_sum = cells.new_zeros(len(cells)), cells.new_zeros(len(points))
    tiles = []
    for rows, columns in _tiles(len(cells), len(points), cells.device):
        tile = (scale * cells[rows] @ points[columns].T).sub_(shift).exp_()
        row_sum[rows] += tile.sum(1)
        column_sum[columns] += tile.sum(0)
        tiles.append((tile, rows, columns))
    # Rows and columns that are unlike everything have sums of 0 and no pair.
    row_factor, column_factor = (
        total.clamp(min=1e-30).rsqrt() for total in (row_sum, column_sum))
    best, column_best = torch.zeros_like(row_sum), torch.zeros_like(column_sum)
    for tile, rows, columns in tiles:
        tile.mul_(column_factor[columns]).mul_(row_factor[rows, None])  # the root of P
        best[rows] = torch.maximum(best[rows], tile.amax(1))
        column_best[columns] = torch.maximum(column_best[columns], tile.amax(0))
    point = _argmax(tiles, best)
    chosen = best ** 2 > threshold
    if mutual:
        chosen &= column_best[point] == best
    cell = torch.arange(len(cells), device=cells.device)
    if mutual and not ties:  # of cells that a point likes equally well the first has it
        first = torch.full((len(points),), len(cells), device=cells.device)
        first.scatter_reduce_(0, point, torch.where(chosen, cell, len(cells)), 'amin')
        chosen &= first[point] == cell
    confidence = best ** 2
    if cells.is_cuda if padded is None else padded:
        return CoarseMatches(cell, point, torch.where(chosen, confidence, 0))
    return CoarseMatches(cell[chosen], point[chosen], confidence[chosen])


def _tiles(n: int, m: int, device: torch.device) -> list[tuple[slice, slice]]:
    """Cut a matrix of n rows and m columns for the cache of a CPU; a GPU takes it whole."""
    if device.type != 'cpu':
        return [(slice(0, n), slice(0, m))]
    height, width = 128 * torch.get_num_threads(), 1024
    return [(slice(row, min(row + height, n)), slice(column, min(column + width, m)))
            for column in range(0, m, width) for row in range(0, n, height)]


def _argmax(tiles: list[tuple[Tensor, slice, slice]], best: Tensor) -> Tensor:
    """Give the column (n,) of each row's largest value, the first of equals.

    best: (n,) these values. An argmax of everything would take as long as the exponentials.
    """
    if len(tiles) == 1:
        return tiles[0][0].argmax(1)
    found = best.new_full((len(best),), torch.iinfo(torch.int64).max, dtype=torch.int64)
    for tile, rows, columns in tiles:
        here = (tile.amax(1) == best[rows]).nonzero()[:, 0]
        own = found[rows]  # a view
        own[here] = torch.minimum(own[here], columns.start + tile[here].argmax(1))
    return found.clamp(max=tiles[-1][2].stop - 1)  # rows of NaN are found nowhere


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
