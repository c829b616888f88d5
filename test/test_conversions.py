"""Stamps, poses, transforms and covariances to messages and back."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import DataError
import numpy as np
import pytest

pytest.importorskip('geometry_msgs.msg', reason='needs the messages of ROS 2 (extra ros-wheels)')

from builtin_interfaces.msg import Time  # noqa: E402
from geometry_msgs.msg import PoseWithCovarianceStamped  # noqa: E402
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
    np.testing.assert_array_equal(
        conversions.matrix_from_transform(transform.transform),
        conversions.matrix_from_pose(message.pose))


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


@settings(deadline=None, max_examples=50)
@given(st.integers(-2**31, 2**31 - 1), st.integers(0, 999_999_999))
def test_a_stamp_survives_the_way_through_nanoseconds_bit_by_bit(sec, nanosec):
    header = Header(stamp=Time(sec=sec, nanosec=nanosec))
    assert conversions.stamp_message(conversions.stamp_ns(header)) == header.stamp


def test_a_stamp_that_no_message_holds_raises():
    for stamp in (2**31 * 10**9, -2**31 * 10**9 - 1):
        with pytest.raises(DataError, match='clock'):
            conversions.stamp_message(stamp)


def stamped(position=(1.0, 2.0, 3.0), quaternion=(0.0, 0.0, 0.6, 0.8), covariance=(0.0,) * 36,
            frame='map'):
    message = PoseWithCovarianceStamped(header=Header(stamp=STAMP, frame_id=frame))
    pose = message.pose.pose
    pose.position.x, pose.position.y, pose.position.z = position
    (pose.orientation.x, pose.orientation.y, pose.orientation.z, pose.orientation.w) = quaternion
    message.pose.covariance = np.array(covariance)
    return message


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_what_is_published_with_a_covariance_is_read_again(seed):
    rng = np.random.default_rng(seed)
    pose, factor = random_pose(rng), rng.standard_normal((6, 6))
    message = conversions.pose_with_covariance(pose, factor @ factor.T, STAMP, 'map')
    read = conversions.read_pose_with_covariance(message)
    np.testing.assert_allclose(read.pose, pose, atol=1e-12)
    np.testing.assert_allclose(read.covariance, factor @ factor.T, atol=1e-12)
    assert (read.stamp_ns, read.frame_id) == (1_403_715_273_262_142_976, 'map')


def test_a_pose_without_a_covariance_and_with_a_slash_is_read():
    read = conversions.read_pose_with_covariance(stamped(frame='/map'))
    assert read.frame_id == 'map' and not read.covariance.any()
    np.testing.assert_allclose(read.pose[:3, 0], (0.28, 0.96, 0.0), atol=1e-12)


def test_a_quaternion_that_was_rounded_is_made_a_rotation():
    read = conversions.read_pose_with_covariance(stamped(quaternion=(0.0, 0.0, 0.7, 0.7)))
    np.testing.assert_allclose(read.pose[:3, :3] @ read.pose[:3, :3].T, np.eye(3), atol=1e-12)


def with_entry(row, column, value):
    covariance = np.eye(6)
    covariance[row, column] = value
    return covariance.ravel()


@pytest.mark.parametrize('changes, cause', [
    ({'position': (math.nan, 0.0, 0.0)}, 'pose .* is not finite'),
    ({'position': (0.0, 0.0, -math.inf)}, 'pose .* is not finite'),
    ({'quaternion': (0.0, 0.0, 0.0, math.nan)}, 'not finite'),
    ({'quaternion': (0.0, 0.0, 0.0, 0.0)}, 'length 0; it must be 1; 0 0 0 1 is no rotation'),
    ({'quaternion': (0.0, 0.0, 0.0, 2.0)}, 'length 2; it must be 1'),
    ({'quaternion': (0.5, 0.5, 0.5, 0.4)}, r'length 0\.95'),
    ({'quaternion': (1e308, 1e308, 1e308, 1e308)}, 'it must be 1'),
    ({'covariance': with_entry(2, 2, -1e-9)}, 'negative variances'),
    ({'covariance': with_entry(5, 5, -math.inf)}, 'not finite'),
    ({'covariance': with_entry(1, 2, math.nan)}, 'not finite'),
])
def test_a_pose_with_covariance_that_is_none_raises_with_the_cause(changes, cause):
    with pytest.raises(DataError, match=cause):
        conversions.read_pose_with_covariance(stamped(**changes))


@pytest.mark.parametrize('quaternion, cause', [
    ((0.0, 0.0, 0.0, 0.0), 'transform has the quaternion .* length 0'),
    ((math.nan, 0.0, 0.0, 1.0), 'transform .* is not finite')])
def test_a_transform_that_is_none_raises_with_the_cause(quaternion, cause):
    transform = conversions.transform_stamped(np.eye(4), STAMP, 'map', 'camera').transform
    (transform.rotation.x, transform.rotation.y, transform.rotation.z,
     transform.rotation.w) = quaternion
    with pytest.raises(DataError, match=cause):
        conversions.matrix_from_transform(transform)


numbers = st.floats(width=64) | st.floats(-2, 2) | st.sampled_from((0.0, 1.0))


@settings(deadline=None, max_examples=200)
@given(st.tuples(*[numbers] * 3), st.tuples(*[numbers] * 4),
       st.lists(numbers, min_size=36, max_size=36) | st.just([0.0] * 36))
def test_any_pose_with_covariance_is_finite_or_a_data_error(position, quaternion, covariance):
    try:
        read = conversions.read_pose_with_covariance(stamped(position, quaternion, covariance))
    except DataError as error:
        assert len(str(error)) > 20
        return
    assert np.isfinite(read.pose).all() and np.isfinite(read.covariance).all()
    np.testing.assert_allclose(read.pose[:3, :3] @ read.pose[:3, :3].T, np.eye(3), atol=1e-9)
    np.testing.assert_array_equal(read.covariance, read.covariance.T)
