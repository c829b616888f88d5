"""
The localizer node: for every image the pose of its camera in the map.

    python -m nerfmatch_ros.ros.localizer_node --ros-args -p map_path:=FOLDER

Subscribes `image` and `camera_info`; publishes `pose`, `pose_with_covariance` and /tf, each with
the stamp of the image. The executor only stores the newest image, one worker thread localizes it.
"""

from collections.abc import Callable
from pathlib import Path
import sys
import threading
import time
import traceback

from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped
from nerfmatch_ros.config import choose_device
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError, NerfmatchError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros import camera_messages, conversions
from nerfmatch_ros.ros.image_messages import image_to_rgb
from nerfmatch_ros.ros.newest_image import NewestImage
from nerfmatch_ros.ros.parameters import declare_parameters
from nerfmatch_ros.ros.ros_logging import forward_core_logs, stop_forwarding
from nerfmatch_ros.ros.run_node import run_node
from nerfmatch_ros.ros.transforms import TransformPublisher
import numpy as np
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CameraInfo, Image

NODE_NAME = 'nerfmatch_localizer'
# Asks for the least, so that drivers of every quality of service are heard.
SENSOR_QUALITY = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.BEST_EFFORT, durability=DurabilityPolicy.VOLATILE)
# Offers the most, so that every subscriber is served and a late one gets the last pose.
POSE_QUALITY = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL)
LATCHED_QUALITY = POSE_QUALITY  # the same wishes, of a camera_info that is published once
RESTART_NS = 1_000_000_000  # stamps that go back this far are a new run, such as a looping bag
WATCH_SECONDS, REPORT_SECONDS = 1.0, 30.0
THROTTLE = 5.0  # seconds between two equal complaints
JOIN_SECONDS = 4.0  # ros2 launch loses patience after 5


def load_localizer(map_folder: Path, *, device: str, threads: int | None):
    """Give the localizer of a map."""
    # Imported late: a wrong parameter is reported before this takes its seconds.
    from nerfmatch_ros.localization.localizer import Localizer
    return Localizer.load(map_folder, device=device, threads=threads)


def warm_up(localizer) -> float:
    """Localize a picture of noise, so that the first real one is not slow; give the seconds."""
    scene_map = localizer.scene_map
    camera = scene_map.cameras[0]
    noise = np.random.default_rng(0).integers(
        0, 256, (camera.height, camera.width, 3), dtype=np.uint8)
    start = time.perf_counter()
    # With a prior the field is rendered too; without success the whole map is searched as well.
    localizer.localize(
        PosedImage('warm-up', camera, pixels=noise), prior=scene_map.reference_poses[0])
    return time.perf_counter() - start


class LocalizerNode(Node):
    """Reads parameters, loads the map, publishes, subscribes, localizes."""

    def __init__(self, load: Callable[..., object] = load_localizer, **options):
        """Load the map and start; load: stands in for `load_localizer`."""
        super().__init__(NODE_NAME, **options)
        parameters = declare_parameters(self)
        self._global_frame, self._camera_frame = (
            parameters.global_frame_id, parameters.camera_frame_id)
        self._log_handler = forward_core_logs(self.get_logger())
        device = choose_device(parameters.device)
        self._localizer = load(
            Path(parameters.map_path), device=device, threads=parameters.threads or None)
        warm_up_seconds = warm_up(self._localizer)

        self._cameras: dict[str, Camera] = {}  # by frame of the image
        self._info_keys: dict[str, tuple] = {}  # of the last camera_info, also of a bad one
        self._newest_ns: int | None = None  # stamp of the newest image received
        self._run = 0  # counts restarts of the stamps
        self._previous: tuple[int, np.ndarray] | None = None  # run and pose, of the worker
        self.processed = self.dropped = self.failed = 0
        self._reported = (0, 0, 0)

        self._poses = self.create_publisher(PoseStamped, 'pose', POSE_QUALITY)
        self._covariances = self.create_publisher(
            PoseWithCovarianceStamped, 'pose_with_covariance', POSE_QUALITY)
        self._transforms = (
            TransformPublisher(self, self._global_frame) if parameters.tf_broadcast else None)

        self._slot = NewestImage(lambda message: message.header.frame_id in self._cameras)
        self._worker = threading.Thread(target=self._work, name='localizer', daemon=True)
        self._images = self.create_subscription(
            Image, 'image', self._on_image, SENSOR_QUALITY)
        self._infos = self.create_subscription(
            CameraInfo, 'camera_info', self._on_camera_info, SENSOR_QUALITY)
        self._latched_infos = None  # made once somebody offers one
        # Steady clocks: these must run while simulated time stands still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(WATCH_SECONDS, self._watch, clock=steady)
        self.create_timer(REPORT_SECONDS, self._report, clock=steady)
        self._started = time.monotonic()
        self._worker.start()
        outputs = self._poses.topic_name + (
            f' and {self._transforms.topic}' if self._transforms else '')
        self.get_logger().info(
            f'map {parameters.map_path}, device {device}, warm-up {warm_up_seconds:.2f} s; '
            f'images from {self._images.topic_name}, cameras from {self._infos.topic_name}; '
            f'poses in frame {self._global_frame} to {outputs}')

    def close(self) -> bool:
        """Stop the worker and let go of ROS; False if an inference would not end in time."""
        worker = getattr(self, '_worker', None)
        stopped = True
        if worker is not None and worker.is_alive():
            self._slot.close()
            worker.join(JOIN_SECONDS)
            stopped = not worker.is_alive()
            self._report()
        if hasattr(self, '_log_handler'):
            stop_forwarding(self._log_handler)
        self.destroy_node()
        return stopped

    def _on_camera_info(self, message: CameraInfo):
        """Keep the camera of a frame, unless nothing changed."""
        frame, key = message.header.frame_id, camera_messages.info_key(message)
        if self._info_keys.get(frame) == key:
            return
        self._info_keys[frame] = key
        known = self._cameras.get(frame)
        try:
            self._cameras[frame] = camera_messages.camera_from_info(message)
        except DataError as error:
            keep = known is not None and (
                (known.width, known.height) == (message.width, message.height))
            if not keep:
                self._cameras.pop(frame, None)
            self.get_logger().error(
                f"camera_info of frame '{frame}' cannot be used: {error}; "
                + ('the last good one is kept' if keep else 'its images wait for a good one'))
            return
        self._slot.look_again()

    def _on_image(self, message: Image):
        """Store the image for the worker, unless its stamp makes it useless."""
        stamp = conversions.stamp_ns(message.header)
        if stamp == 0:
            self.dropped += 1
            self.get_logger().warning(
                'image without a stamp is dropped: a pose needs the time it is of; '
                'have the driver set header.stamp', throttle_duration_sec=THROTTLE)
            return
        if self._newest_ns is not None:
            behind = self._newest_ns - stamp
            if behind >= RESTART_NS:
                self._run += 1
                self.get_logger().info(f'stamps went back by {behind / 1e9:.1f} s: a new run')
            elif behind >= 0:
                self.dropped += 1
                self.get_logger().warning(
                    'image is dropped: ' + (f'it is {behind / 1e6:.1f} ms older than the one '
                                            'before' if behind else 'its stamp came before'),
                    throttle_duration_sec=THROTTLE)
                return
        self._newest_ns = stamp
        self._slot.put(message)

    def _work(self):
        """Localize images until the node stops; an error concerns one image only."""
        while (message := self._slot.take()) is not None:
            stamp = message.header.stamp
            name = f'{stamp.sec}.{stamp.nanosec:09d}'
            # Each kind of trouble has a line of its own, so that none throttles another.
            try:
                reason = self._localize(message, name)
            except NerfmatchError as error:
                self.failed += 1
                self.get_logger().warning(f'image {name} cannot be used: {error}',
                                          throttle_duration_sec=THROTTLE)
            except Exception:  # noqa: BLE001 - whatever it is, the next image may do
                self.failed += 1
                self.get_logger().error(f'image {name} failed:\n{traceback.format_exc()}',
                                        throttle_duration_sec=THROTTLE)
            else:
                self.processed += not reason
                self.failed += bool(reason)
                if reason:
                    self.get_logger().warning(f'no pose for image {name}: {reason}',
                                              throttle_duration_sec=THROTTLE)

    def _localize(self, message: Image, name: str) -> str:
        """Publish the pose of an image; give the reason where there is none, else ''."""
        run, header = self._run, message.header
        pixels = image_to_rgb(message)
        camera = self._cameras.get(header.frame_id)
        if camera is None:  # a bad camera_info came in this very moment
            return 'its camera_info became unusable'
        camera = camera_messages.fit_to_image(camera, message.width, message.height)
        prior = None
        if self.get_parameter('use_prior').value and self._previous is not None:
            prior = self._previous[1] if self._previous[0] == run else None
        self._previous = None
        estimate = self._localizer.localize(
            PosedImage(name, camera, pixels=pixels, stamp=conversions.stamp_ns(header) * 1e-9),
            prior=prior)
        pose = estimate.map_from_camera
        if pose is None:
            return estimate.reason or 'the localizer gives no reason'
        message = conversions.pose_stamped(pose, header.stamp, self._global_frame)
        if self._slot.closed:
            return ''
        self._previous = run, pose
        child = self._camera_frame or header.frame_id
        # The transform goes first: who receives the pose may look it up at once.
        if self._transforms is not None and self._names_child(child):
            self._transforms.publish(pose, header.stamp, child.lstrip('/'))
        self._poses.publish(message)
        if estimate.covariance is not None:
            self._covariances.publish(conversions.pose_with_covariance(
                pose, estimate.covariance, header.stamp, self._global_frame))
        return ''

    def _names_child(self, child: str) -> bool:
        """Tell whether a frame can be the child of the map's; complain if not."""
        if child.lstrip('/') not in ('', self._global_frame):
            return True
        self.get_logger().error(
            f"no transform is sent: the image's frame_id is '{child}'; name the camera's frame "
            'with camera_frame_id', throttle_duration_sec=THROTTLE)
        return False

    def _subscribe_latched_infos(self):
        """Ask for the camera_info that was published once, perhaps before this node came up.

        Only where it is offered: an ordinary driver would warn of a subscriber it cannot serve.
        """
        if self._latched_infos is None and any(
                info.qos_profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
                for info in self.get_publishers_info_by_topic(self._infos.topic_name)):
            self._latched_infos = self.create_subscription(
                CameraInfo, 'camera_info', self._on_camera_info, LATCHED_QUALITY)

    def _watch(self):
        """Look for a latched camera_info; say what is missing while nothing can be done."""
        self._subscribe_latched_infos()
        if time.monotonic() - self._started < THROTTLE:
            return  # others may be starting too
        waiting = self._slot.waiting()
        if self._newest_ns is None:
            topic = self._images.topic_name
            self.get_logger().warning(
                f'no image yet on {topic} ({self.count_publishers(topic)} publishers)',
                throttle_duration_sec=THROTTLE)
        elif waiting is not None and waiting.header.frame_id not in self._cameras:
            topic = self._infos.topic_name
            self.get_logger().warning(
                f"images of frame '{waiting.header.frame_id}' wait for a usable camera_info on "
                f'{topic} ({self.count_publishers(topic)} publishers; frames heard: '
                f'{sorted(self._info_keys) or "none"})', throttle_duration_sec=THROTTLE)

    def _report(self):
        """Log the counts if they changed."""
        counts = (self.processed, self.dropped + self._slot.replaced, self.failed)
        if counts != self._reported:
            self._reported = counts
            self.get_logger().info(
                f'{counts[0]} images processed, {counts[1]} dropped, {counts[2]} without a pose')


def main(args: list[str] | None = None, load: Callable[..., object] = load_localizer) -> int:
    """Run the node until it is told to stop; give the exit code."""
    return run_node(lambda: LocalizerNode(load), NODE_NAME, args)


if __name__ == '__main__':
    sys.exit(main())
