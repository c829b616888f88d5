import math

from nerfmatch_ros.evaluation import metrics
from nerfmatch_ros.geometry.pose import perturb
import numpy as np
import pytest
import torch


def moved(pose, delta):
    return perturb(torch.from_numpy(pose), torch.as_tensor(delta, dtype=torch.float64)).numpy()


def random_pose(rng):
    return moved(np.eye(4), rng.normal(size=6))


def errors(pairs):
    translation, rotation = np.array(pairs, dtype=float).T
    return metrics.PoseErrors(translation, rotation)


def test_errors_are_the_length_of_the_move_and_the_angle_of_the_turn():
    rng = np.random.default_rng(1)
    true = [random_pose(rng) for _ in range(20)]
    deltas = rng.normal(size=(20, 6)) * 10.0 ** rng.uniform(-7, 0, size=(20, 1))
    measured = metrics.pose_errors([moved(p, d) for p, d in zip(true, deltas)], true)
    np.testing.assert_allclose(
        measured.translation, np.linalg.norm(deltas[:, :3], axis=1), rtol=1e-6)
    np.testing.assert_allclose(
        measured.rotation, np.degrees(np.linalg.norm(deltas[:, 3:], axis=1)), rtol=1e-6)


def test_half_turn_has_180_degrees():
    measured = metrics.pose_errors([np.diag([1.0, -1.0, -1.0, 1.0])], [np.eye(4)])
    assert measured.rotation[0] == pytest.approx(180)


def test_missing_or_broken_estimate_has_infinite_error():
    measured = metrics.pose_errors([None, np.full((4, 4), np.nan), np.eye(4)], [np.eye(4)] * 3)
    assert measured.translation.tolist() == [math.inf, math.inf, 0]
    assert measured.rotation.tolist() == [math.inf, math.inf, 0]


def test_errors_need_as_many_estimates_as_truths():
    with pytest.raises(ValueError, match='2 estimates for 1 true'):
        metrics.pose_errors([None, None], [np.eye(4)])


def test_median_counts_failures_as_worst():
    assert metrics.median(np.array([1.0, 2.0, math.inf])) == 2
    assert metrics.median(np.array([1.0, 2.0, 3.0, math.inf])) == 2.5
    assert metrics.median(np.array([1.0, math.inf])) == math.inf
    assert metrics.median(np.array([math.inf, math.inf])) == math.inf
    assert math.isnan(metrics.median(np.array([])))


def test_percentile_agrees_with_numpy_on_finite_values():
    values = np.random.default_rng(2).normal(size=31)
    for percent in (0, 5, 50, 61.8, 95, 100):
        assert metrics.percentile(values, percent) == pytest.approx(
            np.percentile(values, percent))


def test_recall_keeps_every_query_in_the_denominator():
    measured = errors([(0.01, 0.1), (0.04, 0.9), (0.2, 1.5), (math.inf, math.inf)])
    assert metrics.recalls(measured, extent=2.0) == {
        '5cm_5deg': 0.5, '10cm_1deg': 0.5, '25cm_2deg': 0.75, '50cm_5deg': 0.75,
        '1pct_extent_1deg': 0.25}


def test_recall_needs_both_position_and_rotation():
    measured = errors([(0.001, 6.0), (0.6, 0.001)])
    assert set(metrics.recalls(measured, extent=1.0).values()) == {0}


def test_recall_of_no_queries_is_zero():
    assert metrics.recall(metrics.PoseErrors(np.zeros(0), np.zeros(0)), 1.0, 1.0) == 0


def test_confident_but_wrong_needs_a_pose_an_error_and_confidence():
    measured = errors([(0.6, 1), (0.6, 1), (0.4, 1), (math.inf, math.inf), (0.6, 1)])
    std = np.array([0.01, 0.2, 0.01, 0.01, math.nan])
    assert metrics.confident_but_wrong(measured, std) == 1


def test_honest_covariance_has_a_nees_of_six():
    rng = np.random.default_rng(3)
    estimated, true, covariances = [], [], []
    for _ in range(1000):
        root = rng.normal(size=(6, 6)) * 0.01
        true.append(random_pose(rng))
        # The error is drawn from the covariance in the convention of a ROS pose message.
        estimated.append(moved(true[-1], root @ rng.normal(size=6)))
        covariances.append(root @ root.T)
    assert metrics.average_nees(estimated, true, covariances) == pytest.approx(6, abs=0.4)
    confident = [covariance / 4 for covariance in covariances]
    assert metrics.average_nees(estimated, true, confident) == pytest.approx(24, abs=1.6)


def test_nees_leaves_out_queries_without_pose_or_covariance():
    pose, near = np.eye(4), moved(np.eye(4), [0.1, 0, 0, 0, 0, 0])
    estimated = [near, None, near]
    covariances = [np.eye(6) * 0.01, None, None]
    assert metrics.average_nees(estimated, [pose] * 3, covariances) == pytest.approx(1)
    assert math.isnan(metrics.average_nees([None], [pose], [None]))
    assert metrics.average_nees([near], [pose], [np.zeros((6, 6))]) == math.inf
