"""The picture of an image message as it goes into a file: as it came where that can be."""

from dataclasses import dataclass
from typing import Any

import cv2
from nerfmatch_ros.ros.image_messages import (
    compressed_to_rgb,
    ENCODINGS,
    FrameRejected,
    image_to_rgb,
)
import numpy as np

_JPEG_START = b'\xff\xd8'
_PNG_START, _PNG_DEPTH = b'\x89PNG\r\n\x1a\n', 24  # and where its header has the bits of a sample


@dataclass(frozen=True, eq=False)
class FramePicture:
    """A picture and the name that its file ends with."""

    rgb: np.ndarray  # (H, W, 3) uint8 RGB
    content: bytes | None  # of the file, if the message had it
    suffix: str

    def encoded(self) -> bytes:
        """Give the content of the file: the camera's own JPEG or PNG, else a PNG; no loss."""
        if self.content is not None:
            return self.content
        red, green, blue = (self.rgb[..., k] for k in range(3))
        grey = np.array_equal(red, green) and np.array_equal(green, blue)
        done, data = cv2.imencode('.png', red if grey else cv2.cvtColor(
            self.rgb, cv2.COLOR_RGB2BGR))
        if not done:
            raise FrameRejected('undecodable', 'the picture cannot be written as a PNG')
        return data.tobytes()


def picture_of(message: Any, compressed: bool) -> FramePicture:
    """Decode a sensor_msgs Image or CompressedImage, or raise FrameRejected."""
    if not compressed:
        return FramePicture(image_to_rgb(message), None, '.png')
    rgb = compressed_to_rgb(message)
    if message.format.startswith('bayer_'):  # the file is a mosaic that nobody would take for one
        return FramePicture(rgb, None, '.png')
    content = bytes(message.data)
    return FramePicture(rgb, content, '.jpg' if content.startswith(_JPEG_START) else '.png')


def largest_of_16_bits(message: Any, compressed: bool) -> int:
    """Give the largest sample of an image that `picture_of` decodes; 0 if it has 8 bits or fewer.

    Of 16 bits pictures have the upper 8, and a camera may fill the lower 12 only.
    """
    if compressed:
        content = np.frombuffer(message.data, np.uint8)
        if bytes(content[:8]) != _PNG_START or content[_PNG_DEPTH] != 16:
            return 0
        samples = cv2.imdecode(content, cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION)
        return 0 if samples is None or samples.dtype != np.uint16 else int(samples.max())
    layout = ENCODINGS.get(message.encoding)
    if layout is None or layout.sample_bytes != 2:
        return 0
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    used = np.ascontiguousarray(rows[:, :2 * layout.channels * message.width])
    return int(used.view('>u2' if message.is_bigendian else '<u2').max())
