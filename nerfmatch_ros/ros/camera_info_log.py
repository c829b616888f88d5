"""All camera_info of a topic: each different one once, and when it was sent."""

from array import array
from typing import Any

from nerfmatch_ros.ros.bag import decoded
from nerfmatch_ros.ros.bag_messages import CAMERA_INFO, read_serialized_header
import numpy as np


class CameraInfoLog:
    """What was heard on one topic; 24 bytes a message."""

    def __init__(self):
        self.messages: list[Any] = []  # CameraInfo, of each content and frame the first
        self.frames: list[str] = []  # frame_id of each of these
        self._numbers: dict[tuple[str, bytes], int] = {}
        self._received, self._stamps, self._which = array('q'), array('q'), array('q')

    def add(self, received_ns: int, data: bytes) -> None:
        """Keep a message (CDR), or raise a DataError for one that is none."""
        stamp, frame, end = read_serialized_header(data)
        key = frame.lstrip('/'), bytes(data[end:])
        if key not in self._numbers:
            self.messages.append(decoded(data, CAMERA_INFO))
            self.frames.append(key[0])
            self._numbers[key] = len(self._numbers)
        self._received.append(received_ns)
        self._stamps.append(stamp)
        self._which.append(self._numbers[key])

    def chosen(
        self, allowed: set[int], received_ns: np.ndarray, stamps_ns: np.ndarray,
    ) -> np.ndarray:
        """
        Give for each image the number of its message (N,): of its stamp, else the last before it.

        allowed: numbers of the messages that count, not empty; received_ns, stamps_ns: (N,) of
        the images. Before the first message its own holds too: it only came late.
        """
        kept = [k for k, number in enumerate(self._which) if number in allowed]
        received, stamps, which = (np.frombuffer(values, np.int64)[kept] for values in
                                   (self._received, self._stamps, self._which))
        order = np.argsort(received, kind='stable')
        before = np.searchsorted(received[order], received_ns, side='right') - 1
        last_before = which[order][np.maximum(before, 0)]
        of_stamp = {stamp: number for stamp, number in zip(stamps.tolist(), which.tolist())
                    if stamp > 0}
        return np.array([of_stamp.get(stamp, number) for stamp, number in
                         zip(stamps_ns.tolist(), last_before.tolist())], np.int64)
