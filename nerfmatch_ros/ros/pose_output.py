"""What the localizer publishes for a frame: poses, and pictures for who looks at them."""

import array
from typing import Any

import cv2
from geometry_msgs.msg import PoseArray, PoseStamped, PoseWithCovarianceStamped
from nav_msgs.msg import Path
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.ros import conversions
from nerfmatch_ros.ros.image_messages import image_message
from nerfmatch_ros.ros.quality import EVERY, LATCHED, MismatchReporter, NEWEST
import numpy as np
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image, PointCloud2, PointField
from std_msgs.msg import Header

PATH_LENGTH = 2000  # newest poses shown on ~/path
SIMILAR_VIEWS = 5


class PoseOutput:
    """The pose topics of the localizer; the stamp of every message is that of its image."""

    def __init__(self, node, frame_id: str, mismatches: MismatchReporter):
        """Make the publishers; frame_id: of the map."""
        self._node, self._frame_id = node, frame_id
        self._pose = publisher(node, PoseStamped, 'pose', LATCHED, mismatches)
        self._covariance = publisher(
            node, PoseWithCovarianceStamped, 'pose_with_covariance', LATCHED, mismatches)
        self._raw = publisher(node, PoseWithCovarianceStamped, '~/pose_raw', EVERY, mismatches)
        self._debug = DebugOutput(node, frame_id, mismatches)
        self.topic = self._pose.topic_name
        self.topics = [made.topic_name for made in (
            self._pose, self._covariance, self._raw, *self._debug.publishers)]

    def send_raw(self, pose: np.ndarray, covariance: np.ndarray, stamp: Any, diagonal: bool):
        """Publish the fix of one image alone."""
        self._raw.publish(conversions.pose_with_covariance(
            pose, _published(covariance, diagonal), stamp, self._frame_id))

    def send(self, pose: np.ndarray, covariance: np.ndarray, stamp: Any, diagonal: bool):
        """Publish the pose of the stream; covariance first, for who waits for both."""
        message = conversions.pose_stamped(pose, stamp, self._frame_id)
        self._covariance.publish(conversions.pose_with_covariance(
            pose, _published(covariance, diagonal), stamp, self._frame_id))
        self._pose.publish(message)
        self._debug.add_to_path(message)

    def send_debug(self, backend: Any, image: PosedImage, estimate: PoseEstimate, header: Header):
        """Publish pictures and points of a frame, each only if somebody listens."""
        self._debug.send(backend, image, estimate, header)

    def close(self):
        """Take the publishers down."""
        for made in (self._pose, self._covariance, self._raw):
            self._node.destroy_lifecycle_publisher(made)
        self._debug.close()


class DebugOutput:
    """Topics to look at; nothing is computed or copied for one without a subscriber."""

    def __init__(self, node, frame_id: str, mismatches: MismatchReporter):
        """Make the publishers."""
        self._node, self._frame_id = node, frame_id
        # Reliable, because that is what displays ask for.
        self.publishers = tuple(
            publisher(node, message_type, topic, NEWEST, mismatches)
            for message_type, topic in (
                (Image, '~/matches_image'), (Image, '~/rendered_image'),
                (PoseArray, '~/retrieval_poses'), (PointCloud2, '~/inlier_points'),
                (Path, '~/path')))
        self._matches, self._rendered, self._similar, self._points, self._path = self.publishers
        self._poses: list[PoseStamped] = []

    def add_to_path(self, pose: PoseStamped):
        """Append a pose and publish the path."""
        self._poses.append(pose)
        del self._poses[:-PATH_LENGTH]
        if self._path.get_subscription_count():
            self._path.publish(Path(
                header=Header(stamp=pose.header.stamp, frame_id=self._frame_id),
                poses=list(self._poses)))

    def send(self, backend: Any, image: PosedImage, estimate: PoseEstimate, header: Header):
        """Publish what is listened to."""
        in_map = Header(stamp=header.stamp, frame_id=self._frame_id)
        if self._matches.get_subscription_count():
            self._matches.publish(image_message(
                matches_picture(image.rgb(), estimate), header.stamp, header.frame_id))
        if self._similar.get_subscription_count():
            poses = backend.similar_views(image, SIMILAR_VIEWS)
            self._similar.publish(PoseArray(header=in_map, poses=[
                conversions.pose_stamped(pose, header.stamp, self._frame_id).pose
                for pose in poses]))
        if estimate.map_from_camera is None:
            return
        if self._rendered.get_subscription_count():
            self._rendered.publish(image_message(
                backend.render(image.camera, estimate.map_from_camera), header.stamp,
                header.frame_id))
        if self._points.get_subscription_count() and estimate.points is not None:
            self._points.publish(point_cloud(estimate.points[estimate.inlier_mask], in_map))

    def close(self):
        """Take the publishers down."""
        for made in self.publishers:
            self._node.destroy_lifecycle_publisher(made)


def publisher(node, message_type: type, topic: str, profile: QoSProfile,
              mismatches: MismatchReporter):
    """Make a publisher that follows the states of the node and reports who does not fit."""
    return node.create_lifecycle_publisher(
        message_type, topic, profile, event_callbacks=mismatches.of_publisher(topic, profile))


def matches_picture(rgb: np.ndarray, estimate: PoseEstimate) -> np.ndarray:
    """Draw the matches (M, 2) into a copy of the picture: green agree with the pose, red not."""
    picture = np.array(rgb)
    if estimate.pixels is None:
        return picture
    agree = np.zeros(len(estimate.pixels), bool)
    if estimate.inlier_mask is not None:
        agree = estimate.inlier_mask
    radius = max(2, rgb.shape[1] // 320)
    for (u, v), good in zip(np.rint(estimate.pixels).astype(int).tolist(), agree.tolist()):
        cv2.circle(picture, (u, v), radius, (60, 220, 60) if good else (220, 60, 60), -1)
    return picture


def point_cloud(points: np.ndarray, header: Header) -> PointCloud2:
    """Make a message of points (N, 3), metres, in the frame of the header."""
    data = np.ascontiguousarray(points, np.float32)
    fields = [PointField(name=name, offset=4 * k, datatype=PointField.FLOAT32, count=1)
              for k, name in enumerate('xyz')]
    message = PointCloud2(
        header=header, height=1, width=len(data), fields=fields, is_bigendian=False,
        point_step=12, row_step=12 * len(data), is_dense=True)
    content = array.array('B')  # the one type that rclpy takes as it is
    content.frombytes(data.tobytes())
    message.data = content
    return message


def _published(covariance: np.ndarray, diagonal: bool) -> np.ndarray:
    return np.diag(np.diag(covariance)) if diagonal else covariance
