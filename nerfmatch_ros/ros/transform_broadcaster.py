"""Sends map -> odom at a steady rate, from a thread of its own."""

from collections.abc import Callable
import threading
import time
import traceback

from nerfmatch_ros.localization.pose_slew import SlewLimits
from nerfmatch_ros.ros.foreign_watch import ForeignWatch
from nerfmatch_ros.ros.map_to_odom import MapToOdom
from nerfmatch_ros.ros.transform_listener import TransformListener
from nerfmatch_ros.ros.transforms import TransformPublisher
import numpy as np
from rclpy.node import Node

JOIN_SECONDS = 4.0
COMPLAINT_SECONDS = 5.0  # between two complaints

OnJump = Callable[[float, float], None]


class MapToOdomBroadcaster:
    """
    Keeps map -> odom on /tf, however long an image takes.

    `enabled`, `limits`, `tolerance` and `stale_timeout` may be set while it runs.
    """

    def __init__(
        self, node: Node, listener: TransformListener, *, parent: str, child: str, base: str,
        rate: float, now_ns: Callable[[], int], limits: SlewLimits, tolerance: float,
        stale_timeout: float = 0.0, on_jump: OnJump | None = None,
        watch: ForeignWatch | None = None,
    ):
        """
        Start; nothing is sent before the first goal.

        listener: knows where the base is in the child, the odometry's frame.
        rate: a second, by a steady clock.
        now_ns: time of the node in nanoseconds, from which the stamps are made.
        tolerance, stale_timeout: seconds, see `MapToOdom.step`.
        on_jump: called with metres and radians when the base is moved at once, in this thread.
        watch: told of all that is sent.
        """
        self.enabled = True
        self.limits, self.tolerance, self.stale_timeout = limits, tolerance, stale_timeout
        self.sent = self.jumps = self.errors = 0
        self._node, self._listener = node, listener
        self._parent, self._child, self._base = parent, child, base
        self._period, self._now_ns, self._on_jump = 1 / rate, now_ns, on_jump
        self._publisher = TransformPublisher(node, watch=watch)
        self.topic = self._publisher.topic
        self._lock = threading.Lock()  # guards the motion
        self._motion = MapToOdom(now_ns())
        self._closing = threading.Event()
        self._complained = -COMPLAINT_SECONDS
        self._thread = threading.Thread(target=self._run, name='map_to_odom', daemon=True)
        self._thread.start()

    @property
    def last_stamp_ns(self) -> int | None:
        """Stamp of the newest transform sent."""
        return self._motion.last_stamp_ns

    def set_goal(self, map_from_odom: np.ndarray, odom_from_base: np.ndarray | None = None):
        """Aim at map_from_odom (4, 4); odom_from_base: (4, 4), if `listener` should not know."""
        now_ns, steady = self._now_ns(), time.monotonic()
        with self._lock:
            self._motion.set_goal(map_from_odom, odom_from_base, now_ns, steady)

    def clear_goal(self):
        """Stop sending until the next goal, which is then taken at once."""
        with self._lock:
            self._motion.clear_goal()

    def close(self):
        """End the thread and take the publisher down."""
        if self._closing.is_set():
            return
        self._closing.set()
        self._thread.join(JOIN_SECONDS)
        self._publisher.close()

    def _run(self):
        due = time.monotonic()
        while not self._closing.is_set():
            try:
                self._tick()
            except Exception:  # noqa: BLE001 - consumers need the next one all the more
                self.errors += 1
                self._complain()
            # What is late is not made up for: consumers want the newest, not more of them.
            due = max(due + self._period, time.monotonic())
            self._closing.wait(due - time.monotonic())

    def _tick(self):
        with self._lock:
            if not self.enabled:
                return
            broadcast = self._motion.step(
                self._now_ns(), time.monotonic(), self._latest_odom_from_base, limits=self.limits,
                tolerance=self.tolerance, stale_timeout=self.stale_timeout)
            if broadcast is None:
                return
            # Under the lock, so that nothing is sent any more once `clear_goal` has returned.
            self._publisher.send(
                self._parent, self._child, broadcast.map_from_odom, broadcast.stamp_ns)
            self.sent += 1
        if broadcast.jump is not None:
            self.jumps += 1
            if self._on_jump is not None:
                self._on_jump(*broadcast.jump)

    def _latest_odom_from_base(self) -> np.ndarray | None:
        found = self._listener.latest(self._child, self._base)
        return None if found is None else found[0]

    def _complain(self):
        now = time.monotonic()
        if self._closing.is_set() or not self._node.context.ok():
            return
        if now - self._complained >= COMPLAINT_SECONDS:
            self._complained = now
            self._node.get_logger().error(
                f'{self._parent} -> {self._child} failed:\n{traceback.format_exc()}')
