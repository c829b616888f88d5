"""Coarse matching against the dual softmax written out in full."""

from nerfmatch_ros.matching.coarse_matching import (
    dual_softmax_loss,
    log_dual_softmax,
    match_log_probability,
    match_unit_vectors,
)
import pytest
import torch
import torch.nn.functional as F


def match_cells(similarity, threshold, *, mutual=True):
    return match_log_probability(log_dual_softmax(similarity), threshold, mutual=mutual)


def dual_softmax(similarity):
    return similarity.softmax(dim=0) * similarity.softmax(dim=1)


def unit(count, generator, channels=16):
    return F.normalize(torch.randn(count, channels, generator=generator, dtype=torch.float64),
                       dim=-1)


@pytest.mark.parametrize('shape', [(30, 50), (50, 30), (1, 7), (7, 1)])
def test_pairs_are_the_mutual_maxima_of_the_dual_softmax(generator, shape):
    similarity = 4 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    probability = dual_softmax(similarity)
    expected = {
        (n, m): probability[n, m].item() for n in range(shape[0]) for m in range(shape[1])
        if probability[n, m] == probability[n].max() == probability[:, m].max()
        and probability[n, m] > 0.1}
    found = match_cells(similarity, 0.1)
    pairs = list(zip(found.cells.tolist(), found.points.tolist()))
    assert set(pairs) == set(expected) and len(pairs) == len(expected)
    for pair, confidence in zip(pairs, found.confidence.tolist()):
        assert confidence == pytest.approx(expected[pair])


def test_a_permutation_is_found_again(generator):
    cells = unit(40, generator)
    order = torch.randperm(40, generator=generator)
    found = match_cells(50 * cells @ cells[order].T, 0.02)
    assert torch.equal(found.cells, order[found.points])
    assert len(found.cells) == 40


def test_large_similarities_do_not_overflow(generator):
    cells = unit(20, generator).float()
    found = match_cells(1e4 * cells @ cells.T, 0.5)
    assert torch.equal(found.cells, found.points) and found.confidence.isfinite().all()


@pytest.mark.parametrize('scale', [5.0, 40.0, 100.0])
@pytest.mark.parametrize('shape', [(30, 50), (300, 2500), (1, 3), (3, 1)])
@pytest.mark.parametrize('mutual', [True, False])
def test_unit_vectors_match_as_their_similarities_do(generator, shape, scale, mutual):
    cells, points = (unit(count, generator).float() for count in shape)
    shared = min(shape)
    points[:shared] = F.normalize(cells[:shared] + 0.3 * points[:shared], dim=-1)
    scale = torch.tensor(scale)
    expected = match_cells(scale * cells @ points.T, 1e-6, mutual=mutual)
    found = match_unit_vectors(cells, points, scale, 1e-6, mutual=mutual)
    assert torch.equal(found.cells, expected.cells) and len(found.cells)
    assert torch.equal(found.points, expected.points)
    torch.testing.assert_close(found.confidence, expected.confidence, atol=1e-5, rtol=1e-4)


def test_padded_pairs_are_the_same_with_rows_of_no_confidence_between(generator):
    cells, points = unit(40, generator).float(), unit(30, generator).float()
    points[:20] = cells[10:30]
    pairs, padded = (match_unit_vectors(cells, points, torch.tensor(30.0), 0.05, padded=option)
                     for option in (False, True))
    assert padded.cells.tolist() == list(range(40)) and 20 <= len(pairs.cells) < 40
    there = padded.confidence > 0
    for name in ('cells', 'points', 'confidence'):
        assert torch.equal(getattr(padded, name)[there], getattr(pairs, name))


def test_cells_that_a_point_likes_equally_well(generator):
    points = unit(5, generator).float()
    cells = points[[2, 4, 2]]
    scale = torch.tensor(20.0)
    found = match_unit_vectors(cells, points, scale, 0.01)
    assert found.cells.tolist() == [0, 1] and found.points.tolist() == [2, 4]
    assert match_unit_vectors(cells, points, scale, 0.01, ties=True).cells.tolist() == [0, 1, 2]


def test_what_is_unlike_everything_has_no_pair():
    cells = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = match_unit_vectors(cells, torch.tensor([[1.0, 0.0]]), torch.tensor(500.0), 0.01)
    assert found.cells.tolist() == [0] and found.confidence.isfinite().all()


def test_what_is_no_number_has_no_pair(generator):
    cells, points = unit(300, generator).float(), unit(2500, generator).float()
    cells[7, 3] = torch.nan
    assert not len(match_unit_vectors(cells, points, torch.tensor(20.0), 0.01).cells)


@pytest.mark.parametrize('shape', [(0, 5), (5, 0), (0, 0)])
def test_no_vectors_match_nothing(shape):
    found = match_unit_vectors(*(torch.zeros(count, 4) for count in shape), torch.tensor(9.0), 0)
    assert not len(found.cells)


def test_loss_of_unique_pairs_is_the_log_of_the_dual_softmax(generator):
    cells, points = unit(30, generator), unit(25, generator)
    cell, point = torch.tensor([3, 8, 29, 0]), torch.tensor([7, 1, 0, 24])
    probability = dual_softmax(10 * cells @ points.T)
    expected = -probability[cell, point].log().mean()
    loss = dual_softmax_loss(cells, points, cell, point, torch.tensor(10.0).double())
    torch.testing.assert_close(loss, expected)


def test_each_point_that_a_cell_sees_is_a_right_answer(generator):
    cells, points = unit(12, generator), unit(9, generator)
    cell, point = torch.tensor([4, 4, 4, 7]), torch.tensor([0, 3, 8, 5])
    similarity = 10 * cells @ points.T
    over_cells = similarity.softmax(dim=0)[cell, point].log().mean()
    over_points = similarity.softmax(dim=1)
    shares = torch.stack([over_points[4, [0, 3, 8]].sum(), over_points[7, 5]])
    loss = dual_softmax_loss(cells, points, cell, point, torch.tensor(10.0).double())
    torch.testing.assert_close(loss, -over_cells - shares.log().mean())


def test_loss_gradient_agrees_with_finite_differences(generator):
    cells, points = unit(6, generator, 4), unit(5, generator, 4)
    cell, point = torch.tensor([1, 1, 5]), torch.tensor([0, 4, 2])
    assert torch.autograd.gradcheck(
        lambda c, p, s: dual_softmax_loss(c, p, cell, point, s),
        (cells.requires_grad_(), points.requires_grad_(),
         torch.tensor(5.0).double().requires_grad_()))
