"""
CameraInfo messages to cameras, and cameras back to messages.

Both sides count pixels from the centre of the first one and have optical axes (x right, y down,
z forward), so cameras need no change of convention.
"""

from collections.abc import Sequence
import math
from typing import Any

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

# Numbers of coefficients; longer lists are accepted where the further ones are zero.
PLUMB_BOB, RATIONAL, EQUIDISTANT = 'plumb_bob', 'rational_polynomial', 'equidistant'
MODELS_TEXT = (
    f"'{PLUMB_BOB}' (4 or 5 coefficients), '{RATIONAL}' (8), '{EQUIDISTANT}' (4), "
    "'' without distortion"
)


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
