"""The localizer node run as a process of its own, and the other end of its topics."""

from collections.abc import Mapping
from functools import partial
import os
from pathlib import Path
import time

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.ros.camera_messages import info_message
from nerfmatch_ros.ros.conversions import matrix_from_pose
from nerfmatch_ros.ros.image_messages import image_message
from nerfmatch_ros.ros.node_process import NodeProcess, own_domain, own_environment
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

FRAME = 'camera_optical_frame'
SETTLE_SECONDS = 0.5
RESEND_SECONDS = 2.0
COVARIANCE_SECONDS = 0.2  # to wait for the covariance after the pose; the node sends both at once


class NodeClient:
    """
    Sends images to a localizer node and waits for the pose of each.

    Used as a context: the node starts on entry and is stopped on exit. Both ends share a domain
    that depends on this process and keep to this machine, so nothing else hears them.
    """

    def __init__(
        self, map_folder: Path, log: Path, *, parameters: Mapping[str, str] | None = None,
        module: str = 'nerfmatch_ros.ros.localizer_node',
    ):
        """
        Prepare; nothing runs before the context is entered.

        log: file for what the node prints; parameters: of the node, name to text; module: what
        `python -m` runs as the node.
        """
        values = {'map_path': Path(map_folder).resolve(), **(parameters or {})}
        self._domain = own_domain()
        log.unlink(missing_ok=True)
        self._process = NodeProcess(
            module, log, domain=self._domain, name='localizer node', parameters=values)
        # Answers by the stamp of their image.
        self._poses: dict[tuple[int, int], PoseStamped] = {}
        self._covariances: dict[tuple[int, int], PoseWithCovarianceStamped] = {}

    def __enter__(self) -> 'NodeClient':
        """Start the node and wait until it listens."""
        os.environ.update(own_environment(self._domain))
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=self._domain)
        self._node = rclpy.create_node('nerfmatch_client', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self._node)
        self._images = self._node.create_publisher(Image, 'image', 1)
        self._infos = self._node.create_publisher(CameraInfo, 'camera_info', 1)
        # Receives from a reliable and from a best-effort publisher alike.
        quality = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
        self._subscriptions = [
            self._node.create_subscription(
                PoseStamped, 'pose', partial(keep, self._poses), quality),
            self._node.create_subscription(
                PoseWithCovarianceStamped, 'pose_with_covariance',
                partial(keep, self._covariances), quality)]
        try:
            self._start_process()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        """Stop the node as Ctrl-C does, harder if that does not help."""
        self._process.stop()
        self._executor.shutdown()
        self._node.destroy_node()
        rclpy.shutdown(context=self._context)

    def localize(self, image: PosedImage, timeout: float = 10.0) -> PoseEstimate:
        """
        Publish the image and wait for its pose and covariance.

        timeout: seconds to wait; the node publishes nothing for an image that it cannot localize.
        """
        stamp = self._node.get_clock().now().to_msg()
        info = info_message(image.camera, stamp, FRAME)
        message = image_message(image.rgb(), stamp, FRAME)
        key = (stamp.sec, stamp.nanosec)
        pose = covariance = None
        reason = f'no pose within {timeout:g} s'
        deadline = time.monotonic() + timeout
        while key not in self._poses and (left := deadline - time.monotonic()) > 0:
            # Best effort may lose a message, surely so while the other end is still connecting;
            # the node ignores an image whose stamp it has seen.
            self._infos.publish(info)
            self._images.publish(message)
            self._spin_until(lambda: key in self._poses, min(left, RESEND_SECONDS))
        if key in self._poses:
            pose, reason = matrix_from_pose(self._poses.pop(key).pose), ''
            if self._spin_until(lambda: key in self._covariances, COVARIANCE_SECONDS):
                covariance = self._covariances.pop(key).pose.covariance.reshape(6, 6)
        return PoseEstimate(
            map_from_camera=pose, reason=reason, covariance=covariance, inliers=0, matches=0,
            reprojection_error=float('nan'))

    def _start_process(self):
        self._process.start()
        connected = self._spin_until(lambda: (
            self._images.get_subscription_count() and self._infos.get_subscription_count()
            and self._node.count_publishers('pose')), 120.0)
        if not connected:
            raise NerfmatchError(f'the localizer node did not listen within 120 s'
                                 f'{self._process.tail()}')
        # This end is connected; the other one usually is a moment later.
        self._spin_until(lambda: False, SETTLE_SECONDS)

    def _spin_until(self, done, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not done():
            self._process.check()
            if time.monotonic() > deadline:
                return False
            self._executor.spin_once(timeout_sec=0.05)
        return True


def keep(answers: dict, message: PoseStamped | PoseWithCovarianceStamped) -> None:
    """Store a message by its stamp."""
    answers[message.header.stamp.sec, message.header.stamp.nanosec] = message
