"""The picture of an image message as it goes into a file: as it came where that can be."""

from dataclasses import dataclass
from typing import Any

import cv2
from nerfmatch_ros.ros.image_messages import compressed_to_rgb, FrameRejected, image_to_rgb
import numpy as np

_JPEG_START = b'\xff\xd8'


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
