"""
Stamps, poses, transforms and covariances, to messages and back.

Nothing in a message is trusted: what is no pose raises a DataError that names the cause, the value
and the remedy. Frames and axes mean the same on both sides; a covariance is of x, y, z in metres,
then rotations about x, y, z in radians, axes of the frame that the pose is in.
"""

import math
from typing import Any, NamedTuple

from builtin_interfaces.msg import Time
from geometry_msgs.msg import (
    Pose,
    PoseStamped,
    PoseWithCovarianceStamped,
    Transform,
    TransformStamped,
)
from nerfmatch_ros.data.tum import pose_from_numbers, quaternion_from_rotation
from nerfmatch_ros.errors import DataError
import numpy as np
from std_msgs.msg import Header

ROTATION_TOLERANCE = 1e-3  # largest entry of |R^T R - I| that is taken for rounding
LENGTH_TOLERANCE = 0.02  # of a quaternion; 0.7 0.7 by hand for sqrt(1/2) is 0.01 off
SECOND = 1_000_000_000  # nanoseconds


class StampedPose(NamedTuple):
    """What a PoseWithCovarianceStamped says."""

    pose: np.ndarray  # (4, 4) frame_id_from_body
    covariance: np.ndarray  # (6, 6), symmetric
    stamp_ns: int
    frame_id: str  # without the slash that ROS 1 put before it


def stamp_ns(header: Header) -> int:
    """Give the stamp of a header in nanoseconds."""
    return header.stamp.sec * SECOND + header.stamp.nanosec


def stamp_message(nanoseconds: int) -> Time:
    """Make the message of a stamp in nanoseconds."""
    seconds, rest = divmod(int(nanoseconds), SECOND)
    if not -2**31 <= seconds < 2**31:
        raise DataError(f'a stamp of {seconds} s does not fit a message; check the clock')
    return Time(sec=seconds, nanosec=rest)


def pose_stamped(map_from_body: np.ndarray, stamp: Any, frame_id: str) -> PoseStamped:
    """Make a message of map_from_body (4, 4); stamp: the message of the image's own stamp."""
    return PoseStamped(header=Header(stamp=stamp, frame_id=frame_id), pose=_pose(map_from_body))


def pose_with_covariance(
    map_from_body: np.ndarray, covariance: np.ndarray, stamp: Any, frame_id: str,
) -> PoseWithCovarianceStamped:
    """Make a message of map_from_body (4, 4) and its covariance (6, 6), axes of the map."""
    values = np.asarray(covariance, np.float64)
    if values.shape != (6, 6) or not np.isfinite(values).all():
        raise DataError(f'covariance {values.tolist()} is not a finite 6 x 6 matrix')
    message = PoseWithCovarianceStamped(header=Header(stamp=stamp, frame_id=frame_id))
    message.pose.pose = _pose(map_from_body)
    message.pose.covariance = (values / 2 + values.T / 2).ravel()
    return message


def transform_stamped(
    parent_from_child: np.ndarray, stamp: Any, frame_id: str, child_frame_id: str,
) -> TransformStamped:
    """Make a message of parent_from_child (4, 4)."""
    pose = _pose(parent_from_child)
    transform = Transform(rotation=pose.orientation)
    for axis in 'xyz':
        setattr(transform.translation, axis, getattr(pose.position, axis))
    header = Header(stamp=stamp, frame_id=frame_id)
    return TransformStamped(header=header, child_frame_id=child_frame_id, transform=transform)


def matrix_from_pose(pose: Pose) -> np.ndarray:
    """Give the matrix (4, 4) of a pose message."""
    return _matrix('pose', pose.position, pose.orientation)


def matrix_from_transform(transform: Transform) -> np.ndarray:
    """Give parent_from_child (4, 4) of a transform message."""
    return _matrix('transform', transform.translation, transform.rotation)


def read_pose_with_covariance(message: PoseWithCovarianceStamped) -> StampedPose:
    """
    Give the pose, covariance, stamp and frame of a message.

    Refused are numbers that are not finite, a quaternion far from unit length and negative
    variances. A covariance of zeros passes, it is how senders say that they know none.
    """
    values = np.array(message.pose.covariance, np.float64)
    if values.shape != (36,):
        raise DataError(f'covariance has {values.size} numbers; it must have 36, row by row')
    if not np.isfinite(values).all():
        raise DataError(f'covariance {values.tolist()} is not finite')
    covariance = values.reshape(6, 6)
    variances = covariance.diagonal()
    if (variances < 0).any():
        raise DataError(f'covariance has negative variances: {variances.tolist()} for x, y, z '
                        'and rotations about x, y, z')
    return StampedPose(
        matrix_from_pose(message.pose.pose), covariance / 2 + covariance.T / 2,
        stamp_ns(message.header), message.header.frame_id.lstrip('/'))


def _matrix(name: str, position: Any, orientation: Any) -> np.ndarray:
    """Give the matrix (4, 4) of a position and a quaternion message."""
    p, q = position, orientation
    numbers = (p.x, p.y, p.z, q.x, q.y, q.z, q.w)
    if not all(map(math.isfinite, numbers)):
        raise DataError(f'{name} {list(numbers)} (x y z, quaternion x y z w) is not finite')
    length = math.hypot(q.x, q.y, q.z, q.w)
    if abs(length - 1) > LENGTH_TOLERANCE:
        raise DataError(
            f'{name} has the quaternion {list(numbers[3:])} (x y z w) of length {length:.4g}; '
            'it must be 1' + ('; 0 0 0 1 is no rotation' if length == 0 else ''))
    return pose_from_numbers(numbers)


def _pose(map_from_body: np.ndarray) -> Pose:
    """Make a pose message of map_from_body (4, 4); its quaternion has unit length."""
    matrix = np.asarray(map_from_body, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise DataError(f'pose {matrix.tolist()} is not a finite 4 x 4 matrix')
    rotation = matrix[:3, :3]
    if (np.abs(rotation.T @ rotation - np.eye(3)).max() > ROTATION_TOLERANCE
            or np.linalg.det(rotation) < 0):
        raise DataError(f'pose {matrix.tolist()} does not hold a rotation')
    pose = Pose()
    pose.position.x, pose.position.y, pose.position.z = matrix[:3, 3].tolist()
    orientation = pose.orientation
    orientation.x, orientation.y, orientation.z, orientation.w = (
        quaternion_from_rotation(rotation).tolist())
    return pose
