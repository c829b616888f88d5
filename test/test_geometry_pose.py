"""Pose and certainty of predicted geometry."""

import math

from nerfmatch_ros.geometry.pose import perturb, pose_difference, transform_points
from nerfmatch_ros.localization.geometry_pose import (
    covariance_with,
    pose_of_geometry,
    weighted_median,
)
from nerfmatch_ros.localization.rigid_motion import difference
import numpy as np
import pytest
import torch

TRUTH = perturb(torch.eye(4, dtype=torch.float64),
                torch.tensor([0.4, -1.2, 2.0, 0.3, -0.7, 0.2], dtype=torch.float64))


def seen(generator, count=300):
    """Give points in a camera, 1 to 4 m before it, and the same in the map."""
    spread = torch.rand(count, 3, generator=generator, dtype=torch.float64)
    camera = torch.cat((spread[:, :2] * 2 - 1, torch.ones(count, 1)), dim=1) \
        * (1 + 3 * spread[:, 2:])
    return transform_points(TRUTH, camera), camera


def test_exact_geometry_gives_the_pose(generator):
    points, camera = seen(generator)
    found = pose_of_geometry(points, camera, torch.rand(300, generator=generator))
    np.testing.assert_allclose(found.map_from_camera, TRUTH, atol=1e-9)
    assert found.reason == '' and found.evidence.residual_share < 1e-9
    assert found.evidence.off_ray < 1e-7


def test_cells_without_weight_do_not_count(generator):
    points, camera = seen(generator)
    weights = torch.ones(300)
    weights[:150], points[:150] = 0, 7.0
    found = pose_of_geometry(points, camera, weights)
    np.testing.assert_allclose(found.map_from_camera, TRUTH, atol=1e-9)
    assert found.evidence.effective_share == pytest.approx(0.5)
    assert found.evidence.mean_weight == pytest.approx(0.5)


def test_the_covariance_is_that_of_repeated_estimates(generator):
    points, camera = seen(generator, 200)
    weights = 0.2 + torch.rand(200, generator=generator, dtype=torch.float64)
    # Noise of every cell along z only, larger where x is: unlike what equal errors would give.
    size = 0.05 * (1 + (points[:, :1] - points[:, :1].min()))
    axis = torch.tensor([0.1, 0.1, 1.0], dtype=torch.float64)
    deltas, predicted = [], []
    for _ in range(600):
        noise = size * axis * torch.randn(200, 3, generator=generator, dtype=torch.float64)
        found = pose_of_geometry(points + noise, camera, weights)
        deltas.append(pose_difference(TRUTH, torch.from_numpy(found.map_from_camera)))
        predicted.append(found.covariance)
    true = np.cov(torch.stack(deltas).numpy().T)
    ratios = np.linalg.eigvals(np.linalg.solve(np.mean(predicted, axis=0), true)).real
    assert 0.75 < ratios.min() and ratios.max() < 1.33


def test_the_covariance_of_what_cells_err_by_together_is_that_of_repeated_estimates(generator):
    points, camera = seen(generator, 60)
    weights = 0.2 + torch.rand(60, generator=generator, dtype=torch.float64)
    middle = weights @ points / weights.sum()
    exact = pose_of_geometry(points, camera, weights)
    np.testing.assert_allclose(exact.middle, middle)
    deltas = []
    for _ in range(1000):  # all that is seen is shifted by 5 cm and turned by 0.02 rad
        shift, turn = torch.randn(2, 3, generator=generator, dtype=torch.float64)
        moved = perturb(torch.eye(4, dtype=torch.float64),
                        torch.cat((torch.zeros(3), 0.02 * turn)))
        found = pose_of_geometry(transform_points(moved, points - middle) + middle + 0.05 * shift,
                                 camera, weights)
        deltas.append(difference(found.map_from_camera, exact.map_from_camera))
    true = np.cov(np.array(deltas).T)
    predicted = covariance_with(exact, 1.0, 0.05, 0.02)
    ratios = np.linalg.eigvals(np.linalg.solve(predicted, true)).real
    assert 0.8 < ratios.min() and ratios.max() < 1.25


def test_evidence_grows_worse_with_noise(generator):
    points, camera = seen(generator)
    noise = torch.randn(300, 3, generator=generator, dtype=torch.float64)
    small, large = (pose_of_geometry(points + size * noise, camera, torch.ones(300)).evidence
                    for size in (0.01, 0.3))
    assert small.residual == pytest.approx(0.01 * math.sqrt(3), rel=0.15)
    for name in ('residual', 'residual_share', 'off_ray', 'position_std', 'rotation_std'):
        assert getattr(small, name) < 0.2 * getattr(large, name)


def on_a_line(points, camera, weights):
    return points[:1] + points[:1] * camera[:, 2:], camera[:1] * camera[:, 2:], weights


@pytest.mark.parametrize('spoil, reason', [
    (on_a_line, 'line'),
    (lambda points, camera, weights: (points, camera, 0 * weights), 'no cell'),
    (lambda points, camera, weights: (points / 0, camera, weights), 'not finite'),
    (lambda points, camera, weights: (points, camera * 0, weights), 'line')])
def test_geometry_that_fixes_no_pose_says_why(generator, spoil, reason):
    found = pose_of_geometry(*spoil(*seen(generator), torch.ones(300, dtype=torch.float64)))
    assert found.map_from_camera is None and found.covariance is None and found.evidence is None
    assert reason in found.reason


def test_a_weighted_median_goes_by_the_weight():
    values, weights = np.array([5.0, 1.0, 3.0]), np.array([1.0, 1.0, 1.0])
    assert weighted_median(values, weights) == 3.0
    assert weighted_median(values, np.array([9.0, 1.0, 1.0])) == 5.0
