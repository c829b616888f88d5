from nerfmatch_ros.radiance_field.interval_refinement import (
    distance_at,
    even_steps,
    redrawn_steps,
    SPACINGS,
)
import pytest
import torch


@pytest.mark.parametrize('spacing', SPACINGS)
def test_distances_run_from_near_to_far(spacing):
    near, far = torch.tensor([0.0, 0.5, 3.0]), torch.tensor([2.0, 1000.0, 50.0])
    distances = distance_at(torch.linspace(0, 1, 9).expand(3, -1), near, far, spacing)
    torch.testing.assert_close(distances[:, 0], near)
    torch.testing.assert_close(distances[:, -1], far, rtol=1e-3, atol=0)
    assert (distances.diff(dim=1) > 0).all()


def test_piecewise_steps_are_even_near_by_and_grow_far_away():
    near, far = torch.zeros(1), torch.tensor([1000.0])
    distances = distance_at(torch.linspace(0, 1, 101)[None], near, far, 'piecewise')[0]
    close = distances[distances <= 1].diff()
    torch.testing.assert_close(close, close[:1].expand_as(close), rtol=1e-3, atol=1e-5)
    inverse = (1 / distances[distances >= 1.1]).diff()
    torch.testing.assert_close(inverse, inverse[:1].expand_as(inverse), rtol=1e-2, atol=1e-4)


def test_random_steps_stay_between_their_neighbours(generator):
    even, moved = (even_steps(50, 8, torch.zeros(1), g) for g in (None, generator))
    assert (moved.diff(dim=1) > 0).all() and (moved >= 0).all() and (moved <= 1).all()
    assert ((moved - even).abs() <= 0.5 / 8 + 1e-6).all() and (moved - even).abs().max() > 0.02


def test_redrawn_steps_gather_where_the_weight_is(generator):
    steps = even_steps(4, 20, torch.zeros(1))
    weights = torch.zeros(4, 20)
    weights[torch.arange(4), [2, 7, 12, 19]] = 1.0
    for draw in (None, generator):
        redrawn = redrawn_steps(steps, weights, 40, draw, padding=0.001)
        assert redrawn.shape == (4, 41) and (redrawn.diff(dim=1) >= 0).all()
        bins = (redrawn * 20).long()
        for row, peak in zip(bins, [2, 7, 12, 19]):
            assert (row == peak).float().mean() > 0.9


def test_redrawn_steps_of_nothing_are_even():
    redrawn = redrawn_steps(even_steps(2, 10, torch.zeros(1)), torch.zeros(2, 10), 5)
    torch.testing.assert_close(redrawn, ((torch.arange(6) + 0.5) / 6).expand(2, -1))
