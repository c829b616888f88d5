"""
Image messages, raw and compressed, to RGB pictures, and pictures back to messages.

Nothing in a message is trusted: sizes are checked as Python integers before they shape an array
or let a decoder allocate one. What cannot be used raises FrameRejected, and nothing else. Only to
make messages is ROS needed: those of a bag are read without an installation.
"""

from __future__ import annotations

import array
import io
from typing import Any, NamedTuple, TYPE_CHECKING

import cv2
from nerfmatch_ros.data.image_size import size_in_header
from nerfmatch_ros.errors import DataError
import numpy as np

if TYPE_CHECKING:
    from sensor_msgs.msg import CompressedImage, Image

MAX_PIXELS = 8192 * 8192  # twice an 8K picture; its RGB array has 201 MB


class FrameRejected(DataError):
    """A frame that cannot be used.

    kind: empty truncated bad_step bad_encoding bad_size undecodable, of the picture;
    no_camera_info bad_K, of its camera.
    """

    def __init__(self, kind: str, text: str):
        """kind: one word to count by; text: cause, value and remedy."""
        super().__init__(text)
        self.kind = kind


class Layout(NamedTuple):
    """How the pixels of an encoding lie in the data."""

    channels: int
    conversion: int | None  # OpenCV's code that makes RGB of them; None where they are RGB
    sample_bytes: int = 1
    block: tuple[int, int] = (1, 1)  # pixels across and down that share colours
    planes: tuple[int, int] = (1, 1)  # the data has height * first // second rows


# OpenCV names a mosaic by the second and third pixel of its second row, ROS by the four pixels
# of its first two rows: rggb there is BG here. (OpenCV's four-letter names came with 4.6.)
_MOSAICS = {
    'bayer_rggb': cv2.COLOR_BayerBG2RGB, 'bayer_bggr': cv2.COLOR_BayerRG2RGB,
    'bayer_gbrg': cv2.COLOR_BayerGR2RGB, 'bayer_grbg': cv2.COLOR_BayerGB2RGB,
}
_GRAY = Layout(1, cv2.COLOR_GRAY2RGB)
_GRAY16 = _GRAY._replace(sample_bytes=2)
_BGR, _BGRA = Layout(3, cv2.COLOR_BGR2RGB), Layout(4, cv2.COLOR_BGRA2RGB)
_UYVY = Layout(2, cv2.COLOR_YUV2RGB_UYVY, block=(2, 1))
_YUYV = Layout(2, cv2.COLOR_YUV2RGB_YUY2, block=(2, 1))
_NV12 = Layout(1, cv2.COLOR_YUV2RGB_NV12, block=(2, 2), planes=(3, 2))
ENCODINGS = {
    'rgb8': Layout(3, None), 'bgr8': _BGR, 'rgba8': Layout(4, cv2.COLOR_RGBA2RGB),
    'bgra8': _BGRA, 'mono8': _GRAY, 'mono16': _GRAY16,
    # Without names for the channels they are as OpenCV means them.
    '8UC1': _GRAY, '8UC3': _BGR, '8UC4': _BGRA, '16UC1': _GRAY16,
    **{f'{name}8': Layout(1, code) for name, code in _MOSAICS.items()},
    **{f'{name}16': Layout(1, code, sample_bytes=2) for name, code in _MOSAICS.items()},
    'uyvy': _UYVY, 'yuv422': _UYVY, 'yuyv': _YUYV, 'yuv422_yuy2': _YUYV,
    'nv12': _NV12, 'nv21': _NV12._replace(conversion=cv2.COLOR_YUV2RGB_NV21),
}


def image_to_rgb(message: Image, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """
    Give the picture (H, W, 3), uint8 RGB; of an unpadded rgb8 image it is a view, not a copy.

    Of 16 bits the upper 8 are kept. Encodings that are not in ENCODINGS are left to cv_bridge
    where it is installed.
    """
    width, height, step = int(message.width), int(message.height), int(message.step)
    _check_size(width, height, max_pixels)
    layout = ENCODINGS.get(message.encoding)
    if layout is None:
        return _through_cv_bridge(message, width, height)
    across, down = layout.block
    if width % across or height % down:
        raise FrameRejected(
            'bad_size', f"image of {width} x {height} pixels cannot be '{message.encoding}', "
            f'whose colours are shared by {across} x {down} pixels')
    rows = height * layout.planes[0] // layout.planes[1]
    row_bytes = width * layout.channels * layout.sample_bytes
    _check_data(message, rows)
    if step < row_bytes:
        raise FrameRejected(
            'bad_step', f'image has a step of {step} bytes, but a row of {width} pixels '
            f'{message.encoding} needs {row_bytes}')
    data = np.frombuffer(message.data, np.uint8)
    # Rows may be padded: the first row_bytes bytes of each are the picture.
    samples = data.reshape(rows, step)[:, :row_bytes]
    if layout.sample_bytes == 2:
        samples = np.ascontiguousarray(samples[:, 0 if message.is_bigendian else 1::2])
    samples = samples.reshape(rows, width, layout.channels)
    # Either way what comes out lies in memory as an array of its own would.
    if layout.conversion is None:
        return np.ascontiguousarray(samples)
    return cv2.cvtColor(samples, layout.conversion)


def compressed_to_rgb(message: CompressedImage, *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """
    Give the picture (H, W, 3), uint8 RGB, of a JPEG or PNG.

    Its size is read from the file's own header first, so that a small message cannot make the
    decoder fill the memory. What a camera's EXIF says of its orientation is ignored: camera_info
    describes the pixels as they are stored.
    """
    if not len(message.data):
        raise FrameRejected('empty', 'compressed image has no data; look at its driver')
    if 'compressedDepth' in message.format:
        raise FrameRejected(
            'bad_encoding', f"compressed image is '{message.format}', a depth image; "
            'subscribe the JPEG or PNG of the colour camera')
    content = bytes(message.data)
    file = io.BytesIO(content)
    size = size_in_header(file)
    if size is None:
        raise FrameRejected(
            'undecodable', f"compressed image '{message.format}' of {len(content)} bytes begins "
            f'with {content[:8].hex(" ")}, which is no whole header of a JPEG or PNG')
    _check_size(*size, max_pixels)
    # Some versions of OpenCV fill up a JPEG that was cut off with grey.
    if content.startswith(b'\xff\xd8') and content.rfind(b'\xff\xd9', file.tell()) < 0:
        raise FrameRejected(
            'truncated', f'compressed image of {len(content)} bytes has no end of JPEG; '
            'the message is truncated')
    # image_transport compresses a mosaic as it is, as if it were grey.
    original, _, compression = message.format.partition(';')
    mosaic = ENCODINGS.get(original.strip()) if original.startswith('bayer_') else None
    if mosaic is None or 'bgr' in compression or 'rgb' in compression:
        mode, conversion = cv2.IMREAD_COLOR, cv2.COLOR_BGR2RGB
    else:
        mode, conversion = cv2.IMREAD_GRAYSCALE, mosaic.conversion
    try:
        picture = cv2.imdecode(
            np.frombuffer(content, np.uint8), mode | cv2.IMREAD_IGNORE_ORIENTATION)
    except cv2.error as error:
        raise FrameRejected(
            'undecodable', f'compressed image cannot be decoded: {error}') from error
    if picture is None or picture.shape[1::-1] != size:
        raise FrameRejected(
            'undecodable', f"compressed image '{message.format}' of {len(content)} bytes, "
            f'{size[0]} x {size[1]} pixels, cannot be decoded; it is damaged')
    return cv2.cvtColor(picture, conversion)


def image_message(rgb: np.ndarray, stamp: Any, frame_id: str) -> Image:
    """Make an rgb8 message of a picture (H, W, 3), uint8 RGB."""
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header
    height, width, _ = rgb.shape
    message = Image(header=Header(stamp=stamp, frame_id=frame_id), height=height, width=width,
                    encoding='rgb8', step=3 * width)
    data = array.array('B')  # the one type that rclpy takes as it is; others it copies bytewise
    data.frombytes(np.ascontiguousarray(rgb).data)
    message.data = data
    return message


def _check_size(width: int, height: int, max_pixels: int):
    """Refuse a picture without pixels or with too many."""
    if width < 1 or height < 1:
        raise FrameRejected('empty', f'image of {width} x {height} pixels is empty')
    if width * height > max_pixels:
        raise FrameRejected(
            'bad_size', f'image of {width} x {height} pixels is larger than the {max_pixels} '
            'that are accepted; publish smaller ones')


def _check_data(message: Image, rows: int):
    """Refuse an image whose data is not `rows` rows of `step` bytes."""
    size, step = len(message.data), int(message.step)
    if not size:
        raise FrameRejected('empty', 'image has no data; look at its driver')
    if size < step * rows:
        raise FrameRejected(
            'truncated', f'image has {size} bytes, but its header states {rows} rows of {step} '
            'bytes; the message is truncated or its step is wrong')
    if size > step * rows:
        raise FrameRejected(
            'bad_step', f'image has {size} bytes, more than the {rows} rows of {step} bytes that '
            'its header states; its step, size or encoding is wrong')


def _through_cv_bridge(message: Image, width: int, height: int) -> np.ndarray:
    """Let cv_bridge turn an encoding that is not in ENCODINGS into RGB."""
    accepted = ', '.join(ENCODINGS)
    try:
        from cv_bridge import CvBridge
    except Exception as error:  # noqa: BLE001 - one built for another numpy raises all sorts
        raise FrameRejected(
            'bad_encoding', f"image encoding '{message.encoding}' is not supported; accepted are "
            f'{accepted}, and those that cv_bridge converts to rgb8, where it can be imported '
            f'({error})') from error
    _check_data(message, height)
    try:
        picture = CvBridge().imgmsg_to_cv2(message, 'rgb8')
    except Exception as error:  # noqa: BLE001 - foreign code; the frame is lost, not the node
        raise FrameRejected(
            'bad_encoding', f"image encoding '{message.encoding}' cannot be converted to rgb8 by "
            f'cv_bridge ({error}); accepted without it are {accepted}') from error
    if picture.shape != (height, width, 3) or picture.dtype != np.uint8:
        raise FrameRejected(
            'bad_encoding', f'cv_bridge gave {picture.dtype} {picture.shape} for an image of '
            f"{width} x {height} pixels '{message.encoding}'")
    return picture
