"""The buffer of tf2_ros behind the calls of TransformBuffer."""

from typing import Any

from geometry_msgs.msg import TransformStamped
from nerfmatch_ros.ros import conversions
from nerfmatch_ros.ros.transform_buffer import (
    format_stamp,
    matrix_from_numbers,
    TransformError,
)
import numpy as np
from rclpy.clock import ClockType
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time

AUTHORITY = 'nerfmatch_tf'  # whom tf2 names in its own complaints


class Tf2Buffer:
    """
    Looks up in tf2_ros.Buffer.

    Only its immediate calls are used: those that wait poll every 20 ms, by system time, and cannot
    be broken off.
    """

    def __init__(self, tf2_ros: Any, node: Node, duration: float):
        """tf2_ros: the module; node: gets the service tf2_frames; duration: seconds kept."""
        self._tf2 = tf2_ros
        self._buffer = tf2_ros.Buffer(cache_time=Duration(seconds=duration), node=node)
        self.parents: dict[str, str] = {}
        self.conflicts: dict[str, tuple[str, str]] = {}

    def set_message(self, message: TransformStamped, static: bool):
        """Keep a transform that `check_link` has passed."""
        parent, child = message.header.frame_id.lstrip('/'), message.child_frame_id.lstrip('/')
        known = self.parents.get(child)
        if known != parent:
            if known is not None:
                self.conflicts[child] = known, parent
            self.parents[child] = parent
        if static:
            self._buffer.set_transform_static(message, AUTHORITY)
        else:
            self._buffer.set_transform(message, AUTHORITY)

    def lookup(self, target: str, source: str, stamp_ns: int) -> np.ndarray:
        """Give target_from_source (4, 4) at a stamp, or raise a TransformError."""
        target, source = target.lstrip('/'), source.lstrip('/')
        if target == source:
            return np.eye(4)
        if stamp_ns <= 0:
            # To tf2 a time of zero means the newest: at another time than was asked for.
            raise TransformError('past', f"'{source}' in '{target}' is asked for at the stamp "
                                 f'{stamp_ns}, which is no time; have its sender set header.stamp')
        return self._find(target, source, stamp_ns)[0]

    def latest(self, target: str, source: str) -> tuple[np.ndarray, int]:
        """Give target_from_source (4, 4) at the newest common stamp, and it; 0 if static."""
        target, source = target.lstrip('/'), source.lstrip('/')
        if target == source:
            return np.eye(4), 0
        return self._find(target, source, 0)

    def clear(self):
        """Forget every link but the static ones."""
        self._buffer.clear()

    def _find(self, target: str, source: str, stamp_ns: int) -> tuple[np.ndarray, int]:
        time = Time(nanoseconds=stamp_ns, clock_type=ClockType.ROS_TIME)
        tf2 = self._tf2
        try:
            found = self._buffer.lookup_transform_core(target, source, time)
        except tf2.LookupException as error:
            raise TransformError('missing', f"'{source}' in '{target}': {error}; start what "
                                 'publishes the frame or correct its name') from error
        except tf2.ConnectivityException as error:
            raise TransformError('disconnected', f"'{source}' in '{target}': {error}; publish the "
                                 'link that is missing') from error
        except tf2.ExtrapolationException as error:
            kind = self._side(target, source, stamp_ns)
            remedy = ('wait longer, or look for what delays or stopped a publisher'
                      if kind == 'future' else 'ask sooner or keep more')
            raise TransformError(kind, f"'{source}' in '{target}' at {format_stamp(stamp_ns)}: "
                                 f'{error}; {remedy}') from error
        except tf2.TransformException as error:
            raise TransformError('missing', f"'{source}' in '{target}': {error}") from error
        p, q = found.transform.translation, found.transform.rotation
        return (matrix_from_numbers((p.x, p.y, p.z, q.x, q.y, q.z, q.w)),
                conversions.stamp_ns(found.header))

    def _side(self, target: str, source: str, stamp_ns: int) -> str:
        """Tell on which side of what is kept a stamp lies; tf2 has one exception for both."""
        try:
            newest = self._buffer.get_latest_common_time(target, source).nanoseconds
        except self._tf2.TransformException:
            return 'future'  # known frames without data, as after `clear`
        return 'future' if newest <= 0 or stamp_ns > newest else 'past'
