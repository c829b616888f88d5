"""Width and height of a picture file from its header, without decoding it where possible."""

from pathlib import Path
import struct
from typing import BinaryIO

import cv2
import numpy as np

_PNG_START = b'\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR'
_JPEG_START = b'\xff\xd8'
_JPEG_SIZE_MARKERS = set(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # start of frame, any coding
_JPEG_BARE_MARKERS = {0x00, 0x01, *range(0xD0, 0xDB)}  # without a length, or pixels follow


def image_size(path: Path) -> tuple[int, int] | None:
    """Give (width, height) in pixels, or None for a file that is no readable picture."""
    with open(path, 'rb') as file:
        if file.read(len(_PNG_START)).startswith((_PNG_START, _JPEG_START)):
            file.seek(0)
            return size_in_header(file)
    data = np.fromfile(path, np.uint8)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    picture = cv2.imdecode(data, flags) if len(data) else None
    return None if picture is None else (picture.shape[1], picture.shape[0])


def size_in_header(file: BinaryIO) -> tuple[int, int] | None:
    """Give (width, height) as the header of a PNG or JPEG states them; None without such.

    The file is left behind the size.
    """
    start = file.read(len(_PNG_START))
    if start == _PNG_START:
        size = file.read(8)
        return struct.unpack('>II', size) if len(size) == 8 else None
    if start.startswith(_JPEG_START):
        file.seek(len(_JPEG_START))
        return _jpeg_size(file)
    return None


def _jpeg_size(file: BinaryIO) -> tuple[int, int] | None:
    """Walk the segments of a JPEG file to the one that states the size.

    What a decoder might read otherwise ends the walk, so that both find the same segment.
    """
    while len(marker := file.read(2)) == 2:
        if marker[0] != 0xFF or marker[1] in _JPEG_BARE_MARKERS:
            return None
        if marker[1] == 0xFF:  # a fill byte before the marker
            file.seek(-1, 1)
            continue
        segment = file.read(2)
        if len(segment) < 2 or (length := struct.unpack('>H', segment)[0]) < 2:
            return None
        if marker[1] in _JPEG_SIZE_MARKERS:
            body = file.read(5)
            if len(body) < 5:
                return None
            height, width = struct.unpack('>HH', body[1:])
            return width, height
        file.seek(length - 2, 1)
    return None
