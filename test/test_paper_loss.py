"""Losses of the published matchers: written out in full, and the published code's numbers."""

from nerfmatch_ros.matching.coarse_matching import log_dual_softmax
from nerfmatch_ros.matching.matcher import cell_centres
from nerfmatch_ros.matching.paper_loss import (
    distance_loss,
    focal_loss,
    log_loss,
    matches_to_learn,
    near_its_cell,
    Pairs,
    squared_distance_loss,
    true_pairs,
)
import numpy as np
from official_parity import Fixture, needs_fixtures
import pytest
import torch


def pairs_of(matrix):
    """Pairs that a stack of matrices (B, n, m) marks."""
    return Pairs(*matrix.nonzero(as_tuple=True))


@pytest.fixture
def problem(generator):
    similarity = [torch.randn(9, 12, generator=generator, dtype=torch.float64) * 2,
                  torch.randn(9, 5, generator=generator, dtype=torch.float64) * 2]
    pairs = Pairs(torch.tensor([0, 0, 0, 1]), torch.tensor([3, 3, 8, 0]),
                  torch.tensor([1, 2, 11, 4]))
    return similarity, pairs


def focal_written_out(similarity, pairs, clamp):
    true = {(b, i, j) for b, i, j in zip(*(x.tolist() for x in (
        pairs.image, pairs.cell, pairs.point)))}
    right, wrong = [], []
    for b, scores in enumerate(similarity):
        probability = scores.softmax(0) * scores.softmax(1)
        if clamp is not None:
            probability = probability.clamp(clamp, 1 - clamp)
        for i, j in np.ndindex(*scores.shape):
            p = probability[i, j]
            if (b, i, j) in true:
                right.append(-0.25 * (1 - p) ** 2 * p.log())
            else:
                wrong.append(-0.25 * p ** 2 * (1 - p).log())
    return torch.stack(right).mean() + torch.stack(wrong).mean()


@pytest.mark.parametrize('clamp', [None, 1e-6, 0.01])
def test_focal_loss_and_its_gradient_are_those_written_out(problem, clamp):
    similarity, pairs = problem
    gradients = []
    for loss in (lambda s: focal_loss([log_dual_softmax(x) for x in s], pairs, clamp=clamp),
                 lambda s: focal_written_out(s, pairs, clamp)):
        leaves = [x.clone().requires_grad_() for x in similarity]
        value = loss(leaves)
        gradients.append([value.detach(), *torch.autograd.grad(value, leaves)])
    for ours, expected in zip(*gradients):
        torch.testing.assert_close(ours, expected)


def test_log_loss_is_the_mean_over_all_true_pairs(problem):
    similarity, pairs = problem
    expected = [-(x.softmax(0) * x.softmax(1))[i, j].log() for x, i, j in (
        (similarity[0], 3, 1), (similarity[0], 3, 2), (similarity[0], 8, 11),
        (similarity[1], 0, 4))]
    torch.testing.assert_close(log_loss([log_dual_softmax(x) for x in similarity], pairs),
                               torch.stack(expected).mean())


@pytest.mark.parametrize('loss', [focal_loss, log_loss])
def test_images_without_a_true_pair_give_a_finite_loss(problem, loss):
    similarity, pairs = problem
    value = loss([log_dual_softmax(x) for x in similarity], pairs.at(torch.zeros(0).long()))
    assert value.isfinite() and value >= 0


def test_true_pairs_are_the_cells_that_hold_the_projections():
    pixels = [torch.tensor([[0.0, 9.0], [15.49, -0.5], [15.5, 0.0], [-0.6, 0], [9, 9], [9, 9]]),
              torch.tensor([[8.0, 8.0], [torch.nan, 1.0], [torch.inf, 1.0]])]
    seen = [torch.tensor([True] * 5 + [False]), torch.tensor([True] * 3)]
    pairs = true_pairs(pixels, seen, [(2, 2)] * 2, 8)
    assert [x.tolist() for x in (pairs.image, pairs.cell, pairs.point)] == [
        [0, 0, 0, 1], [1, 2, 3, 3], [1, 0, 4, 0]]
    inner = true_pairs(pixels, seen, [(2, 2)] * 2, 8, border=1)
    assert list(zip(inner.image.tolist(), inner.cell.tolist())) == [(0, 3), (1, 3)]


def test_few_predicted_matches_are_all_taken_and_true_ones_fill_up(generator):
    def some(count, image):
        return Pairs(torch.full((count,), image), torch.arange(count), torch.arange(count))
    chosen, own = matches_to_learn(some(2, 7), some(50, 1), 100, np.random.default_rng(0))
    assert own == 2 and len(chosen) == 30 and (chosen.image[2:] == 1).all()
    chosen, own = matches_to_learn(some(60, 7), some(50, 1), 100, np.random.default_rng(0))
    assert own == 9 and (chosen.image[:9] == 7).all() and len(chosen) == 30
    chosen, own = matches_to_learn(some(60, 7), some(0, 1), 100, np.random.default_rng(0))
    assert own == len(chosen) == 9


def test_sure_matches_weigh_more_and_far_ones_nothing():
    truth = torch.zeros(3, 2)
    found = torch.tensor([[3.0, 4.0], [3.0, 4.0], [90.0, 0.0]], requires_grad=True)
    std, near = torch.tensor([1.0, 2.0, 1.0], requires_grad=True), torch.tensor([1, 1, 0]).bool()
    squared = squared_distance_loss(found, std, truth, near)
    torch.testing.assert_close(squared, torch.tensor(25 * (1.2 + 0.6) / 3))
    torch.testing.assert_close(distance_loss(found, std, truth, near),
                               torch.tensor(5 * (1 + 1 / 4) / 2))
    squared.backward()
    assert std.grad is None and found.grad[0].norm() > found.grad[1].norm() > 0
    assert (found.grad[2] == 0).all()


@needs_fixtures
@pytest.mark.parametrize('scores, clamp, loss', [
    ('conf', 1e-6, 'coarse_loss_clamped'), ('conf_noclamp', None, 'coarse_loss_unclamped')])
def test_focal_loss_equals_the_published_one(scores, clamp, loss):
    fixture = Fixture('loss')
    found = focal_loss(list(fixture[scores].log()), pairs_of(fixture['conf_gt'] > 0), clamp=clamp)
    torch.testing.assert_close(found, fixture[loss], rtol=1e-4, atol=1e-5)


@needs_fixtures
def test_padded_matches_equal_the_published_ones():
    fixture = Fixture('loss')
    confidence = fixture['conf']
    predicted = pairs_of(confidence == confidence.amax(-1, keepdim=True))
    chosen, own = matches_to_learn(
        predicted, pairs_of(fixture['conf_gt'] > 0), confidence.shape[0] * confidence.shape[1],
        np.random.RandomState(11))
    assert own == fixture['pad_pred_num']
    for ours, theirs in zip((chosen.image, chosen.cell, chosen.point), 'bij'):
        assert torch.equal(ours, fixture[f'pad_{theirs}'])
    torch.testing.assert_close(confidence[chosen.image, chosen.cell, chosen.point][:own],
                               fixture['pad_mconf'][:own])
    assert (fixture['pad_mconf'][own:] == 0).all()


@needs_fixtures
def test_fine_loss_equals_the_published_one():
    fixture = Fixture('loss')
    found = squared_distance_loss(fixture['fine_pred'], fixture['fine_std'], fixture['fine_gt'],
                                  fixture['fine_mask'])
    torch.testing.assert_close(found, fixture['fine_loss'], rtol=1e-4, atol=1e-5)


@needs_fixtures
def test_the_published_loss_of_offsets_is_the_same_over_the_matches_that_count():
    fixture = Fixture('loss')
    found, truth = fixture['exp_pred'], fixture['exp_gt']
    inside = truth.abs().amax(dim=1) < 1
    loss = squared_distance_loss(found[:, :2], found[:, 2], truth, inside)
    torch.testing.assert_close(loss * len(truth) / inside.sum(), fixture['exp_loss'])


@needs_fixtures
def test_true_pairs_and_fine_loss_of_a_training_step_equal_the_published_ones():
    fixture = Fixture('loss')
    projected = fixture['train_pt2d_proj'] - 0.5  # from the corner to the centre of a pixel
    truth = fixture['train_conf_gt']
    rows, columns = (side // 8 for side in Fixture('mini_small')['image'].shape[-2:])
    # All but the first row and column take part there; points in them are rather given to none.
    free = true_pairs(list(projected), [torch.ones(truth.shape[2]).bool()] * len(truth),
                      [(rows, columns)] * len(truth), 8)
    ours = torch.zeros_like(truth)
    ours[free.image, free.cell, free.point] = True
    assert torch.equal(ours, truth)
    image, cell, point = (fixture[f'full/match_{key}'].long() for key in 'bij')
    found, own = fixture['full/expec_f'], fixture['full/pred_mask']
    assert len(cell) == int(0.3 * truth.shape[0] * truth.shape[1])
    assert own.sum() <= int(0.3 * len(cell)) and truth[image, cell, point][~own].all()
    centres = cell_centres(cell, columns)
    places = projected[image, point]
    near = near_its_cell(places, centres)
    fine = squared_distance_loss(centres + 5 * found[:, :2], found[:, 2], places, near)
    torch.testing.assert_close(fine, fixture['full/fine_loss'], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(100 * near.float().mean(), fixture['full/coarse_pos_ratio'])
    torch.testing.assert_close((places - centres).norm(dim=-1).mean(),
                               fixture['full/coarse_dist'], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(fixture['full/coarse_loss'] + fine, fixture['full/loss'])
    torch.testing.assert_close(fixture['mini/coarse_loss'], fixture['mini/loss'])
