"""Transforms over real DDS: heard in a thread of their own, looked up, sent."""

import os
import sys
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

REASON = 'needs rclpy (a sourced ROS 2, or the extra ros-wheels)'
rclpy = pytest.importorskip('rclpy', reason=REASON)
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from nerfmatch_ros.errors import DataError  # noqa: E402
from nerfmatch_ros.localization.pose_slew import SlewLimits  # noqa: E402
from nerfmatch_ros.ros import conversions, transform_listener  # noqa: E402
from nerfmatch_ros.ros.foreign_watch import ForeignWatch  # noqa: E402
from nerfmatch_ros.ros.transform_broadcaster import MapToOdomBroadcaster  # noqa: E402
from nerfmatch_ros.ros.transform_buffer import TransformBuffer, TransformError  # noqa: E402
from nerfmatch_ros.ros.transform_listener import TransformListener  # noqa: E402
from nerfmatch_ros.ros.transforms import TransformPublisher  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from std_msgs.msg import UInt32  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

TIMEOUT = 60.0  # seconds; the machine may be busy
FOR_EVER = 1e6  # seconds of a wait that something has to break off
DOMAIN = 1 + (os.getpid() * 7 + 31) % 100
SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
STATIC_QUALITY = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def at(x):
    pose = np.eye(4)
    pose[0, 3] = x
    return pose


def message(parent, child, stamp_ns, pose):
    return conversions.transform_stamped(
        pose, conversions.stamp_message(stamp_ns), parent, child)


def wait_until(done):
    deadline = time.monotonic() + TIMEOUT
    while not done():
        assert time.monotonic() < deadline, 'it never happened'
        time.sleep(0.005)


class Later:
    """Runs something in a thread; gives its result or its exception."""

    def __init__(self, work):
        self._outcome = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def _run(self, work):
        try:
            self._outcome = work(), None
        except Exception as error:  # noqa: BLE001 - handed on
            self._outcome = None, error

    @property
    def running(self):
        return self._thread.is_alive()

    def result(self):
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive(), 'it did not end'
        value, error = self._outcome
        if error is not None:
            raise error
        return value


class World:
    """A context with a node that owns what is tested, and a robot that publishes."""

    def __init__(self, arguments=()):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN,
                   args=['--ros-args', *arguments] if arguments else [])
        self._ends = []
        self.node = self.make_node('owner', namespace='/here')
        self.robot = Node('robot', context=self.context, use_global_arguments=False)
        self._ends.append(self.robot.destroy_node)
        self._topics = {}

    def make_node(self, name, **options):
        node = Node(name, context=self.context, **options)
        self._ends.append(node.destroy_node)
        return node

    def listen(self, **options):
        listener = TransformListener(self.node, **options)
        self._ends.append(listener.close)
        return listener

    def broadcast(self, listener, **options):
        broadcaster = MapToOdomBroadcaster(self.node, listener, **{
            'parent': 'map', 'child': 'odom', 'base': 'base', 'rate': 200.0,
            'limits': SlewLimits(), 'tolerance': 0.1, **options})
        self._ends.append(broadcaster.close)
        return broadcaster

    def publisher(self, topic, kind=TFMessage, quality=100):
        if topic not in self._topics:
            self._topics[topic] = self.robot.create_publisher(kind, topic, quality)
            if quality is not STATIC_QUALITY:
                wait_until(self._topics[topic].get_subscription_count)
        return self._topics[topic]

    def send(self, parent, child, stamp_ns, pose, topic='/tf'):
        self.publisher(topic).publish(
            TFMessage(transforms=[message(parent, child, stamp_ns, pose)]))

    def send_static(self, parent, child, pose, topic='/tf_static'):
        self.publisher(topic, quality=STATIC_QUALITY).publish(
            TFMessage(transforms=[message(parent, child, 0, pose)]))

    def spin(self, node):
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(node)
        stop = threading.Event()

        def work():
            while not stop.is_set():
                executor.spin_once(timeout_sec=0.02)

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self._ends += [executor.shutdown, lambda: (stop.set(), thread.join(TIMEOUT))]

    def close(self):
        for end in reversed(self._ends):
            end()
        rclpy.try_shutdown(context=self.context)


@pytest.fixture
def world(monkeypatch):
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    made = World()
    yield made
    made.close()


# Listening


def test_transforms_are_looked_up_at_the_stamp(world):
    listener = world.listen()
    for k in range(3):
        world.send('odom', 'base', START + k * SECOND, at(k))
    found = listener.lookup('odom', 'base', START + SECOND // 4, wait=TIMEOUT)
    assert found[0, 3] == pytest.approx(0.25)
    wait_until(lambda: listener.received == 3)
    matrix, stamp = listener.latest('odom', 'base')
    assert matrix[0, 3] == 2 and stamp == START + 2 * SECOND
    assert listener.latest('odom', 'lidar') is None


def test_static_transforms_are_heard_from_before_and_after_the_listener_starts(world):
    world.send_static('base', 'camera', at(1))
    listener = world.listen()
    assert listener.lookup('base', 'camera', START, wait=TIMEOUT)[0, 3] == 1
    assert listener.uses_tf2 is False
    late = world.make_node('late').create_publisher(TFMessage, '/tf_static', STATIC_QUALITY)
    late.publish(TFMessage(transforms=[message('base', 'lidar', 0, at(2))]))
    assert listener.lookup('camera', 'lidar', START, wait=TIMEOUT)[0, 3] == 1


def test_a_late_transform_ends_the_wait(world):
    """Row 14: odom -> base arrives late."""
    listener = world.listen()
    world.publisher('/tf')
    waiting = Later(lambda: listener.lookup('odom', 'base', START + SECOND, wait=FOR_EVER))
    wait_until(lambda: listener._waiting)
    world.send('odom', 'base', START, at(0))
    wait_until(lambda: listener.received == 1 and listener._waiting)
    assert waiting.running, 'nothing is extrapolated'
    world.send('odom', 'base', START + 2 * SECOND, at(2))
    assert waiting.result()[0, 3] == 1


def test_a_transform_that_never_comes_or_stops_is_told_and_recovers(world):
    """Row 14: missing for ever, stops, comes back; nothing stands in for it."""
    listener = world.listen()

    def kind(stamp):
        with pytest.raises(TransformError) as caught:
            listener.lookup('odom', 'base', stamp, wait=0.01)
        return caught.value.kind

    assert kind(START) == 'missing'
    world.send('odom', 'base', START, at(0))
    wait_until(lambda: listener.received == 1)
    assert kind(START + SECOND) == 'future'
    world.send('odom', 'base', START + 2 * SECOND, at(2))
    assert listener.lookup('odom', 'base', START + SECOND, wait=TIMEOUT)[0, 3] == 1


def test_what_is_past_is_not_waited_for(world):
    listener = world.listen()
    world.send('odom', 'base', START, at(0))
    wait_until(lambda: listener.received == 1)
    waiting = Later(lambda: listener.lookup('odom', 'base', START - 1, wait=FOR_EVER))
    with pytest.raises(TransformError) as caught:
        waiting.result()
    assert caught.value.kind == 'past'


def test_closing_breaks_off_a_wait_and_leaves_no_thread(world):
    """Row 35: deactivation during the wait for a transform."""
    before = threading.active_count()
    for _ in range(5):
        listener = world.listen()
        waiting = Later(lambda: listener.lookup('odom', 'base', START, wait=FOR_EVER))  # noqa: B023
        wait_until(lambda: listener._waiting)  # noqa: B023
        listener.close()
        listener.close()
        with pytest.raises(TransformError) as caught:
            waiting.result()
        assert caught.value.kind == 'missing'
    assert threading.active_count() == before
    assert 'owner_tf' not in world.node.get_node_names()


def test_clearing_keeps_static_transforms(world):
    """Row 12: the buffer is cleared, static transforms are kept."""
    listener = world.listen()
    world.send_static('base', 'camera', at(1))
    world.send('odom', 'base', START, at(5))
    assert listener.lookup('odom', 'camera', START, wait=TIMEOUT)[0, 3] == 6
    listener.clear()
    assert listener.latest('odom', 'base') is None
    assert listener.lookup('base', 'camera', START)[0, 3] == 1


def test_a_clock_that_jumps_back_clears_and_the_next_pass_is_heard(world):
    """Row 12: a bag that loops, with /clock."""
    world.node.set_parameters([Parameter('use_sim_time', value=True)])
    world.spin(world.node)
    listener = world.listen()
    clock = world.publisher('/clock', Clock, QoSProfile(depth=1))

    def tick(now_ns):
        def ticked():
            clock.publish(Clock(clock=conversions.stamp_message(now_ns)))
            return world.node.get_clock().now().nanoseconds == now_ns
        wait_until(ticked)

    world.send_static('base', 'camera', at(1))
    listener.lookup('base', 'camera', START, wait=TIMEOUT)
    tick(START + 100 * SECOND)
    world.send('odom', 'base', START + 100 * SECOND, at(100))
    assert listener.lookup('odom', 'base', START + 100 * SECOND, wait=TIMEOUT)[0, 3] == 100
    tick(START)
    assert listener.latest('odom', 'base') is None
    world.send('odom', 'base', START, at(0))
    assert listener.lookup('odom', 'camera', START, wait=TIMEOUT)[0, 3] == 1


def test_what_is_no_transform_is_reported_once_and_the_others_count(world, capfd):
    """Row 15: NaN and zero quaternion, among good ones in one message."""
    listener = world.listen()
    publisher = world.publisher('/tf')
    for k in range(3):
        bad, empty = (message('base', 'camera', START, at(0)) for _ in range(2))
        bad.transform.translation.x = float('nan')
        empty.child_frame_id = 'arm'
        empty.transform.rotation.w = 0.0
        publisher.publish(TFMessage(transforms=[
            bad, message('odom', 'base', START + k, at(k)), empty]))
    wait_until(lambda: listener.received == 3)
    assert listener.rejected == {'camera': 3, 'arm': 3}
    assert listener.lookup('odom', 'base', START + 2)[0, 3] == 2
    assert capfd.readouterr().err.count('is not finite') == 1


def test_bad_transforms_of_many_names_take_bounded_memory(world):
    listener = world.listen()
    publisher = world.publisher('/tf')
    publisher.publish(TFMessage(transforms=[
        message(f'frame{k}', f'frame{k}', START, at(0)) for k in range(1000)]))
    wait_until(lambda: listener.rejected.total() == 1000)
    assert len(listener.rejected) <= transform_listener.NAMES_KEPT + 1


def test_an_error_of_whoever_is_told_does_not_end_the_listening(world, capfd):
    """Row 36: an exception in a callback."""
    told = []

    def tell(*transform):
        told.append(transform)
        raise RuntimeError('a bug of the one who is told')

    listener = world.listen(on_transform=tell)
    for k in range(3):
        world.send('odom', 'base', START + k, at(k))
        wait_until(lambda k=k: listener.received == k + 1)
    assert told == [('odom', 'base', START + k, False) for k in range(3)]
    assert 'a bug of the one who is told' in capfd.readouterr().err


def test_a_second_parent_is_found(world):
    """Row 17: a second parent for a child."""
    listener = world.listen()
    world.send('odom', 'base', START, at(0))
    world.send('map', 'base', START, at(0))
    wait_until(lambda: listener.received == 2)
    assert listener.conflicts == {'base': ('odom', 'map')}


def test_names_of_topics_and_of_the_node_follow_the_owner(monkeypatch):
    """Namespace, /tf:=tf as launch has it, and a __node that must not rename the listener."""
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    world = World(['-r', '__node:=front', '-r', '__ns:=/robot1', '-r', '/tf:=tf',
                   '-r', '/tf_static:=tf_static'])
    try:
        listener = world.listen()
        sender = TransformPublisher(world.node)
        assert listener.topics == ('/robot1/tf', '/robot1/tf_static')
        assert sender.topic == '/robot1/tf'
        names = set(world.node.get_node_names_and_namespaces())
        assert {('front', '/robot1'), ('front_tf', '/robot1')} <= names
        world.send_static('base', 'camera', at(1), topic='/robot1/tf_static')
        world.send('odom', 'base', START, at(2), topic='/robot1/tf')
        assert listener.lookup('odom', 'camera', START, wait=TIMEOUT)[0, 3] == 3
        other = TransformListener(world.make_node(
            'b', cli_args=['--ros-args', '-r', '__node:=rear', '-r', '/tf:=/elsewhere/tf']))
        other.close()
        assert other.topics == ('/elsewhere/tf', '/robot1/tf_static')
    finally:
        world.close()


def test_a_listener_that_hangs_holds_up_no_image(world):
    """Row 37: the thread of the transforms is isolated from the executor of the images."""
    go_on, hanging = threading.Event(), threading.Event()

    def hang(*_):
        hanging.set()
        go_on.wait(TIMEOUT)

    world.listen(on_transform=hang)
    images = []
    world.node.create_subscription(UInt32, 'image', lambda m: images.append(m.data), 10)
    world.spin(world.node)
    world.send('odom', 'base', START, at(0))
    assert hanging.wait(TIMEOUT)
    sender = world.publisher('/here/image', UInt32, 10)
    for k in range(20):
        sender.publish(UInt32(data=k))
        wait_until(lambda k=k: len(images) == k + 1)
    go_on.set()
    assert images == list(range(20))


def test_a_thousand_transforms_a_second_delay_no_image_by_as_much_as_the_next(world):
    """Row 37: a flood of transforms; every image is seen before the one after it is sent."""
    listener = world.listen()
    images = []
    world.node.create_subscription(UInt32, 'image', lambda m: images.append(m.data), 1)
    world.spin(world.node)
    sender, transforms = world.publisher('/here/image', UInt32, 1), world.publisher('/tf')
    flood, total = TFMessage(transforms=[message('odom', 'base', START, at(0))]), 1500
    begin = time.monotonic()
    for k in range(total):
        flood.transforms[0].header.stamp = conversions.stamp_message(START + k * SECOND // 1000)
        transforms.publish(flood)
        if k % 50 == 0:
            wait_until(lambda k=k: len(images) == k // 50)
            sender.publish(UInt32(data=k))
        time.sleep(max(0.0, begin + k / 1000 - time.monotonic()))
    wait_until(lambda: len(images) == total // 50)
    assert images == list(range(0, total, 50))
    newest = START + (total - 1) * SECOND // 1000
    listener.lookup('odom', 'base', newest, wait=TIMEOUT)


# Foreign publishers


def test_ours_and_foreign_transforms_are_told_apart(world):
    """Row 17: another node publishes map -> odom; ours go on."""
    watch = ForeignWatch('odom')
    listener = world.listen(on_transform=watch.heard)
    ours = TransformPublisher(world.node, watch=watch)
    wait_until(ours._publisher.get_subscription_count)
    for k in range(100):
        ours.send('map', 'odom', at(0), START + k)
        if k % 20 == 19:  # no more under way than the qualities keep
            wait_until(lambda k=k: listener.received == k + 1)
    assert watch.foreign() == {} and watch.count == 0
    world.send('odom', 'base', START + 500, at(0))
    world.send('world', 'odom', START + 500, at(0))
    wait_until(lambda: watch.foreign())
    assert watch.foreign() == {'odom': 'world'}


def test_foreign_publishers_are_seen_before_we_send_and_forgotten_when_they_leave():
    now = [0.0]
    watch = ForeignWatch('odom', clock=lambda: now[0])
    assert not watch.heard('odom', 'base', START, False)
    assert watch.heard('map', 'odom', START, False)
    now[0] = 9.0
    assert watch.foreign(within=10.0) == {'odom': 'map'}
    now[0] = 11.0
    assert watch.foreign(within=10.0) == {}
    watch.sent('camera', START)
    assert not watch.heard('map', 'camera', START, False)
    assert watch.heard('rig', 'camera', START, True), 'a static one is never ours'


# Sending map -> odom


@pytest.fixture
def broadcast(world):
    """A broadcaster whose clock runs as fast as it is asked, and all it sent."""
    heard, now = [], [START]

    def now_ns():
        now[0] += SECOND // 200
        return now[0]

    def on_transform(parent, child, stamp_ns, static):
        if child == 'odom':
            heard.append(stamp_ns)

    listener = world.listen(on_transform=on_transform)
    return SimpleNamespace(
        heard=heard, now=now, listener=listener,
        start=lambda **options: world.broadcast(
            listener, **{'now_ns': now_ns, **options}))


def test_map_to_odom_is_sent_from_the_first_goal_until_it_is_cleared(broadcast):
    sender = broadcast.start()
    wait_until(lambda: broadcast.now[0] > START + SECOND // 10)
    assert sender.sent == 0 and sender.last_stamp_ns is None
    wait_until(lambda: sender._publisher._publisher.get_subscription_count())
    sender.set_goal(at(1))
    wait_until(lambda: len(broadcast.heard) >= 20)
    assert broadcast.listener.latest('map', 'odom')[0][0, 3] == 1
    sender.clear_goal()
    sent = sender.sent
    former = broadcast.now[0]
    wait_until(lambda: broadcast.now[0] > former + SECOND // 10)
    assert sender.sent == sent
    sender.set_goal(at(2))
    wait_until(lambda: sender.sent > sent + 5)
    with sender._lock:
        sender.enabled = False
        sent = sender.sent
    wait_until(lambda: sender.last_stamp_ns == broadcast.heard[-1])
    sender.set_goal(at(3))
    assert not sender._closing.wait(0.05) and sender.sent == sent, 'ten periods'
    sender.enabled = True
    wait_until(lambda: sender.sent > sent)
    assert (np.diff(broadcast.heard) > 0).all()
    assert sender.errors == sender.jumps == 0
    sender.close()
    assert not sender._thread.is_alive()


def test_a_paused_clock_sends_no_transform(broadcast):
    """Row 13: time stands still."""
    asked = []
    sender = broadcast.start(now_ns=lambda: asked.append(1) or START)
    sender.set_goal(at(1))
    wait_until(lambda: len(asked) > 20)
    assert sender.sent == 0


def test_corrections_glide_and_jumps_are_told(world, broadcast):
    jumps = []
    sender = broadcast.start(on_jump=lambda *jump: jumps.append(jump))
    world.send('odom', 'base', START, at(100))
    wait_until(lambda: broadcast.listener.latest('odom', 'base'))
    sender.set_goal(at(0))
    wait_until(lambda: sender.sent)
    sender.set_goal(at(0.1))
    positions = []

    def arrived():
        found = broadcast.listener.latest('map', 'odom')
        positions.append(0.0 if found is None else found[0][0, 3])
        return positions[-1] == pytest.approx(0.1)

    wait_until(arrived)
    assert len({round(x, 6) for x in positions}) > 3 and jumps == [] and sender.jumps == 0
    sender.set_goal(at(5))
    wait_until(lambda: sender.jumps)
    wait_until(lambda: jumps)
    assert jumps == [pytest.approx((4.9, 0.0))]
    sender.limits = SlewLimits(linear=0.0, snap_distance=10.0)
    sender.set_goal(at(6))
    wait_until(lambda: broadcast.listener.latest('map', 'odom')[0][0, 3] == 6)
    assert sender.jumps == 1


def test_an_error_in_the_thread_is_counted_and_the_next_transform_goes_out(broadcast, capfd):
    """Row 36: an exception in the thread that sends."""
    sender = broadcast.start(on_jump=lambda *_: 1 / 0)
    sender.set_goal(at(0))
    wait_until(lambda: sender.sent)
    sender.set_goal(at(5))
    wait_until(lambda: sender.errors)
    sent = sender.sent
    wait_until(lambda: sender.sent > sent + 5)
    assert sender.errors == 1
    assert 'ZeroDivisionError' in capfd.readouterr().err


# With tf2_ros, as far as its interface goes


class FakeTf2(ModuleType):
    """What is used of tf2_ros, on top of the buffer that stands in for it elsewhere."""

    def __init__(self):
        super().__init__('tf2_ros')

        class TransformException(Exception):
            pass

        self.TransformException = TransformException
        for name in ('LookupException', 'ConnectivityException', 'ExtrapolationException',
                     'InvalidArgumentException'):
            setattr(self, name, type(name, (TransformException,), {}))
        kinds = {'missing': self.LookupException, 'disconnected': self.ConnectivityException,
                 'future': self.ExtrapolationException, 'past': self.ExtrapolationException}
        made = self.made = []

        class Buffer:
            def __init__(self, cache_time=None, node=None):
                self.cache_time, self.node = cache_time, node
                self._buffer = TransformBuffer(cache_time.nanoseconds / SECOND)
                made.append(self)

            def _set(self, transform, authority, static):
                try:
                    self._buffer.set(
                        transform.header.frame_id, transform.child_frame_id,
                        conversions.stamp_ns(transform.header),
                        conversions.matrix_from_transform(transform.transform), static)
                except DataError:
                    pass  # tf2 logs it and goes on

            def set_transform(self, transform, authority):
                self._set(transform, authority, False)

            def set_transform_static(self, transform, authority):
                self._set(transform, authority, True)

            def lookup_transform_core(self, target_frame, source_frame, time):
                try:
                    if time.nanoseconds == 0:
                        matrix, stamp = self._buffer.latest(target_frame, source_frame)
                    else:
                        stamp = time.nanoseconds
                        matrix = self._buffer.lookup(target_frame, source_frame, stamp)
                except TransformError as error:
                    raise kinds[error.kind](f'tf2 says {error.kind}') from error
                return message(target_frame, source_frame, stamp, matrix)

            def get_latest_common_time(self, target_frame, source_frame):
                try:
                    return rclpy.time.Time(
                        nanoseconds=self._buffer.latest(target_frame, source_frame)[1])
                except TransformError as error:
                    raise TransformException('no common time') from error

            def clear(self):
                self._buffer.clear()

        self.Buffer = Buffer


@pytest.fixture
def tf2(monkeypatch):
    module = FakeTf2()
    monkeypatch.setitem(sys.modules, 'tf2_ros', module)
    return module


def test_tf2_ros_does_the_work_where_it_is_installed(world, tf2):
    told = []
    listener = world.listen(duration=7.0, on_transform=lambda *one: told.append(one))
    assert listener.uses_tf2
    buffer, = tf2.made
    assert buffer.cache_time.nanoseconds == 7 * SECOND
    assert buffer.node.get_name() == 'owner_tf'
    world.send_static('base', 'camera', at(1))
    world.send('odom', '/base', START, at(0))
    world.send('odom', 'base', START + SECOND, at(1))
    assert listener.lookup('odom', '/camera', START + SECOND // 2, wait=TIMEOUT)[0, 3] == 1.5
    matrix, stamp = listener.latest('odom', 'camera')
    assert matrix[0, 3] == 2 and stamp == START + SECOND
    assert listener.latest('base', 'camera')[1] == 0
    np.testing.assert_array_equal(listener.lookup('odom', 'odom', START), np.eye(4))
    listener.clear()
    assert listener.latest('odom', 'base') is None
    assert listener.lookup('base', 'camera', START)[0, 3] == 1
    wait_until(lambda: len(told) == 3)
    assert set(told) == {('base', 'camera', 0, True), ('odom', 'base', START, False),
                         ('odom', 'base', START + SECOND, False)}


def test_exceptions_of_tf2_become_kinds(world, tf2):
    listener = world.listen()
    for k in range(2):
        world.send('odom', 'base', START + k * SECOND, at(0))
        world.send('rig', 'camera', START + k * SECOND, at(0))
    wait_until(lambda: listener.received == 4)

    def kind(target, source, stamp):
        with pytest.raises(TransformError, match='tf2 says|no time') as caught:
            listener.lookup(target, source, stamp)
        return caught.value.kind

    assert kind('odom', 'lidar', START) == 'missing'
    assert kind('odom', 'camera', START) == 'disconnected'
    assert kind('odom', 'base', START + 2 * SECOND) == 'future'
    assert kind('odom', 'base', START - SECOND) == 'past'
    # To tf2 a time of zero would mean the newest.
    assert kind('odom', 'base', 0) == 'past'


def test_with_tf2_too_bad_transforms_are_reported_and_two_parents_are_found(world, tf2):
    listener = world.listen()
    bad = message('base', 'camera', START, at(0))
    bad.transform.rotation.w = 0.0
    world.publisher('/tf').publish(TFMessage(transforms=[bad]))
    world.send('odom', 'base', START, at(0))
    world.send('map', 'base', START, at(0))
    wait_until(lambda: listener.received == 2)
    assert listener.rejected == {'camera': 1}
    assert listener.conflicts == {'base': ('odom', 'map')}


def test_with_tf2_a_late_transform_ends_the_wait(world, tf2):
    listener = world.listen()
    world.send('odom', 'base', START, at(0))
    waiting = Later(lambda: listener.lookup('odom', 'base', START + SECOND, wait=FOR_EVER))
    wait_until(lambda: listener._waiting)
    world.send('odom', 'base', START + SECOND, at(1))
    assert waiting.result()[0, 3] == 1


def test_both_end_cleanly_after_ros_has_been_shut_down(world, broadcast, capfd):
    """Row 32: a signal may end the context before the node is closed."""
    sender = broadcast.start()
    sender.set_goal(at(0))
    wait_until(lambda: sender.sent)
    rclpy.shutdown(context=world.context)
    wait_until(lambda: not broadcast.listener._thread.is_alive())
    sender.close()
    broadcast.listener.close()
    assert not sender._thread.is_alive()
    assert 'Traceback' not in capfd.readouterr().err
