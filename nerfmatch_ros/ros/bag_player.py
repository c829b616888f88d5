"""Plays a bag onto live topics, with /clock, at the pace of its stamps."""

from collections.abc import Callable, Iterable
from importlib import import_module
import time
from typing import Any

from builtin_interfaces.msg import Time
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.ros.bag import BagReader, BagTopic
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

CLOCK_PERIOD = 0.01  # seconds of wall time between two ticks of the simulated clock
SETTLE_SECONDS = 0.5  # after this end is connected, the other one usually is a moment later


class BagPlayer:
    """
    Publishes the messages of a bag as they lie there, without decoding them.

    A subscriber that uses simulated time sees the same delays as when the bag was recorded,
    shortened by the rate.
    """

    def __init__(self, node: Node, bag: BagReader, names: Iterable[str], *, rate: float = 1.0):
        """Make the publishers, with the quality of service that the bag says."""
        if not 0 < rate < float('inf'):
            raise ConfigError(f'--rate {rate:g}: how often faster than recorded, above 0')
        self._node, self._bag, self._rate = node, bag, rate
        self._publishers = {
            name: node.create_publisher(message_class(topic.type), name, profile_of(topic))
            for name in names if (topic := bag.topics.get(name)) is not None}
        self._clock = node.create_publisher(Clock, '/clock', 10)
        self._now_ns = 0
        self._start, self._first_ns = 0.0, 0  # of the play: time.monotonic() and time of the bag
        self._ticked = -float('inf'), -2**63  # time.monotonic() and time of the last tick

    def wait_for_subscribers(
        self, counts: dict[str, int], timeout: float, check: Callable[[], None] = lambda: None,
    ) -> bool:
        """
        Wait until each topic has that many subscribers; False if that takes too long.

        check: called now and then, to raise when waiting has become pointless.
        """
        deadline = time.monotonic() + timeout
        while any(self._publishers[name].get_subscription_count() < count
                  for name, count in counts.items()):
            check()
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        time.sleep(SETTLE_SECONDS)
        return True

    def play(
        self, on_sent: Callable[[str, int, bytes, float], None] = lambda *_: None,
        during: Callable[[float], None] = lambda _: None,
    ) -> None:
        """
        Play the bag once, from its first message to its last.

        on_sent: called with name, time of recording in ns, data and the monotonic time of each
        message that went out; during: called all the time with the seconds of the bag played.
        """
        self._start = 0.0
        for name, time_ns, data in self._bag.serialized(self._publishers):
            if not self._start:
                self._start, self._first_ns = time.monotonic(), time_ns
            due = self._start + (time_ns - self._first_ns) / 1e9 / self._rate
            while (wait := due - time.monotonic()) > 0:
                self._tick(time_ns - int(wait * self._rate * 1e9))
                during((self._now_ns - self._first_ns) / 1e9)
                time.sleep(min(wait, CLOCK_PERIOD))
            self._tick(time_ns)
            sent = time.monotonic()
            self._publishers[name].publish(bytes(data))
            on_sent(name, time_ns, data, sent)
        if not self._start:
            raise DataError(f'the bag {self._bag.path} has no message to play')

    def hold(self, done: Callable[[], bool], timeout: float) -> bool:
        """Let the clock go on after the end until something is done; False after the timeout."""
        start, begin_ns = time.monotonic(), self._now_ns
        while not done():
            elapsed = time.monotonic() - start
            if elapsed > timeout:
                return False
            self._tick(begin_ns + int(elapsed * self._rate * 1e9))
            time.sleep(CLOCK_PERIOD)
        return True

    def bag_time(self, monotonic: float) -> int:
        """Give the time of the bag, in ns, that is played at a monotonic time."""
        return self._first_ns + int((monotonic - self._start) * self._rate * 1e9)

    def _tick(self, time_ns: int):
        """Publish the time, unless that was done just now, by both clocks; it never goes back."""
        now = time.monotonic()
        self._now_ns = max(self._now_ns, time_ns)
        before, before_ns = self._ticked
        # However fast the bag is played, no image is ahead of the clock by more than a period.
        if now - before >= CLOCK_PERIOD or self._now_ns - before_ns >= CLOCK_PERIOD * 1e9:
            self._ticked = now, self._now_ns
            self._clock.publish(Clock(clock=Time(
                sec=self._now_ns // 10**9, nanosec=self._now_ns % 10**9)))


def message_class(message_type: str) -> Any:
    """Import the class of a type such as sensor_msgs/msg/Image."""
    package, _, name = message_type.split('/')
    try:
        return getattr(import_module(f'{package}.msg'), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f'{message_type} cannot be imported ({error}); '
                          f'install the ROS package {package}') from error


def profile_of(topic: BagTopic) -> QoSProfile:
    """Give the quality of service with which a topic was offered."""
    return QoSProfile(
        depth=topic.depth,
        reliability=(
            ReliabilityPolicy.BEST_EFFORT if topic.best_effort else ReliabilityPolicy.RELIABLE),
        durability=(
            DurabilityPolicy.TRANSIENT_LOCAL if topic.latched else DurabilityPolicy.VOLATILE))
