"""
Image messages to RGB pictures, and pictures back to messages.

Nothing in a message is trusted: sizes are checked as Python integers before they shape an array,
and what cannot be used raises a DataError that says why and what would do.
"""

import array
from typing import Any

import cv2
from nerfmatch_ros.errors import DataError
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header

# encoding -> channels, and what makes RGB of them
ENCODINGS = {
    'rgb8': (3, None), 'bgr8': (3, cv2.COLOR_BGR2RGB), 'rgba8': (4, cv2.COLOR_RGBA2RGB),
    'bgra8': (4, cv2.COLOR_BGRA2RGB), 'mono8': (1, cv2.COLOR_GRAY2RGB),
}


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


def image_message(rgb: np.ndarray, stamp: Any, frame_id: str) -> Image:
    """Make an rgb8 message of a picture (H, W, 3), uint8 RGB."""
    height, width, _ = rgb.shape
    message = Image(header=Header(stamp=stamp, frame_id=frame_id), height=height, width=width,
                    encoding='rgb8', step=3 * width)
    data = array.array('B')  # the one type that rclpy takes as it is; others it copies bytewise
    data.frombytes(np.ascontiguousarray(rgb).data)
    message.data = data
    return message


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
