"""Images and their cameras as they come from the topics: subscribed, sifted, decoded."""

from collections.abc import Callable
import time
from typing import Any
import zlib

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.ros.camera_messages import CameraCache, MOST_FRAMES
from nerfmatch_ros.ros.conversions import stamp_message, stamp_ns
from nerfmatch_ros.ros.frame_gate import FrameGate, picture_fault
from nerfmatch_ros.ros.image_messages import compressed_to_rgb, FrameRejected, image_to_rgb
from nerfmatch_ros.ros.quality import LATCHED, MismatchReporter, SENSOR_BY_NAME, TRANSIENT_LOCAL
import numpy as np
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

_FINGERPRINT_STRIDE = 499  # bytes; enough of them differ between any two pictures of a sensor


def fingerprint(data: Any) -> int:
    """Give a number that is the same for the same bytes, from a sample of them."""
    return zlib.crc32(np.frombuffer(data, np.uint8)[::_FINGERPRINT_STRIDE].tobytes(), len(data))


class ImageInput:
    """
    Subscribes images and camera_info of one or several cameras.

    What can be told from the header is told in the callback; the picture itself is only decoded
    for a frame that is worked on, by `decode`, on the thread of the caller.
    """

    def __init__(
        self, node, parameters: Any, mismatches: MismatchReporter, *,
        gate: FrameGate, on_frame: Callable[[Any], None], drop: Callable[[str, str], None],
        on_restart: Callable[[], None] = lambda: None,
        on_camera: Callable[[], None] = lambda: None, zero_is_now: bool = False,
    ):
        """
        Listen from now on.

        parameters: with image_transport, image_qos, rectified, camera_names; gate: sifts by stamp;
        on_frame: gets each message that passes; drop: gets the kind and the text of what does
        not; on_restart: the stamps began anew; on_camera: a camera became known; zero_is_now: a
        stamp of 0 stands for the time of arrival.
        """
        self._node = node
        self._drop = drop
        self.gate = gate
        self._on_frame, self._on_restart, self._on_camera = on_frame, on_restart, on_camera
        self._zero_is_now = zero_is_now
        self._compressed = parameters.image_transport == 'compressed'
        quality = SENSOR_BY_NAME[parameters.image_qos]
        prefixes = [f'{name}/' for name in parameters.camera_names] or ['']
        suffix = '/compressed' if self._compressed else ''
        self.received = 0
        self.last_arrival = 0.0  # time.monotonic()
        self.encoding = ''
        self.size: tuple[int, int] | None = None  # width, height
        self._lacking: dict[str, float] = {}  # since when images of a frame lack a camera_info
        self._subscriptions = []
        self.image_topics, self.info_topics = [], []
        self._latched: dict[str, Any] = {}
        for prefix in prefixes:
            topic, info_topic = f'{prefix}image', f'{prefix}camera_info'
            images = node.create_subscription(
                CompressedImage if self._compressed else Image, topic + suffix, self._receive,
                quality,
                event_callbacks=mismatches.of_subscription(topic + suffix, quality))
            infos = node.create_subscription(
                CameraInfo, info_topic, self._receive_info, quality,
                event_callbacks=mismatches.of_subscription(info_topic, quality))
            self._subscriptions += [images, infos]
            self.image_topics.append(images.topic_name)
            self.info_topics.append(infos.topic_name)
        rectified = parameters.rectified == 'true' or parameters.rectified == 'auto' and all(
            'rect' in topic.rsplit('/', 2 if self._compressed else 1)[-1]
            or 'image_rect' in topic for topic in self.image_topics)
        self.cameras = CameraCache(rectified=rectified)

    def close(self):
        """Stop listening."""
        for subscription in (*self._subscriptions, *self._latched.values()):
            self._node.destroy_subscription(subscription)
        self._subscriptions, self._latched = [], {}

    def lacking(self) -> dict[str, float]:
        """Give the frames that images come of but no camera_info, with seconds since when."""
        now = time.monotonic()
        return {frame: now - since for frame, since in list(self._lacking.items())}

    def seek_latched(self):
        """Ask for a camera_info that was published once, perhaps before this node came up.

        Only where it is offered: an ordinary driver would warn of a subscriber it cannot serve.
        """
        for topic in self.info_topics:
            if topic not in self._latched and any(
                    info.qos_profile.durability == TRANSIENT_LOCAL
                    for info in self._node.get_publishers_info_by_topic(topic)):
                self._latched[topic] = self._node.create_subscription(
                    CameraInfo, topic, self._receive_info, LATCHED)

    def decode(self, message: Any) -> PosedImage:
        """
        Give the picture of a message with its camera.

        Raises FrameRejected, whose kind goes to the counters: what cannot be decoded, shows
        nothing (a covered lens, overexposure), or has no camera that is known.
        """
        pixels = (compressed_to_rgb if self._compressed else image_to_rgb)(message)
        height, width = pixels.shape[:2]
        self.size = width, height
        camera = self.cameras.get(message.header.frame_id, width, height)
        fault = picture_fault(pixels)
        if fault:
            raise FrameRejected(fault, f'the picture is {fault}: is the lens covered, or the '
                                       'exposure wrong?')
        stamp = message.header.stamp
        return PosedImage(f'{stamp.sec}.{stamp.nanosec:09d}', camera, pixels=pixels,
                          stamp=stamp.sec + stamp.nanosec * 1e-9)

    def _receive(self, message: Any):
        """Hand a message on, unless its header makes it useless."""
        self.received += 1
        self.last_arrival = time.monotonic()
        now_ns = self._node.now_ns()
        if self._zero_is_now and stamp_ns(message.header) == 0:
            message.header.stamp = stamp_message(now_ns)
        frame_id = message.header.frame_id
        drop = self.gate.check(
            stamp_ns(message.header), now_ns, fingerprint(message.data), frame_id)
        if self.gate.restarted:
            self._on_restart()
        if drop is not None:
            self._drop(drop.kind, drop.text)
            return
        if not self.cameras.has_heard_of(frame_id) and len(self._lacking) < MOST_FRAMES:
            self._lacking.setdefault(frame_id, self.last_arrival)
        self.encoding = message.format if self._compressed else message.encoding
        self._on_frame(message)

    def _receive_info(self, message: CameraInfo):
        complaint = self.cameras.put(message)
        if complaint:
            self._node.get_logger().error(complaint)
        for frame_id in filter(self.cameras.has_heard_of, list(self._lacking)):
            del self._lacking[frame_id]
        self._on_camera()
