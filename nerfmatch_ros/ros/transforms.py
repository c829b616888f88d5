"""Publishes transforms on /tf."""

from typing import Any

from nerfmatch_ros.ros.conversions import stamp_message, stamp_ns, transform_stamped
from nerfmatch_ros.ros.foreign_watch import ForeignWatch
from nerfmatch_ros.ros.transform_listener import DYNAMIC_QUALITY, transform_message_type
import numpy as np
from rclpy.node import Node


class TransformPublisher:
    """
    Sends single transforms, each with the stamp of what it was measured at.

    A measurement is not extended into the future: consumers look it up at its stamp or ask for the
    latest. tf2_msgs is published directly, as tf2_ros is not among the ROS wheels.
    """

    def __init__(self, node: Node, frame_id: str = '', *, watch: ForeignWatch | None = None):
        """Publish on /tf of the node; frame_id: parent for `publish`; watch: told of all sent."""
        self._message_type = transform_message_type()
        self._node, self._frame_id, self._watch = node, frame_id, watch
        self._publisher = node.create_publisher(self._message_type, '/tf', DYNAMIC_QUALITY)
        self.topic = self._publisher.topic_name  # /tf, unless it is remapped

    def send(self, parent: str, child: str, parent_from_child: np.ndarray, stamp: Any):
        """Send parent_from_child (4, 4); stamp: nanoseconds, or the message of an image's own."""
        if isinstance(stamp, int):
            stamp = stamp_message(stamp)
        transform = transform_stamped(parent_from_child, stamp, parent, child)
        if self._watch is not None:
            self._watch.sent(child, stamp_ns(transform.header))
        self._publisher.publish(self._message_type(transforms=[transform]))

    def publish(self, map_from_camera: np.ndarray, stamp: Any, child_frame_id: str):
        """Send map_from_camera (4, 4) for the camera frame `child_frame_id`."""
        self.send(self._frame_id, child_frame_id, map_from_camera, stamp)

    def close(self):
        """Take the publisher down."""
        self._node.destroy_publisher(self._publisher)
