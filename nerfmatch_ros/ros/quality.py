"""Qualities of service: ask for the least, offer the most, and say where two ends do not fit."""

from collections.abc import Callable
from typing import Any

from rclpy.qos import DurabilityPolicy, qos_policy_name_from_kind, QoSProfile, ReliabilityPolicy

try:
    from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
except ImportError:  # Humble
    from rclpy.qos_event import PublisherEventCallbacks, SubscriptionEventCallbacks

BEST_EFFORT, RELIABLE = ReliabilityPolicy.BEST_EFFORT, ReliabilityPolicy.RELIABLE
VOLATILE, TRANSIENT_LOCAL = DurabilityPolicy.VOLATILE, DurabilityPolicy.TRANSIENT_LOCAL

# Asks for the least, so that drivers of every quality of service are heard.
SENSOR = QoSProfile(depth=1, reliability=BEST_EFFORT, durability=VOLATILE)
SENSOR_RELIABLE = QoSProfile(depth=1, reliability=RELIABLE, durability=VOLATILE)
# Offers the most, so that every subscriber is served and a late one gets the last message.
LATCHED = QoSProfile(depth=1, reliability=RELIABLE, durability=TRANSIENT_LOCAL)
EVERY = QoSProfile(depth=10, reliability=RELIABLE, durability=VOLATILE)
NEWEST = QoSProfile(depth=1, reliability=RELIABLE, durability=VOLATILE)
# Of /tf_static, as tf2_ros has it: sent once, and a late listener gets it all the same.
STATIC = QoSProfile(depth=100, reliability=RELIABLE, durability=TRANSIENT_LOCAL)

SENSOR_BY_NAME = {'sensor_data': SENSOR, 'reliable': SENSOR_RELIABLE}


def profile_text(profile: QoSProfile) -> str:
    """Describe what decides whether two ends fit."""
    return f'{profile.reliability.name.lower()}, {profile.durability.name.lower()}'


class MismatchReporter:
    """Turns the middleware's events of incompatible ends into one readable line each."""

    def __init__(self, node, on_mismatch: Callable[[str], None]):
        """on_mismatch: called with the line, once for each topic, policy and other node."""
        self._node = node
        self._on_mismatch = on_mismatch
        self._said: set[str] = set()
        self._ends: dict[tuple[str, str], QoSProfile] = {}  # by resolved topic and other side

    def of_subscription(self, topic: str, profile: QoSProfile) -> SubscriptionEventCallbacks:
        """Give the callbacks for a subscription that is about to be made."""
        return SubscriptionEventCallbacks(
            incompatible_qos=self._callback(topic, profile, 'publisher'))

    def of_publisher(self, topic: str, profile: QoSProfile) -> PublisherEventCallbacks:
        """Give the callbacks for a publisher that is about to be made."""
        return PublisherEventCallbacks(
            incompatible_qos=self._callback(topic, profile, 'subscriber'))

    def lines(self, topic: str | None = None) -> list[str]:
        """Give a line for each resolved topic, or this one, whose other side does not fit now."""
        return [line for (name, other), profile in list(self._ends.items())
                if topic in (None, name)
                and (line := self._line(name, other, profile, 'quality of service'))]

    def _callback(self, topic: str, profile: QoSProfile, other: str) -> Callable:
        resolved = self._node.resolve_topic_name(topic)
        self._ends[resolved, other] = profile
        return lambda event: self._say(resolved, other, profile, event)

    def _say(self, topic: str, other: str, profile: QoSProfile, event: Any):
        try:
            policy = qos_policy_name_from_kind(event.last_policy_kind)
        except Exception:  # noqa: BLE001 - a policy that this rclpy has no name for
            policy = str(event.last_policy_kind)
        line = self._line(topic, other, profile, policy) or (
            f"'{topic}': incompatible {policy}: here {profile_text(profile)}, but not what a "
            f'{other} has; no message passes between them')
        if line not in self._said:
            self._said.add(line)
            self._on_mismatch(line)

    def _line(self, topic: str, other: str, profile: QoSProfile, policy: str) -> str:
        """Name the nodes on the other side that do not fit; '' if there are none."""
        find = (self._node.get_publishers_info_by_topic if other == 'publisher'
                else self._node.get_subscriptions_info_by_topic)
        others = sorted({
            f'{end.node_namespace.rstrip("/")}/{end.node_name} ({profile_text(end.qos_profile)})'
            for end in find(topic) if not _fits(profile, end.qos_profile, other)})
        if not others:
            return ''
        return (f"'{topic}': incompatible {policy}: here {profile_text(profile)}, {other} "
                f'{", ".join(others)}; no message passes between them')


def _fits(ours: QoSProfile, theirs: QoSProfile, other: str) -> bool:
    """Tell whether reliability and durability of a pair fit; other: 'publisher', 'subscriber'."""
    offered, asked = (theirs, ours) if other == 'publisher' else (ours, theirs)
    return not (
        asked.reliability == RELIABLE and offered.reliability == BEST_EFFORT
        or asked.durability == TRANSIENT_LOCAL and offered.durability == VOLATILE)
