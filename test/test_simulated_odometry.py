"""Drift of simulated odometry."""

from nerfmatch_ros.data.simulated_odometry import simulate_odometry
from nerfmatch_ros.geometry.pose import pose_distance, so3_exp
import numpy as np
import pytest
import torch


def curve(metres, count):
    """A way of given length that turns by 1 radian."""
    poses = np.tile(np.eye(4), (count, 1, 1))
    angles = torch.zeros(count, 3, dtype=torch.float64)
    angles[:, 2] = torch.linspace(0, 1, count)
    poses[:, :3, :3] = so3_exp(angles)
    poses[:, 0, 3] = np.linspace(0, metres, count)
    return poses


def errors(way, noise, seed):
    odometry, map_from_odom = simulate_odometry(way, noise, torch.Generator().manual_seed(seed))
    return pose_distance(torch.from_numpy(way), torch.from_numpy(map_from_odom @ odometry))


def test_without_noise_odometry_is_the_way_seen_from_its_own_origin(generator):
    way = curve(3.0, 20)
    odometry, map_from_odom = simulate_odometry(way, 0.0, generator)
    np.testing.assert_allclose(map_from_odom @ odometry, way, atol=1e-12)
    assert np.abs(map_from_odom - np.eye(4)).max() > 0.01


def test_drift_begins_at_nothing_grows_smoothly_and_is_seeded():
    way = curve(10.0, 400)
    metres, radians = errors(way, 0.02, seed=3)
    assert metres[0] < 1e-12 and metres[-1] > 0.01 and radians[-1] > 0.001
    # No step is off by more than a few standard deviations of its own motion.
    assert metres.diff().abs().max() < 5 * 0.02 * 10 / 399 + metres.max() * 0.02
    again, _ = errors(way, 0.02, seed=3)
    other, _ = errors(way, 0.02, seed=4)
    assert (again == metres).all() and other[-1] != metres[-1]


@pytest.mark.parametrize('count', [2, 41])
def test_the_error_of_a_short_motion_is_the_stated_share_however_finely_sampled(count):
    way = curve(0.2, count)
    way[:, :3, :3] = np.eye(3)
    ends = np.array([errors(way, 0.05, seed)[0][-1].item() for seed in range(300)])
    # Three axes of standard deviation 0.05 * 0.2 each.
    assert np.sqrt((ends ** 2).mean() / 3) == pytest.approx(0.01, rel=0.15)
