"""
The messages of a bag, made and read without a ROS installation.

They have the fields of the ROS messages of the same names; the functions that read them take those
of ROS too.
"""

import struct
from typing import Any

from nerfmatch_ros.data.tum import numbers_from_pose, pose_from_numbers
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros.bag import TYPES
import numpy as np

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'
TRANSFORMS = 'tf2_msgs/msg/TFMessage'
POSE = 'geometry_msgs/msg/PoseStamped'
POSE_WITH_COVARIANCE = 'geometry_msgs/msg/PoseWithCovarianceStamped'
ODOMETRY = 'nav_msgs/msg/Odometry'
TRANSFORM = 'geometry_msgs/msg/TransformStamped'
STATUS = 'diagnostic_msgs/msg/DiagnosticStatus'

DISTORTION_MODELS = {'PINHOLE': 'plumb_bob', 'OPENCV': 'plumb_bob',
                     'OPENCV_FISHEYE': 'equidistant', 'RATIONAL': 'rational_polynomial'}


def _make(name: str, **fields: Any) -> Any:
    return TYPES.types[name](**fields)


def make_header(stamp_ns: int, frame_id: str) -> Any:
    """Make a std_msgs/Header."""
    stamp = _make('builtin_interfaces/msg/Time', sec=stamp_ns // 10**9, nanosec=stamp_ns % 10**9)
    return _make('std_msgs/msg/Header', stamp=stamp, frame_id=frame_id)


def make_image(rgb: np.ndarray, stamp_ns: int, frame_id: str) -> Any:
    """Make an rgb8 image of a picture (H, W, 3), uint8 RGB."""
    height, width, _ = rgb.shape
    return _make(
        IMAGE, header=make_header(stamp_ns, frame_id), height=height, width=width,
        encoding='rgb8', is_bigendian=0, step=3 * width,
        data=np.ascontiguousarray(rgb).reshape(-1))


def make_camera_info(camera: Camera, stamp_ns: int, frame_id: str) -> Any:
    """Make a CameraInfo of a camera whose pictures are not rectified."""
    coefficients = camera.distortion
    if DISTORTION_MODELS[camera.model] == 'plumb_bob':
        # plumb_bob ends with k3, which OPENCV does not have; PINHOLE has none at all.
        coefficients = (*(coefficients or (0.0,) * 4), 0.0)
    matrix = camera.matrix()
    region = _make('sensor_msgs/msg/RegionOfInterest', x_offset=0, y_offset=0, height=0, width=0,
                   do_rectify=False)
    return _make(
        CAMERA_INFO, header=make_header(stamp_ns, frame_id), height=camera.height,
        width=camera.width, distortion_model=DISTORTION_MODELS[camera.model],
        d=np.array(coefficients, np.float64), k=matrix.ravel(), r=np.eye(3).ravel(),
        p=np.hstack((matrix, np.zeros((3, 1)))).ravel(), binning_x=0, binning_y=0, roi=region)


def make_transforms(
    parent_from_child: np.ndarray, stamp_ns: int, parent: str, child: str,
) -> Any:
    """Make a TFMessage of one transform (4, 4)."""
    x, y, z, *rotation = numbers_from_pose(parent_from_child).tolist()
    transform = _make('geometry_msgs/msg/Transform', rotation=_quaternion(rotation),
                      translation=_make('geometry_msgs/msg/Vector3', x=x, y=y, z=z))
    stamped = _make('geometry_msgs/msg/TransformStamped', header=make_header(stamp_ns, parent),
                    child_frame_id=child, transform=transform)
    return _make(TRANSFORMS, transforms=[stamped])


def make_pose(map_from_body: np.ndarray, stamp_ns: int, frame_id: str) -> Any:
    """Make a PoseStamped of a pose (4, 4)."""
    x, y, z, *rotation = numbers_from_pose(map_from_body).tolist()
    pose = _make('geometry_msgs/msg/Pose', orientation=_quaternion(rotation),
                 position=_make('geometry_msgs/msg/Point', x=x, y=y, z=z))
    return _make(POSE, header=make_header(stamp_ns, frame_id), pose=pose)


def read_stamp(header: Any) -> int:
    """Give the stamp of a header in nanoseconds."""
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def read_serialized_stamp(data: bytes | memoryview) -> int:
    """Give the stamp in nanoseconds of a message (CDR) that begins with a header."""
    # Four bytes say how it is encoded, the second one which byte comes first.
    seconds, nanoseconds = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return seconds * 10**9 + nanoseconds


def read_serialized_header(data: bytes | memoryview) -> tuple[int, str, int]:
    """
    Give stamp in ns, frame_id and where the rest begins of a message (CDR) with a header.

    Raises a DataError where the header is not whole.
    """
    try:
        stamp = read_serialized_stamp(data)
        length, = struct.unpack_from('<I' if data[1] & 1 else '>I', data, 12)
        end = 16 + length
        if length < 1 or end > len(data) or data[end - 1]:
            raise ValueError('its frame_id does not end')
        return stamp, bytes(data[16:end - 1]).decode('utf-8'), end
    except (struct.error, ValueError, IndexError) as error:
        raise DataError(f'a message of {len(data)} bytes has no whole header: {error}') from error


def read_transforms(message: Any) -> list[tuple[str, str, int, np.ndarray]]:
    """Give parent, child, stamp in ns and parent_from_child (4, 4) of every usable transform."""
    found = []
    for stamped in message.transforms:
        t, q = stamped.transform.translation, stamped.transform.rotation
        try:
            pose = pose_from_numbers((t.x, t.y, t.z, q.x, q.y, q.z, q.w))
        except DataError:
            continue  # as tf2 does: a transform that is none is not stored
        found.append((stamped.header.frame_id.lstrip('/'), stamped.child_frame_id.lstrip('/'),
                      read_stamp(stamped.header), pose))
    return found


def read_pose(message: Any) -> tuple[int, np.ndarray, np.ndarray | None]:
    """Give stamp in ns, pose (4, 4) and covariance (6, 6) of a pose with covariance or without."""
    pose, covariance = message.pose, None
    if hasattr(pose, 'covariance'):
        pose, covariance = pose.pose, np.array(pose.covariance, np.float64).reshape(6, 6)
    p, q = pose.position, pose.orientation
    matrix = pose_from_numbers((p.x, p.y, p.z, q.x, q.y, q.z, q.w))
    return read_stamp(message.header), matrix, covariance


def _quaternion(xyzw: list[float]) -> Any:
    return _make('geometry_msgs/msg/Quaternion', **dict(zip('xyzw', xyzw)))
