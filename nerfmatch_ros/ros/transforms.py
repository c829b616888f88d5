"""Publishes map -> camera on /tf."""

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.ros.conversions import transform_stamped
import numpy as np
from rclpy.node import Node
from rclpy.qos import QoSProfile


class TransformPublisher:
    """
    Sends the pose of the camera as a transform with the stamp of its image.

    A transform is a measurement at that time, not extended into the future: consumers look it up
    at the time of the image or ask for the latest. tf2_msgs is published directly, as tf2_ros is
    not among the ROS wheels.
    """

    def __init__(self, node: Node, frame_id: str):
        """Publish on /tf of the node; frame_id: the parent frame."""
        try:
            from tf2_msgs.msg import TFMessage
        except ImportError as error:
            raise ConfigError(
                'tf_broadcast is true, but tf2_msgs cannot be imported; run '
                '`python tools/generate_tf2_msgs.py` or set tf_broadcast:=false') from error
        self._message_type = TFMessage
        self._frame_id = frame_id
        # The quality that every listener of /tf expects: reliable, volatile, depth 100.
        self._publisher = node.create_publisher(TFMessage, '/tf', QoSProfile(depth=100))
        self.topic = self._publisher.topic_name  # /tf, unless it is remapped

    def publish(self, map_from_camera: np.ndarray, stamp, child_frame_id: str):
        """Send map_from_camera (4, 4) for the camera frame `child_frame_id`."""
        transform = transform_stamped(
            map_from_camera, stamp, self._frame_id, child_frame_id)
        self._publisher.publish(self._message_type(transforms=[transform]))
