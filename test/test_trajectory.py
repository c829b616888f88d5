"""Poses between stamps."""

from nerfmatch_ros.data.trajectory import Trajectory
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import so3_exp
import numpy as np
import pytest
import torch


def turned(x, yaw):
    pose = np.eye(4)
    pose[:3, :3] = so3_exp(torch.tensor((0.0, 0.0, yaw), dtype=torch.float64)).numpy()
    pose[0, 3] = x
    return pose


WAY = Trajectory.of([(300, turned(3.0, 0.6)), (100, turned(1.0, 0.2)), (200, turned(1.0, 0.2))])


def test_stored_stamps_give_stored_poses_bit_by_bit():
    assert (WAY.at([200, 100, 300]) == WAY.poses[[1, 0, 2]]).all()


def test_between_stamps_position_is_straight_and_rotation_even():
    np.testing.assert_allclose(
        WAY.at([150, 225, 275]), [turned(1.0, 0.2), turned(1.5, 0.3), turned(2.5, 0.5)],
        atol=1e-12)


def test_outside_and_in_long_gaps_there_is_no_pose():
    poses = WAY.at([99, 301, 250])
    assert np.isnan(poses[:2]).all() and np.isfinite(poses[2]).all()
    assert np.isnan(WAY.at([250], longest_gap_ns=99)).all()
    assert np.isfinite(WAY.at([250, 200], longest_gap_ns=100)).all()
    assert np.isnan(Trajectory.of([]).at([5])).all()


def test_the_last_of_equal_stamps_counts_and_disorder_is_refused():
    assert Trajectory.of([(1, turned(0, 0)), (1, turned(2, 0))]).at([1])[0, 0, 3] == 2
    with pytest.raises(DataError, match='100 ns .* does not come after 200 ns'):
        Trajectory(np.array([200, 100]), WAY.poses[:2])


def test_stamps_of_today_keep_their_nanoseconds():
    now = 1_700_000_000_000_000_001
    way = Trajectory.of([(now, turned(0, 0)), (now + 2, turned(1, 0))])
    assert way.at([now + 1])[0, 0, 3] == pytest.approx(0.5)
