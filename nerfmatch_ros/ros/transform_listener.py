"""Hears /tf and /tf_static in a thread of its own and looks transforms up."""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
import threading
import time
import traceback
from typing import Any

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.ros.quality import RELIABLE, STATIC, VOLATILE
from nerfmatch_ros.ros.tf2_buffer import Tf2Buffer
from nerfmatch_ros.ros.transform_buffer import check_link, TransformBuffer, TransformError
import numpy as np
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile

# Of /tf, as tf2_ros has it.
DYNAMIC_QUALITY = QoSProfile(depth=100, reliability=RELIABLE, durability=VOLATILE)
SECOND = 1_000_000_000  # nanoseconds
# Pause after a batch: the executor takes its 0.2 ms for batches instead of single messages.
REST = 0.004  # seconds
JOIN_SECONDS = 4.0
NAMES_KEPT = 100  # children whose bad transforms were complained about, each once

OnTransform = Callable[[str, str, int, bool], None]


def transform_message_type() -> type:
    """Give tf2_msgs/TFMessage, or raise a ConfigError that says how to get it."""
    try:
        from tf2_msgs.msg import TFMessage
    except ImportError as error:
        raise ConfigError(
            'transforms need tf2_msgs, which cannot be imported; install it with ROS or run '
            '`python tools/generate_tf2_msgs.py`') from error
    return TFMessage


def static_transform_command(parent: str, child: str) -> str:
    """Give the command that publishes a link that never changes, with its numbers to fill in."""
    return ('ros2 run tf2_ros static_transform_publisher --x X --y Y --z Z --roll R --pitch P '
            f'--yaw Y --frame-id {parent} --child-frame-id {child}')


class TransformListener:
    """
    Keeps what /tf and /tf_static say, in tf2_ros where it is installed.

    A node of its own in a thread of its own, so that a lookup may wait anywhere, and so that a
    flood of transforms delays no image. It hears the topics under the names that the node it
    belongs to would, remappings included. A clock that jumps back clears it.
    """

    def __init__(self, node: Node, *, duration: float = 30.0,
                 on_transform: OnTransform | None = None):
        """
        Listen.

        duration: seconds of transforms kept.
        on_transform: called with parent, child, stamp in nanoseconds and whether it is static, for
            every usable transform, in the listening thread.
        """
        message_type = transform_message_type()
        self._owner = node
        self.on_transform = on_transform
        self.received = 0  # usable transforms
        self.rejected: Counter[str] = Counter()  # unusable ones by child
        self._changed = threading.Condition()  # guards the buffer
        self._waiting = 0
        self._closed = False
        self._interrupts = 0
        # Without the process's arguments: a __node there would rename it. The remappings in them
        # are applied by resolving the topics as the owner does.
        self._node = Node(
            f'{node.get_name()}_tf', context=node.context, namespace=node.get_namespace(),
            use_global_arguments=False, enable_rosout=False, start_parameter_services=False,
            parameter_overrides=[Parameter('start_type_description_service', value=False)])
        self._buffer = _make_buffer(self._node, duration)
        self._dynamic, self._static = (
            self._node.create_subscription(
                message_type, node.resolve_topic_name(topic), callback, quality)
            for topic, callback, quality in (
                ('/tf', self._on_dynamic, DYNAMIC_QUALITY),
                ('/tf_static', self._on_static, STATIC)))
        self.topics = self._dynamic.topic_name, self._static.topic_name
        self._jumps = node.get_clock().create_jump_callback(
            JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1),
                          on_clock_change=True),
            post_callback=lambda _: self.clear())
        self._wake = self._node.create_guard_condition(lambda: None)
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(self._node)
        self._thread = threading.Thread(target=self._spin, name='transforms', daemon=True)
        self._thread.start()

    @property
    def uses_tf2(self) -> bool:
        """Whether tf2_ros does the work."""
        return isinstance(self._buffer, Tf2Buffer)

    @property
    def conflicts(self) -> dict[str, tuple[str, str]]:
        """Children that changed their parent, with the former and the present one."""
        with self._changed:
            return dict(self._buffer.conflicts)

    def lookup(self, target: str, source: str, stamp_ns: int, wait: float = 0.0) -> np.ndarray:
        """
        Give target_from_source (4, 4) at a stamp, waiting up to `wait` seconds for it.

        Raises a TransformError; at once where waiting cannot help, and when `interrupt` or `close`
        is called.
        """
        deadline = time.monotonic() + wait
        with self._changed:
            interrupts = self._interrupts
            while True:
                try:
                    return self._buffer.lookup(target, source, stamp_ns)
                except TransformError as error:
                    left = deadline - time.monotonic()
                    if (error.kind == 'past' or left <= 0 or self._closed
                            or interrupts != self._interrupts):
                        raise
                self._waiting += 1
                try:
                    self._changed.wait(left)
                finally:
                    self._waiting -= 1

    def latest(self, target: str, source: str) -> tuple[np.ndarray, int] | None:
        """Give target_from_source (4, 4) at the newest stamp it has, and that, or None."""
        with self._changed:
            try:
                return self._buffer.latest(target, source)
            except TransformError:
                return None

    def clear(self):
        """Forget every transform but the static ones."""
        with self._changed:
            self._buffer.clear()

    def interrupt(self):
        """Break off the lookups that wait now."""
        with self._changed:
            self._interrupts += 1
            self._changed.notify_all()

    def close(self):
        """Break off waiting lookups, end the thread and take the node down."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._jumps.unregister()
        with suppress(RuntimeError):  # a context that has ended woke the thread by itself
            self._wake.trigger()
        self._thread.join(JOIN_SECONDS)
        self._executor.shutdown(timeout_sec=0)
        self._node.destroy_node()

    def _spin(self):
        while not self._closed and self._owner.context.ok():
            try:
                self._executor.spin_once()
            except ExternalShutdownException:
                return
            except Exception:  # noqa: BLE001 - the next message may do
                if self._closed or not self._owner.context.ok():
                    return
                self._complain(f'transforms failed:\n{traceback.format_exc()}')
                time.sleep(REST)  # an error that stays must not take a whole core

    def _on_dynamic(self, message: Any):
        batch = list(message.transforms)
        subscription = self._dynamic
        # What waits behind it comes along without a turn of the executor each.
        with subscription.handle:
            for _ in range(DYNAMIC_QUALITY.depth):
                taken = subscription.handle.take_message(subscription.msg_type, False)
                if taken is None:
                    break
                batch.extend(taken[0].transforms)
        self._keep(batch, static=False)
        time.sleep(REST)

    def _on_static(self, message: Any):
        self._keep(message.transforms, static=True)

    def _keep(self, transforms: list[Any], static: bool):
        """Put transforms into the buffer, then wake who waits and tell who wants to know."""
        heard = []
        with self._changed:
            for transform in transforms:
                try:
                    heard.append(self._keep_one(transform, static))
                except DataError as error:
                    self._reject(transform.child_frame_id, error)
            self.received += len(heard)
            if self._waiting:
                self._changed.notify_all()
        if self.on_transform is not None:
            for parent, child, stamp_ns in heard:
                self.on_transform(parent, child, stamp_ns, static)

    def _keep_one(self, transform: Any, static: bool) -> tuple[str, str, int]:
        header, motion = transform.header, transform.transform
        p, q = motion.translation, motion.rotation
        numbers = p.x, p.y, p.z, q.x, q.y, q.z, q.w
        parent, child = header.frame_id.lstrip('/'), transform.child_frame_id.lstrip('/')
        stamp_ns = header.stamp.sec * SECOND + header.stamp.nanosec
        if isinstance(self._buffer, Tf2Buffer):
            check_link(parent, child, numbers)
            self._buffer.set_message(transform, static)
        else:
            self._buffer.set_numbers(parent, child, stamp_ns, numbers, static)
        return parent, child, stamp_ns

    def _reject(self, child: str, error: DataError):
        if child not in self.rejected:
            if len(self.rejected) >= NAMES_KEPT:
                child = '...'
            else:
                self._complain(f'{error}; it is ignored')
        self.rejected[child] += 1

    def _complain(self, text: str):
        self._owner.get_logger().error(text)


def _make_buffer(node: Node, duration: float) -> TransformBuffer | Tf2Buffer:
    try:
        import tf2_ros
    except ImportError:  # not among the ROS wheels
        return TransformBuffer(duration)
    return Tf2Buffer(tf2_ros, node, duration)
