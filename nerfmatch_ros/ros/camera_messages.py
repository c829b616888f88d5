"""
CameraInfo messages to cameras, which are kept by frame, and cameras back to messages.

Nothing in a message is trusted; what cannot be used raises a DataError that names the cause, the
value and the remedy. Both sides count pixels from the centre of the first one and have optical
axes (x right, y down, z forward), so cameras need no change of convention. Only to make messages
is ROS needed: those of a bag are read without an installation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import math
import threading
from typing import Any, TYPE_CHECKING

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros.image_messages import FrameRejected
import numpy as np

if TYPE_CHECKING:
    from sensor_msgs.msg import CameraInfo

# Numbers of coefficients; longer lists are accepted where the further ones are zero.
PLUMB_BOB, RATIONAL, EQUIDISTANT = 'plumb_bob', 'rational_polynomial', 'equidistant'
MODELS_TEXT = (
    f"'{PLUMB_BOB}' (4 or 5 coefficients), '{RATIONAL}' (8), '{EQUIDISTANT}' (4), "
    "'' without distortion"
)
MOST_COEFFICIENTS = 14  # of OpenCV's rational model, thin-prism and tilt terms included
MOST_FRAMES = 64  # that a CameraCache holds; a robot has fewer cameras
MOST_REPORTS = 256  # different camera_infos that a CameraCache complains about


@dataclass
class _Entry:
    """What a CameraCache holds of one frame."""

    key: tuple  # of the newest camera_info
    size: tuple[int, int]  # width and height that it states
    camera: Camera | None  # the last usable one
    reason: str  # why the newest camera_info is not usable, or ''
    fitted: Camera | None  # `camera` for the size of the newest picture


class CameraCache:
    """
    The camera of every frame that a camera_info was heard of.

    Pictures and camera_infos are not paired by stamp: many drivers send the second rarely. Frames
    are compared without the slash that ROS 1 put before them. One thread may put while another
    gets.
    """

    def __init__(self, *, rectified: bool = False):
        """rectified: the pictures are; P of the camera_info describes them, not K and D."""
        self._rectified = rectified
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}
        self._reported: set[tuple] = set()
        self.changes = 0  # cameras taken over, the first of each frame included

    @property
    def frames(self) -> dict[str, Camera | None]:
        """The frames heard of, with their cameras; None where no camera_info is usable."""
        with self._lock:
            return {frame: entry.camera for frame, entry in self._entries.items()}

    @property
    def complaints(self) -> list[str]:
        """Why the newest camera_info of a frame cannot be used; a text for each such frame."""
        with self._lock:
            return [f"camera_info of frame '{frame}' cannot be used: {entry.reason}"
                    for frame, entry in self._entries.items() if entry.reason]

    def has_heard_of(self, frame_id: str) -> bool:
        """Tell whether a camera_info of the frame came, usable or not."""
        with self._lock:
            return frame_id.lstrip('/') in self._entries

    def put(self, message: CameraInfo) -> str | None:
        """
        Take over the camera of a message, or say why it cannot be used.

        A content is complained about once, however often it is published. In place of a bad one
        the last good camera of the frame stays, if it has the same size.
        """
        frame, key = message.header.frame_id.lstrip('/'), info_key(message)
        size = (int(message.width), int(message.height))
        with self._lock:
            known = self._entries.get(frame)
            if known is not None and known.key == key:
                return None
            camera, reason = None, ''
            try:
                camera = camera_from_info(message, rectified=self._rectified)
            except DataError as error:
                reason = str(error)
                if known is not None and known.size == size:
                    camera = known.camera
            else:
                self.changes += known is None or known.camera != camera
            self._entries.pop(frame, None)  # the latest change is the last to be forgotten
            self._entries[frame] = _Entry(key, size, camera, reason, camera)
            if len(self._entries) > MOST_FRAMES:
                del self._entries[next(iter(self._entries))]
            if (not reason or (frame, key) in self._reported
                    or len(self._reported) == MOST_REPORTS):
                return None
            self._reported.add((frame, key))
        return f"camera_info of frame '{frame}' cannot be used: {reason}; " + (
            'its images wait for a good one' if camera is None else 'the last good one is kept')

    def get(self, frame_id: str, width: int, height: int) -> Camera:
        """Give the camera of the frame's pictures, `width` x `height` pixels; or FrameRejected.

        Pictures of one size are given the same object, with what it has computed.
        """
        frame = frame_id.lstrip('/')
        with self._lock:
            entry = self._entries.get(frame)
            if entry is None:
                heard = ', '.join(map(repr, self._entries)) or 'none'
                raise FrameRejected(
                    'no_camera_info', f"no camera_info of frame '{frame}' came yet; frames heard "
                    f'of: {heard}. An image and its camera_info have the same header.frame_id')
            if entry.camera is None:
                raise FrameRejected(
                    'bad_K', f"camera_info of frame '{frame}' cannot be used: {entry.reason}")
            if (entry.fitted.width, entry.fitted.height) != (width, height):
                try:
                    entry.fitted = fit_to_image(entry.camera, width, height)
                except DataError as error:
                    raise FrameRejected('bad_size', f"frame '{frame}': {error}") from error
            return entry.fitted


def camera_from_info(message: CameraInfo, *, rectified: bool = False) -> Camera:
    """
    Give the camera of the pictures that a CameraInfo describes.

    rectified: of the undistorted ones, which P describes; else of those as taken, by K and D.
    Its size is that of the pictures after region of interest and binning, which shape them.
    """
    width, height = int(message.width), int(message.height)
    if width < 1 or height < 1:
        raise DataError(f'camera_info states a picture of {width} x {height} pixels; '
                        'the driver has to fill in the size')
    if rectified:
        fx, fy, cx, cy = _focal_and_centre('P', message.p, width, height)
        return _crop_and_bin(message, Camera('PINHOLE', width, height, fx, fy, cx, cy))
    fx, fy, cx, cy = _focal_and_centre('K', message.k, width, height)
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
        factor = large[0] // max(1, small[0])
        if factor and large == (factor * small[0], factor * small[1]):
            return camera.scaled_to(width, height)
    raise DataError(
        f'camera_info is for {camera.width} x {camera.height} pixels, but the image has '
        f'{width} x {height}; calibrate at the size that is published')


def info_key(message: CameraInfo) -> tuple:
    """Give everything in a CameraInfo that the camera depends on, to compare two of them."""
    roi = message.roi
    # Numbers as bytes: two lists with the same NaN in them are the same here.
    return (
        message.width, message.height, message.distortion_model, len(message.d),
        *(np.asarray(values, np.float64).tobytes()
          for values in (message.d[:MOST_COEFFICIENTS], message.k, message.p)),
        message.binning_x, message.binning_y,
        (roi.x_offset, roi.y_offset, roi.width, roi.height))


def info_message(camera: Camera, stamp: Any, frame_id: str) -> CameraInfo:
    """Make a CameraInfo of a camera."""
    from sensor_msgs.msg import CameraInfo
    from std_msgs.msg import Header
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


def _focal_and_centre(
    name: str, values: Sequence[float], width: int, height: int,
) -> tuple[float, float, float, float]:
    """Give fx, fy, cx, cy of the matrix K (9 values) or P (12 values) of a CameraInfo."""
    matrix = [float(value) for value in values]
    columns = len(matrix) // 3
    if not any(matrix):
        raise DataError(f'camera_info has a {name} of zeros: the camera is not calibrated')
    if not all(map(math.isfinite, matrix)):
        raise DataError(f'camera_info has a {name} that is not finite: {matrix}')
    fx, skew, cx, *_ = matrix
    below, fy, cy = matrix[columns:columns + 3]
    if fx <= 0 or fy <= 0 or below or matrix[2 * columns:2 * columns + 3] != [0, 0, 1]:
        raise DataError(f'camera_info has {name} = {matrix}; its rows must begin with fx 0 cx, '
                        '0 fy cy, 0 0 1, with positive fx and fy')
    if columns == 4 and any(matrix[3::4]):
        raise DataError(f'camera_info has {matrix[3::4]} as last column of P: that is the second '
                        'camera of a stereo pair, seen from the first; use the first one')
    if abs(skew) > 1e-6 * fx:
        raise DataError(f'camera_info has a skew of {skew:g} pixels in {name}; '
                        'only 0 is supported')
    if not (-width <= cx <= 2 * width and -height <= cy <= 2 * height):
        raise DataError(f'camera_info has its principal point ({cx:g}, {cy:g}) far outside the '
                        f'picture of {width} x {height} pixels; calibrate again')
    return fx, fy, cx, cy


def _distortion(name: str, coefficients: Sequence[float]) -> tuple[str, tuple[float, ...]]:
    """Give the camera model and its coefficients of those of a CameraInfo."""
    count = len(coefficients)
    if count > MOST_COEFFICIENTS:
        raise DataError(f'camera_info has {count} coefficients of distortion; the supported '
                        f'models are {MODELS_TEXT}')
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
    if name == RATIONAL and 8 <= count <= MOST_COEFFICIENTS and not any(coefficients[8:]):
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
