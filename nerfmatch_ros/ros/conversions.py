"""
Stamps, poses, transforms and covariances, to messages and back.

Both sides have optical axes (x right, y down, z forward) for cameras, so poses need no change of
convention.
"""

from typing import Any

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


def stamp_ns(header: Header) -> int:
    """Give the stamp of a header in nanoseconds."""
    return header.stamp.sec * 1_000_000_000 + header.stamp.nanosec


def pose_stamped(map_from_camera: np.ndarray, stamp: Any, frame_id: str) -> PoseStamped:
    """Make a message of map_from_camera (4, 4); stamp: the message of the image's own stamp."""
    return PoseStamped(header=Header(stamp=stamp, frame_id=frame_id), pose=_pose(map_from_camera))


def pose_with_covariance(
    map_from_camera: np.ndarray, covariance: np.ndarray, stamp: Any, frame_id: str,
) -> PoseWithCovarianceStamped:
    """Make a message of map_from_camera (4, 4) and its covariance (6, 6).

    covariance: x, y, z in metres, then rotations about x, y, z in radians, axes of the map.
    """
    values = np.asarray(covariance, np.float64)
    if values.shape != (6, 6) or not np.isfinite(values).all():
        raise DataError(f'covariance {values.tolist()} is not a finite 6 x 6 matrix')
    message = PoseWithCovarianceStamped(header=Header(stamp=stamp, frame_id=frame_id))
    message.pose.pose = _pose(map_from_camera)
    message.pose.covariance = ((values + values.T) / 2).ravel()
    return message


def transform_stamped(
    map_from_camera: np.ndarray, stamp: Any, frame_id: str, child_frame_id: str,
) -> TransformStamped:
    """Make a message of map_from_camera (4, 4): the camera frame is the child of the map's."""
    pose = _pose(map_from_camera)
    transform = Transform(rotation=pose.orientation)
    for axis in 'xyz':
        setattr(transform.translation, axis, getattr(pose.position, axis))
    header = Header(stamp=stamp, frame_id=frame_id)
    return TransformStamped(header=header, child_frame_id=child_frame_id, transform=transform)


def matrix_from_pose(pose: Pose) -> np.ndarray:
    """Give the matrix (4, 4) of a pose message."""
    p, q = pose.position, pose.orientation
    return pose_from_numbers((p.x, p.y, p.z, q.x, q.y, q.z, q.w))


def _pose(map_from_camera: np.ndarray) -> Pose:
    """Make a pose message of map_from_camera (4, 4); its quaternion has unit length."""
    matrix = np.asarray(map_from_camera, np.float64)
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
