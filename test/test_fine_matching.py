"""Fine matching: windows around cells, peaks found between pixels, the loss."""

from nerfmatch_ros.matching.fine_matching import (
    expectation,
    fine_logits,
    fine_loss,
    window_features,
)
from nerfmatch_ros.matching.matcher import cell_centres, MatcherConfig
import pytest
import torch
import torch.nn.functional as F

ROWS, COLUMNS, WINDOW = 24, 32, MatcherConfig().window
NO_IMAGE = torch.zeros(1, dtype=torch.int64)


def position_map(images=1):
    """Fine maps (B, 3, rows, columns) that hold image, u and v of their own pixels."""
    v, u = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing='ij')
    return torch.stack([torch.stack([torch.full_like(u, b), u, v]) for b in range(images)]).float()


def test_window_is_symmetric_around_its_cell_and_reaches_into_the_neighbours():
    centre = cell_centres(torch.tensor([2 * COLUMNS // 4 + 3]), COLUMNS // 4)
    _, positions, inside = window_features(position_map(), NO_IMAGE, centre, WINDOW)
    assert inside.all()
    torch.testing.assert_close(positions[0].mean(0), centre[0])
    # Cells are 8 pixels wide: the whole cell and more than one fine pixel on each side.
    assert (positions[0].amin(0) <= centre[0] - 4 - 1).all()
    assert (positions[0].amax(0) >= centre[0] + 4 + 1).all()


def test_features_are_those_of_the_positions_given(generator):
    image = torch.randint(3, (20,), generator=generator)
    centres = torch.rand(20, 2, generator=generator) * torch.tensor([2 * COLUMNS, 2 * ROWS])
    features, positions, inside = window_features(position_map(3), image, centres, 5)
    taken = features[inside]
    torch.testing.assert_close(taken[:, 1:] * 2 + 0.5, positions[inside])
    assert torch.equal(taken[:, 0], image[:, None].expand_as(inside)[inside].float())


def test_positions_outside_of_the_picture_are_told_and_get_no_probability():
    features, positions, inside = window_features(
        position_map(), NO_IMAGE, torch.tensor([[3.5, 3.5]]), WINDOW)
    outside = (positions < 0).any(-1)
    assert outside.any() and torch.equal(inside, ~outside)
    logits = fine_logits(features, torch.ones(1, 3), inside, torch.tensor(10.0))
    assert logits.softmax(-1)[outside].max() == 0


@pytest.mark.parametrize('truth', [(43.5, 27.5), (40.7, 30.2), (46.9, 25.1)])
def test_a_planted_peak_is_found_between_pixels(truth):
    truth = torch.tensor([truth])
    centre = cell_centres(torch.tensor([3 * 8 + 5]), 8)
    _, positions, inside = window_features(position_map(), NO_IMAGE, centre, WINDOW)
    logits = -((positions - truth[:, None]) ** 2).sum(-1) / (2 * 1.5 ** 2)
    mean, variance = expectation(logits, positions)
    assert (mean - truth).norm() < 0.15
    assert variance.item() == pytest.approx(2 * 1.5 ** 2, rel=0.1)


def test_logits_are_scaled_cosines(generator):
    features = torch.randn(4, 9, 5, generator=generator)
    points = torch.randn(4, 5, generator=generator)
    inside = torch.ones(4, 9, dtype=torch.bool)
    logits = fine_logits(features, points, inside, torch.tensor(7.0))
    expected = 7 * F.cosine_similarity(features, points[:, None], dim=-1)
    torch.testing.assert_close(logits, expected)


def some_windows(count, generator):
    centres = 24 + 16 * torch.rand(count, 2, generator=generator)
    image = torch.zeros(count, dtype=torch.int64)
    _, positions, inside = window_features(position_map(), image, centres, WINDOW)
    return centres, positions, inside


def test_descending_the_loss_finds_the_truth(generator):
    centres, positions, inside = some_windows(10, generator)
    truth = centres + 3 * (torch.rand(10, 2, generator=generator) - 0.5)
    logits = torch.zeros(positions.shape[:2], requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    first = fine_loss(logits, positions, inside, truth).item()
    for _ in range(150):
        optimizer.zero_grad()
        loss = fine_loss(logits, positions, inside, truth)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    assert (expectation(logits.detach(), positions)[0] - truth).norm(dim=-1).max() < 0.2


def test_truth_outside_of_the_window_does_not_count(generator):
    centres, positions, inside = some_windows(6, generator)
    logits = torch.randn(positions.shape[:2], generator=generator)
    truth = centres.clone()
    expected = fine_loss(logits[:4], positions[:4], inside[:4], truth[:4])
    truth[4:] += 40
    torch.testing.assert_close(fine_loss(logits, positions, inside, truth), expected)
    nothing = fine_loss(logits.requires_grad_(), positions, inside, truth + 100)
    assert nothing.item() == 0 and nothing.requires_grad
