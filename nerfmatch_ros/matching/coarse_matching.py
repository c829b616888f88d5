"""Coarse matching: dual softmax between image cells and scene points, and its loss.

Letters: n image cells, m points, C channels; similarities are scaled cosines.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
import torch.nn.functional as F


@dataclass(frozen=True)
class CoarseMatches:
    """Mutual nearest neighbours of cells and points."""

    cells: Tensor  # (M,) int64
    points: Tensor  # (M,) int64
    confidence: Tensor  # (M,) probability of the pair under the dual softmax


def match_mutually(similarity: Tensor, threshold: float) -> CoarseMatches:
    """Pair cells with points: (n, m) scaled similarities -> pairs surer than `threshold`.

    P = softmax over cells x softmax over points (paper, Sec. 3.3); only the row and column
    log-sums are needed for the pairs that are mutual maxima of P.
    """
    if not similarity.numel():
        nothing = torch.zeros(0, dtype=torch.int64, device=similarity.device)
        return CoarseMatches(nothing, nothing, similarity.new_zeros(0))
    per_cell = torch.logsumexp(similarity, dim=1, keepdim=True)
    per_point = torch.logsumexp(similarity, dim=0, keepdim=True)
    log_probability = 2 * similarity - per_cell - per_point
    best, point = log_probability.max(dim=1)
    back = log_probability.argmax(dim=0)
    cells = torch.arange(len(similarity), device=similarity.device)
    chosen = (back[point] == cells) & (best > torch.log(best.new_tensor(threshold)))
    return CoarseMatches(cells[chosen], point[chosen], best[chosen].exp())


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
