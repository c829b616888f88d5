"""Rough poses for measuring registration: as rough as asked for."""

import math

from nerfmatch_ros.data.pose_noise import drifting, noisy
from nerfmatch_ros.geometry.pose import pose_distance
import numpy as np
import torch


def a_way(count):
    angle = np.linspace(0, 2 * np.pi, count)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = np.stack((2 * np.cos(angle), 2 * np.sin(angle), 0 * angle), axis=-1)
    return poses


def errors(truth, rough):
    return [value.numpy() for value in pose_distance(
        torch.from_numpy(truth), torch.from_numpy(rough))]


def test_independent_errors_have_the_size_that_was_asked_for():
    truth = a_way(4000)
    rough = noisy(truth, 0.05, math.radians(3), torch.Generator().manual_seed(0))
    metres, radians = errors(truth, rough)
    assert np.isclose(np.sqrt(np.mean(metres ** 2)), 0.05 * math.sqrt(3), rtol=0.05)
    assert np.isclose(np.sqrt(np.mean(radians ** 2)), math.radians(3) * math.sqrt(3), rtol=0.05)


def test_drift_begins_at_nothing_and_is_small_from_one_pose_to_the_next():
    truth = a_way(200)
    rough = drifting(truth, 0.01, math.radians(0.5), torch.Generator().manual_seed(1))
    metres, radians = errors(truth, rough)
    assert metres[0] < 1e-9 and radians[0] < 1e-7
    assert metres[-1] > 0.01
    steps = np.linalg.norm(np.diff(rough[:, :3, 3], axis=0), axis=1)
    assert np.allclose(steps, np.linalg.norm(np.diff(truth[:, :3, 3], axis=0), axis=1), rtol=0.1)


def test_turns_drift_by_their_own_rate():
    truth = a_way(100)
    rough = drifting(truth, 0.01, 0.0, torch.Generator().manual_seed(2))
    assert errors(truth, rough)[1].max() < 1e-6
