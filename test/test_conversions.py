"""Stamps, poses and covariances to messages and back."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import DataError
import numpy as np
import pytest

pytest.importorskip('geometry_msgs.msg', reason='needs the messages of ROS 2 (extra ros-wheels)')

from builtin_interfaces.msg import Time  # noqa: E402
from nerfmatch_ros.ros import conversions  # noqa: E402
from std_msgs.msg import Header  # noqa: E402

STAMP = Time(sec=1_403_715_273, nanosec=262_142_976)


def random_pose(rng):
    pose = np.eye(4)
    pose[:3, :3] = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    pose[:3, 0] *= np.linalg.det(pose[:3, :3])
    pose[:3, 3] = rng.standard_normal(3) * 10
    return pose


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_a_pose_survives_the_way_through_a_message(seed):
    pose = random_pose(np.random.default_rng(seed))
    message = conversions.pose_stamped(pose, STAMP, 'map')
    assert message.header.stamp == STAMP and message.header.frame_id == 'map'
    q = message.pose.orientation
    assert math.hypot(q.x, q.y, q.z, q.w) == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(conversions.matrix_from_pose(message.pose), pose, atol=1e-12)
    transform = conversions.transform_stamped(pose, STAMP, 'map', 'camera')
    assert (transform.header, transform.child_frame_id) == (message.header, 'camera')
    assert transform.transform.rotation == message.pose.orientation
    assert transform.transform.translation.y == message.pose.position.y


def test_a_pose_that_is_none_raises():
    for broken in (np.full((4, 4), np.nan), np.eye(3), 2 * np.eye(4), np.diag((1, 1, -1, 1.0))):
        with pytest.raises(DataError, match='pose'):
            conversions.pose_stamped(broken, STAMP, 'map')


def test_covariance_is_row_major_and_symmetric():
    covariance = np.arange(36.0).reshape(6, 6)
    message = conversions.pose_with_covariance(np.eye(4), covariance, STAMP, 'map')
    sent = np.array(message.pose.covariance).reshape(6, 6)
    np.testing.assert_array_equal(sent, (covariance + covariance.T) / 2)
    with pytest.raises(DataError, match='6 x 6'):
        conversions.pose_with_covariance(np.eye(4), np.full((6, 6), np.nan), STAMP, 'map')


def test_a_stamp_keeps_its_nanoseconds():
    assert conversions.stamp_ns(Header(stamp=STAMP)) == 1_403_715_273_262_142_976
