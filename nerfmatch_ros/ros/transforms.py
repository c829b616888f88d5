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

    def __init__(self, node: Node, *, watch: ForeignWatch | None = None):
        """Publish on /tf of the node; watch: told of all that is sent."""
        self._message_type = transform_message_type()
        self._node, self._watch = node, watch
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

    def close(self):
        """Take the publisher down."""
        self._node.destroy_publisher(self._publisher)
