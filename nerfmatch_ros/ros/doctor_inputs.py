"""What the doctor hears: the inputs of the localizer, under the names that it has for them."""

from dataclasses import dataclass
from functools import partial
import os
import time
from typing import Any

from geometry_msgs.msg import PoseWithCovarianceStamped
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.ros.conversions import stamp_ns
from nerfmatch_ros.ros.doctor_findings import End
from nerfmatch_ros.ros.quality import LATCHED, SENSOR, TRANSIENT_LOCAL
from nerfmatch_ros.ros.transform_buffer import TransformError
from nerfmatch_ros.ros.transform_listener import TransformListener
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from rclpy.subscription import Subscription
from rclpy.validate_topic_name import validate_topic_name
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

LOCALIZER = 'nerfmatch_localizer'
DISCOVERY_SECONDS = 1.0  # until others and their topics are known
TURN_SECONDS = 0.05

IMAGE, COMPRESSED, INFO, TRANSFORMS = (
    'sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage', 'sensor_msgs/msg/CameraInfo',
    'tf2_msgs/msg/TFMessage')


@dataclass(frozen=True)
class DoctorOptions:
    """Where to listen; '' for a topic: where the localizer listens, or would by default."""

    namespace: str = ''  # of the localizer
    image: str = ''  # topic
    camera_info: str = ''  # topic; '' with an image topic given: camera_info beside it
    seconds: float = 3.0  # to listen at most
    base: str = 'base_link'  # frame of the robot; '': tf_mode map_to_camera, no transform needed
    odom: str = 'odom'  # frame of the odometry; '': tf_mode map_to_base, none needed
    camera: str = ''  # frame of the camera; '': that of the image

    def __post_init__(self):
        """Check the time."""
        if not 0 < self.seconds < float('inf'):
            raise ConfigError(f'seconds {self.seconds} is no time to listen; give a positive one')


class Inputs:
    """A plain node, its subscriptions and what came in; public names are for the verdicts."""

    def __init__(self, options: DoctorOptions, context: rclpy.Context):
        """Look around, then subscribe."""
        self.options = options
        self.namespace = '/' + options.namespace.strip('/')
        self._node = Node(f'nerfmatch_doctor_{os.getpid()}', context=context,
                          namespace=self.namespace, use_global_arguments=False,
                          start_parameter_services=False)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self._node)
        self.listener: TransformListener | None = None
        self._listening_node: Node | None = None
        self._transform_topics: dict[str, str] = {}
        self._subscriptions: dict[tuple, Subscription] = {}
        self.image: Image | CompressedImage | None = None  # the newest one
        self.infos: dict[str, CameraInfo] = {}  # the newest one of each frame
        self.poses: dict[str, PoseWithCovarianceStamped] = {}  # the newest one by input
        try:
            self._look_around()
            self._subscribe()
        except BaseException:
            self.close()
            raise

    def close(self):
        """Take everything down."""
        self._stop_listening()
        self._node.destroy_node()
        self._executor.shutdown(timeout_sec=0)

    def listen(self):
        """Listen until everything needed is there, or the time is over."""
        deadline = time.monotonic() + self.options.seconds
        while time.monotonic() < deadline and not self._is_complete():
            self._executor.spin_once(timeout_sec=TURN_SECONDS)
            # On a busy machine the localizer, or some of its topics, may become known only now.
            if self._subscribe():
                deadline = time.monotonic() + self.options.seconds

    # Who is there, and which topics they use

    def _look_around(self):
        """Let the others become known."""
        deadline = time.monotonic() + DISCOVERY_SECONDS
        while time.monotonic() < deadline:
            self._executor.spin_once(timeout_sec=TURN_SECONDS)

    def runs(self) -> bool:
        """Tell whether the localizer does."""
        return (LOCALIZER, self.namespace) in self._node.get_node_names_and_namespaces()

    def topics_of(self, name: str) -> dict[str, list[str]]:
        """Give the topics that a node subscribes, with their types."""
        if (name, self.namespace) not in self._node.get_node_names_and_namespaces():
            return {}
        return dict(self._node.get_subscriber_names_and_types_by_node(name, self.namespace))

    def topics_with(self, *types: str) -> list[str]:
        """Give all topics on which others than the localizer publish messages of a type."""
        own = f'{self.namespace.rstrip("/")}/{LOCALIZER}'
        return [topic for topic, found in self._node.get_topic_names_and_types()
                if set(types) & set(found)
                and any(end.node != own for end in self.publishers(topic))]

    def publishers(self, topic: str) -> list[End]:
        """Give who publishes a topic."""
        return [End(f'{end.node_namespace.rstrip("/")}/{end.node_name}', end.qos_profile)
                for end in self._node.get_publishers_info_by_topic(topic)]

    def asked(self, topic: str, default: QoSProfile) -> QoSProfile:
        """Give the quality of service that the localizer asks for, or would."""
        for end in self._node.get_subscriptions_info_by_topic(topic):
            if (end.node_name, end.node_namespace) == (LOCALIZER, self.namespace):
                return end.qos_profile
        return default

    def _choose_topics(self):
        options, used = self.options, self.topics_of(LOCALIZER)
        for topic in filter(None, (options.image, options.camera_info)):
            validate_topic_name(topic)
        images = sorted(t for t, types in used.items() if {IMAGE, COMPRESSED} & set(types))
        infos = sorted(t for t, types in used.items() if INFO in types)
        self.other_cameras = [] if options.image else images[1:]
        resolve = self._node.resolve_topic_name
        self.image_topic = resolve(options.image or (images or ['image'])[0])
        info = options.camera_info
        if not info and options.image:
            info = f'{self.image_topic.removesuffix("/compressed").rpartition("/")[0]}/camera_info'
        self.info_topic = resolve(info or (infos or ['camera_info'])[0])
        self.pose_topics = {
            name: next((t for t in used if t.rpartition('/')[2] == name), resolve(name))
            for name in ('initialpose', 'refined_pose')}

    def _choose_transform_topics(self) -> dict[str, str]:
        """Give /tf and /tf_static under the names that the localizer has for them."""
        used = [topic for topic, types in self.topics_of(f'{LOCALIZER}_tf').items()
                if TRANSFORMS in types]
        names = {}
        for name in ('/tf', '/tf_static'):
            own = f'{self.namespace.rstrip("/")}{name}'
            if own in used or name not in used and self.publishers(own):
                names[name] = own
            else:
                names[name] = name
        return names

    # What comes in

    def _subscribe(self) -> bool:
        """Listen to the topics as they are known now; True if they are others than before."""
        self._choose_topics()
        compressed = (self.image_topic in self.topics_with(COMPRESSED)
                      or self.image_topic.endswith('/compressed'))
        image = CompressedImage if compressed else Image
        # By topic, type and whether what was sent before counts.
        wanted = {(self.image_topic, image, False): self._on_image,
                  (self.info_topic, CameraInfo, False): self._on_info}
        if any(end.profile.durability == TRANSIENT_LOCAL
               for end in self.publishers(self.info_topic)):
            wanted[self.info_topic, CameraInfo, True] = self._on_info
        for name, topic in self.pose_topics.items():
            wanted[topic, PoseWithCovarianceStamped, False] = partial(
                self.poses.__setitem__, name)
        changed = False
        for key in set(self._subscriptions) - set(wanted):
            self._node.destroy_subscription(self._subscriptions.pop(key))
        for key in set(wanted) - set(self._subscriptions):
            topic, kind, latched = key
            self._subscriptions[key] = self._node.create_subscription(
                kind, topic, wanted[key], LATCHED if latched else SENSOR)
            changed = True
        return self._listen_to_transforms() or changed

    def _listen_to_transforms(self) -> bool:
        """Make the listener, anew if its topics changed; True if so."""
        names = self._choose_transform_topics() if self.options.base else {}
        if names == self._transform_topics:
            return False
        self._stop_listening()
        self._transform_topics = names
        remappings = [word for name, topic in names.items() for word in ('-r', f'{name}:={topic}')]
        self._listening_node = Node(
            f'{self._node.get_name()}_listener', context=self._node.context,
            use_global_arguments=False, start_parameter_services=False,
            cli_args=['--ros-args', *remappings])
        self.listener = TransformListener(self._listening_node)
        return True

    def _stop_listening(self):
        if self.listener is not None:
            self.listener.close()
        if self._listening_node is not None:
            self._listening_node.destroy_node()
        self.listener = self._listening_node = None

    def _on_image(self, message: Any):
        self.image = message

    def _on_info(self, message: CameraInfo):
        self.infos[message.header.frame_id] = message

    def _is_complete(self) -> bool:
        """Tell whether nothing that is needed is missing any more."""
        if self.image is None or self.image.header.frame_id not in self.infos:
            return False
        links = self.links()
        if any('' in pair for pair in links):
            return True
        try:
            for target, source in links:
                self.listener.lookup(target, source, stamp_ns(self.image.header))
        except TransformError:
            return False
        return True

    def links(self) -> list[tuple[str, str]]:
        """Give the transforms that are needed: odom and base, base and camera."""
        options = self.options
        if not options.base:
            return []
        camera = options.camera or (self.image.header.frame_id if self.image else '')
        odometry = [(options.odom, options.base)] if options.odom else []
        return [*odometry, (options.base, camera.lstrip('/'))]

    def now_ns(self) -> int:
        """Give the time of this machine."""
        return self._node.get_clock().now().nanoseconds

    def localizers(self) -> list[str]:
        """Give the namespaces in which a localizer runs."""
        return [space for name, space in self._node.get_node_names_and_namespaces()
                if name == LOCALIZER]
