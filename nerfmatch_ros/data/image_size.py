"""Width and height of a picture file from its header, without decoding it where possible."""

from pathlib import Path
import struct
from typing import BinaryIO

import cv2
import numpy as np

_PNG_SIGNATURE = b'\x89PNG\r\n\x1a\n'
_JPEG_SIZE_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, any coding


def image_size(path: Path) -> tuple[int, int] | None:
    """Give (width, height) in pixels, or None for a file that is no readable picture."""
    with open(path, 'rb') as file:
        head = file.read(24)
        if head.startswith(_PNG_SIGNATURE) and len(head) == 24:
            return struct.unpack('>II', head[16:24])
        if head.startswith(b'\xff\xd8'):
            file.seek(2)
            return _jpeg_size(file)
    data = np.fromfile(path, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(data, flags) if len(data) else None
    return None if picture is None else (picture.shape[1], picture.shape[0])


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Walk the segments of a JPEG file to the one that states the size."""
    while len(marker := file.read(2)) == 2:
        if marker[0] != 0xFF:
            return None
        if marker[1] == 0xFF:  # a fill byte before the marker
            file.seek(-1, 1)
            continue
        segment = file.read(2)
        if len(segment) < 2:
            return None
        if marker[1] in _JPEG_SIZE_MARKERS:
            body = file.read(5)
            if len(body) < 5:
                return None
            height, width = struct.unpack('>HH', body[1:])
            return width, height
        file.seek(struct.unpack('>H', segment)[0] - 2, 1)
    return None
