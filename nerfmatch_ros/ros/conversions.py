"""
Messages to what the core works with, and poses back to messages.

The one place where message fields are read and written. Nothing in a message is trusted: sizes are
checked as Python integers before they shape an array, and what cannot be used raises a DataError
that says why and what would do.

Both sides count pixels from the centre of the first one, and both have optical axes (x right,
y down, z forward), so images and poses need no change of convention.
"""

import array
from collections.abc import Sequence
import math
from typing import Any

import cv2
from geometry_msgs.msg import (
    Pose,
    PoseStamped,
    PoseWithCovarianceStamped,
    Transform,
    TransformStamped,
)
from nerfmatch_ros.data.tum import pose_from_numbers, quaternion_from_rotation
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

# encoding -> channels, and what makes RGB of them
ENCODINGS = {
    'rgb8': (3, None), 'bgr8': (3, cv2.COLOR_BGR2RGB), 'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB), 'mono8': (1, cv2.COLOR_GRAY2RGB),
}
# Numbers of coefficients; longer lists are accepted where the further ones are zero.
PLUMB_BOB, RATIONAL, EQUIDISTANT = 'plumb_bob', 'rational_polynomial', 'equidistant'
MODELS_TEXT = (
    f"'{PLUMB_BOB}' (4 or 5 coefficients), '{RATIONAL}' (8), '{EQUIDISTANT}' (4), "
    "'' without distortion"
)
ROTATION_TOLERANCE = 1e-3  # largest entry of |R^T R - I| that is taken for rounding


def image_to_rgb(message: Image) -> np.ndarray:
    """
    Give the picture (H, W, 3), uint8 RGB; of an unpadded rgb8 image it is a view, not a copy.

    Encodings that need decoding (Bayer, YUV, 16 bit) are left to cv_bridge where it is installed.
    """
    width, height, step = int(message.width), int(message.height), int(message.step)
    size = len(message.data)
    if width < 1 or height < 1:
        raise DataError(f'image of {width} x {height} pixels is empty')
    if step * height != size:
        raise DataError(
            f'image has {size} bytes, but its header states {height} rows of {step} bytes; '
            'the message is truncated or its step is wrong')
    if message.encoding not in ENCODINGS:
        return _decode(message, width, height)
    channels, colours = ENCODINGS[message.encoding]
    if step < width * channels:
        raise DataError(
            f'image has a step of {step} bytes, but a row of {width} pixels {message.encoding} '
            f'needs {width * channels}')
    data = np.frombuffer(message.data, np.uint8)
    # Rows may be padded: the first width * channels bytes of each are the picture.
    rows = data.reshape(height, step)[:, :width * channels].reshape(height, width, channels)
    # Either way what comes out lies in memory as an array of its own would.
    return np.ascontiguousarray(rows) if colours is None else cv2.cvtColor(rows, colours)


def camera_from_info(message: CameraInfo) -> Camera:
    """
    Give the camera of the unrectified pictures that a CameraInfo describes.

    Its size is that of the pictures after region of interest and binning, which shape them.
    """
    width, height = int(message.width), int(message.height)
    if width < 1 or height < 1:
        raise DataError(f'camera_info states a picture of {width} x {height} pixels; '
                        'the driver has to fill in the size')
    matrix = [float(value) for value in message.k]
    if not any(matrix):
        raise DataError('camera_info has a K of zeros: the camera is not calibrated')
    if not all(map(math.isfinite, matrix)):
        raise DataError(f'camera_info has a K that is not finite: {matrix}')
    fx, skew, cx, _, fy, cy = matrix[:6]
    if fx <= 0 or fy <= 0 or matrix[3] or any(matrix[6:8]) or matrix[8] != 1:
        raise DataError(f'camera_info has K = {matrix}; it must be fx 0 cx, 0 fy cy, 0 0 1 '
                        'with positive fx and fy')
    if abs(skew) > 1e-6 * fx:
        raise DataError(f'camera_info has a skew of {skew:g} pixels in K; only 0 is supported')
    if not (-width <= cx <= 2 * width and -height <= cy <= 2 * height):
        raise DataError(f'camera_info has its principal point ({cx:g}, {cy:g}) far outside the '
                        f'picture of {width} x {height} pixels; calibrate again')
    model, distortion = _distortion(message.distortion_model, [float(v) for v in message.d])
    return _crop_and_bin(message, Camera(model, width, height, fx, fy, cx, cy, distortion))


def fit_to_image(camera: Camera, width: int, height: int) -> Camera:
    """Give the camera of a picture that is `width` x `height` pixels large.

    A driver that resizes by a whole factor but repeats the full camera_info is understood; any
    other difference has no single explanation and is an error.
    """
    if (camera.width, camera.height) == (width, height):
        return camera
    for large, small in (((camera.width, camera.height), (width, height)),
                         ((width, height), (camera.width, camera.height))):
        factor, rest = divmod(large[0], small[0])
        if not rest and large == (factor * small[0], factor * small[1]):
            return camera.scaled_to(width, height)
    raise DataError(
        f'camera_info is for {camera.width} x {camera.height} pixels, but the image has '
        f'{width} x {height}; calibrate at the size that is published')


def info_key(message: CameraInfo) -> tuple:
    """Give everything in a CameraInfo that the camera depends on, to compare two of them."""
    roi = message.roi
    # Numbers as bytes: two lists with the same NaN in them are the same here.
    return (
        message.width, message.height, message.distortion_model,
        np.asarray(message.d, np.float64).tobytes(), np.asarray(message.k, np.float64).tobytes(),
        message.binning_x, message.binning_y,
        (roi.x_offset, roi.y_offset, roi.width, roi.height))


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


def image_message(rgb: np.ndarray, stamp: Any, frame_id: str) -> Image:
    """Make an rgb8 message of a picture (H, W, 3), uint8 RGB."""
    height, width, _ = rgb.shape
    message = Image(header=Header(stamp=stamp, frame_id=frame_id), height=height, width=width,
                    encoding='rgb8', step=3 * width)
    data = array.array('B')  # the one type that rclpy takes as it is; others it copies bytewise
    data.frombytes(np.ascontiguousarray(rgb).data)
    message.data = data
    return message


def info_message(camera: Camera, stamp: Any, frame_id: str) -> CameraInfo:
    """Make a CameraInfo of a camera."""
    models = {'PINHOLE': PLUMB_BOB, 'OPENCV': PLUMB_BOB, 'OPENCV_FISHEYE': EQUIDISTANT,
              'RATIONAL': RATIONAL}
    model = models[camera.model]
    # plumb_bob ends with k3, which OPENCV does not have.
    coefficients = (*(camera.distortion or (0.0,) * 4), 0.0)
    matrix = camera.matrix()
    projection = np.hstack((matrix, np.zeros((3, 1))))
    return CameraInfo(
        header=Header(stamp=stamp, frame_id=frame_id), width=camera.width, height=camera.height,
        distortion_model=model,
        d=list(coefficients if model == PLUMB_BOB else camera.distortion),
        k=matrix.ravel(), r=np.eye(3).ravel(), p=projection.ravel())


def _decode(message: Image, width: int, height: int) -> np.ndarray:
    """Let cv_bridge turn an encoding that is not a plain array of colours into RGB."""
    accepted = ', '.join(ENCODINGS)
    try:
        from cv_bridge import CvBridge, CvBridgeError
    except ImportError:
        raise DataError(
            f"image encoding '{message.encoding}' is not supported; accepted are {accepted}, "
            'and with cv_bridge installed those that it converts to rgb8') from None
    try:
        picture = CvBridge().imgmsg_to_cv2(message, 'rgb8')
    except (CvBridgeError, ValueError, RuntimeError, TypeError) as error:
        raise DataError(f"image encoding '{message.encoding}' cannot be converted to rgb8 by "
                        f'cv_bridge ({error}); accepted without it are {accepted}') from error
    if picture.shape != (height, width, 3) or picture.dtype != np.uint8:
        raise DataError(f'cv_bridge gave {picture.dtype} {picture.shape} for an image of '
                        f"{width} x {height} pixels '{message.encoding}'")
    return picture


def _distortion(name: str, coefficients: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """Give the camera model and its coefficients of those of a CameraInfo."""
    count = len(coefficients)
    if not all(map(math.isfinite, coefficients)):
        raise DataError(f'camera_info has distortion that is not finite: {list(coefficients)}')
    if name == '' and not any(coefficients):
        return 'PINHOLE', ()
    if name == PLUMB_BOB and count in (4, 5):
        k1, k2, p1, p2, k3 = (*coefficients, 0.0)[:5]
        if k3 == 0:
            return 'OPENCV', (k1, k2, p1, p2)
        return 'RATIONAL', (k1, k2, p1, p2, k3, 0.0, 0.0, 0.0)
    # Some drivers write OpenCV's 12 or 14 coefficients, the thin-prism and tilt ones being zero.
    if name == RATIONAL and count >= 8 and not any(coefficients[8:]):
        return 'RATIONAL', tuple(coefficients[:8])
    if name == EQUIDISTANT and count == 4:
        return 'OPENCV_FISHEYE', tuple(coefficients)
    raise DataError(f"camera_info has distortion model '{name}' with {count} coefficients "
                    f'{list(coefficients)}; supported are {MODELS_TEXT}')


def _crop_and_bin(message: CameraInfo, camera: Camera) -> Camera:
    """Give the camera of the region of interest, after binning; K is that of the full sensor."""
    roi = message.roi
    left, top = int(roi.x_offset), int(roi.y_offset)
    width, height = int(roi.width) or camera.width, int(roi.height) or camera.height
    across, down = max(1, int(message.binning_x)), max(1, int(message.binning_y))
    if not (roi.width or roi.height):  # all zero states the full picture
        left = top = 0
    if left + width > camera.width or top + height > camera.height or (
            width < across or height < down):
        raise DataError(
            f'camera_info has a region of {width} x {height} pixels at ({left}, {top}), binned '
            f'{across} x {down}; that does not fit {camera.width} x {camera.height} pixels')
    region = Camera(camera.model, width, height, camera.fx, camera.fy, camera.cx - left,
                    camera.cy - top, camera.distortion)
    if across == down == 1:
        return region
    # Binning drops what is left over at the right and at the bottom.
    columns, rows = width // across, height // down
    whole = Camera(region.model, columns * across, rows * down, region.fx, region.fy, region.cx,
                   region.cy, region.distortion)
    return whole.scaled_to(columns, rows)


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
