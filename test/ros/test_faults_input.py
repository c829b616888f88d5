"""What may go wrong before a frame is localized: cameras, images, stamps, clocks, floods."""

import array
from dataclasses import replace
from functools import partial
import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

import cv2  # noqa: E402
from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from fake_backend import Behaviour, CAMERA, HEIGHT, picture, WIDTH  # noqa: E402
from geometry_msgs.msg import PoseWithCovarianceStamped  # noqa: E402
from nerfmatch_ros.localization.pose_tracker import TrackerState  # noqa: E402
from nerfmatch_ros.ros import diagnostics, health, localizer_node, pose_output  # noqa: E402
from nerfmatch_ros.ros.camera_messages import info_message  # noqa: E402
from nerfmatch_ros.ros.conversions import (  # noqa: E402
    SECOND,
    stamp_message,
    stamp_ns,
    transform_stamped,
)
from nerfmatch_ros.ros.localizer_node import LocalizerNode  # noqa: E402
from nerfmatch_ros.ros.quality import LATCHED, NEWEST, SENSOR  # noqa: E402
from nerfmatch_ros.ros.transform_buffer import TransformError  # noqa: E402
from node_world import BASE_FROM_CAMERA, CAMERA_FRAME, map_from_base_at, World  # noqa: E402
from rclpy.serialization import serialize_message  # noqa: E402
from rosgraph_msgs.msg import Clock  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
LOG_WARN, LOG_ERROR = 30, 40
BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
NAME = 'nerfmatch_localizer'

CameraWorld = partial(World, tf_mode='map_to_camera')  # needs neither odometry nor extrinsic


@pytest.fixture
def watched(monkeypatch):
    """The node looks after itself twenty times a second, and is impatient."""
    monkeypatch.setattr(health, 'PERIOD', 0.05)
    monkeypatch.setattr(health, 'CLOCK_STOPPED', 0.3)
    monkeypatch.setattr(health, 'SILENCE', 0.3)
    monkeypatch.setattr(diagnostics, 'SILENCE', 0.3)


def logged(world, text, level=LOG_WARN):
    """Give the lines of the localizer's log with the text, at this level."""
    return [log.msg for log in list(world.logs)
            if log.level == level and text in log.msg and log.name.endswith(NAME)]


def diagnosis(world, task):
    """Give the newest status of a task of the localizer, or None."""
    for message in reversed(list(world.diagnostics)):
        for status in message.status:
            if status.name == f'{NAME}: {task}':
                return status
    return None


def diagnosed(world, task, level, text=''):
    """Wait until a task is at a level, with a text; give the status."""
    def found():
        status = diagnosis(world, task)
        return status is not None and status.level == level and text in status.message and status
    return world.wait_for(found, f'{task} at level {level!r} with {text!r}')


def dropped(world, kind):
    return world.node.drops.counts().get(kind, 0)


def send_until(world, done, **options):
    """Send frames, as best effort may lose some, until `done`."""
    world.wait_for(lambda: (world.send(**options), time.sleep(0.02), done())[-1], 'an effect')


def drop_one(world, kind, **options):
    """Have a frame dropped; give how the log tells why."""
    before = dropped(world, kind)
    send_until(world, lambda: dropped(world, kind) > before, **options)
    assert world.node.last_drop[0] == kind
    return world.node.last_drop[1]


def put_info(world, **changes):
    """Publish a camera_info with changes, until it has arrived."""
    message = info_message(CAMERA, stamp_message(0), CAMERA_FRAME)
    for name, value in changes.items():
        setattr(message, name, value)
    count = [0]
    put = world.node.input.cameras.put

    def counted(message):
        count[0] += 1
        return put(message)
    world.node.input.cameras.put = counted
    try:
        world.wait_for(
            lambda: world.infos.publish(message) or time.sleep(0.01) or count[0], 'a camera_info')
    finally:
        world.node.input.cameras.put = put


def leave(world, *ends):
    """Have the client destroy publishers and subscriptions, on the thread that waits for them."""
    def destroy():
        for end in ends:
            (world.client.destroy_publisher if hasattr(end, 'publish')
             else world.client.destroy_subscription)(end)
    world.wait_for(world._spinners[1].executor.create_task(destroy).done, 'the end of the ends')


# Cameras


def test_row_01_frames_wait_for_camera_info_with_a_warning_and_it_recovers(watched):
    with CameraWorld(camera_info_timeout=0.2) as world:
        leave(world, world.infos)
        world.infos = None
        world.wait_for(lambda: world.state == 'active' and world.images.get_subscription_count(),
                       'discovery')
        send_until(world, lambda: dropped(world, 'no_camera_info') >= 3)
        status = diagnosed(world, 'camera_info', WARN, "no camera_info of frame 'camera_optical")
        assert "'/camera_info' (0 publishers)" in status.message
        line, = world.wait_for(lambda: logged(world, 'no camera_info of frame'), 'the warning')
        assert "'/camera_info' (0 publishers)" in line
        assert not world.backend.asked
        world.infos = world.client.create_publisher(CameraInfo, 'camera_info', SENSOR)
        world.connect(static=False)
        world.localize()
        diagnosed(world, 'camera_info', OK)
        assert world.node.drops.total == dropped(world, 'no_camera_info')


def test_row_01_a_camera_without_camera_info_does_not_hold_up_another_one(watched):
    with CameraWorld(camera_info_timeout=0.2) as world:
        world.connect(static=False)
        world.localize()
        send_until(world, lambda: 'other' in world.node.input.lacking(), frame='other')
        world.backend.hold.clear()
        asked = len(world.backend.asked)
        send_until(world, lambda: len(world.backend.asked) > asked)  # the worker is busy
        send_until(world, lambda: world.node.worker.slot.waiting().header.frame_id != 'other')
        drop = dropped(world, 'no_camera_info')
        send_until(world, lambda: dropped(world, 'no_camera_info') > drop + 2, frame='other')
        assert world.node.worker.slot.waiting().header.frame_id == CAMERA_FRAME
        diagnosed(world, 'camera_info', WARN, "of frame 'other'")
        world.backend.hold.set()


def test_row_01_a_camera_info_that_was_published_once_before_is_found(watched):
    with CameraWorld(autostart=False) as world:
        leave(world, world.infos)
        world.infos = world.client.create_publisher(CameraInfo, 'camera_info', LATCHED)
        world.infos.publish(info_message(CAMERA, stamp_message(0), CAMERA_FRAME))
        world.node.trigger_configure()
        world.node.trigger_activate()
        world.connect(info=False, static=False)
        world.wait_for(lambda: world.node.input.cameras.frames, 'the camera')
        world.localize()


UNUSABLE = [
    ({'k': np.zeros(9)}, 'not calibrated'),
    ({'k': np.array([60.0, 0, 31.5, 0, 0, 23.5, 0, 0, 1])}, 'positive fx and fy'),
    ({'k': np.array([np.nan, 0, 31.5, 0, 60.0, 23.5, 0, 0, 1])}, 'not finite'),
    ({'k': np.array([60.0, 0, 9000.0, 0, 60.0, 23.5, 0, 0, 1])}, 'far outside'),
    ({'distortion_model': 'fancy', 'd': [0.1]}, "supported are 'plumb_bob'"),
    ({'distortion_model': 'equidistant', 'd': [0.1] * 5}, "supported are 'plumb_bob'"),
]


def test_row_02_and_03_an_unusable_camera_info_is_an_error_said_once_each(watched):
    with CameraWorld() as world:
        world.connect(info=False, static=False)
        for changes, cause in 2 * UNUSABLE:
            for _ in range(2):
                put_info(world, **changes)
                assert drop_one(world, 'bad_K')
            diagnosed(world, 'camera_info', ERROR, cause)
        assert not world.backend.asked
        put_info(world)
        world.localize()
        diagnosed(world, 'camera_info', OK)
        for changes, cause in UNUSABLE[:4]:
            line, = logged(world, cause, LOG_ERROR)
            assert 'wait for a good one' in line
        assert len(logged(world, UNUSABLE[4][1], LOG_ERROR)) == 2


def test_row_02_the_last_valid_camera_stays_while_the_size_is_the_same(watched):
    with CameraWorld() as world:
        world.connect(static=False)
        world.localize()
        put_info(world, k=np.zeros(9))
        stamp, = world.drive(1)
        world.wait_for(lambda: stamp in world.poses, 'a pose by the camera before')
        diagnosed(world, 'camera_info', ERROR, 'not calibrated')
        put_info(world, k=np.zeros(9), width=2 * WIDTH, height=2 * HEIGHT)
        drop_one(world, 'bad_K')


def test_row_04_the_camera_follows_the_size_of_the_picture_or_the_frame_is_dropped(watched):
    with CameraWorld() as world:
        seen = []
        localize = world.backend.localize
        world.backend.localize = lambda image, prior: (
            seen.append(image.camera), localize(image, prior))[1]
        world.connect(static=False)
        world.localize()
        assert (seen[-1].width, seen[-1].fx) == (WIDTH, CAMERA.fx)
        larger = np.full((2 * HEIGHT, 2 * WIDTH, 3), 90, np.uint8)
        code = picture(map_from_base_at(0.0) @ BASE_FROM_CAMERA).reshape(-1)
        larger.reshape(-1)[:len(code)] = code
        world.drive(1, pixels=larger)
        assert (seen[-1].width, seen[-1].fx) == (2 * WIDTH, 2 * CAMERA.fx)
        wide = np.random.default_rng(0).integers(60, 200, (HEIGHT, WIDTH + 10, 3), np.uint8)
        assert 'calibrate at the size' in drop_one(world, 'bad_size', pixels=wide)
        diagnosed(world, 'camera_info', ERROR, 'differ in size')
        diagnosed(world, 'latency', OK)
        stamps = world.localize(frames=3)
        assert (seen[-1].width, seen[-1].fx) == (WIDTH, CAMERA.fx) and stamps[-1] in world.poses
        diagnosed(world, 'camera_info', OK)


# Pictures


def fields(**changes):
    """Give what changes the fields of a message."""
    def change(message):
        for name, value in changes.items():
            setattr(message, name, value)
    return change


BYTES = 3 * WIDTH * HEIGHT
WRONG_IMAGES = [
    ('05', {'encoding': 'nonsense'}, 'bad_encoding', 'rgb8, '),
    ('05', {'encoding': ''}, 'bad_encoding', 'rgb8, '),
    ('05', {'encoding': '32FC1', 'step': 4 * WIDTH}, 'bad_encoding', 'rgb8, '),
    ('06', {'data': array.array('B')}, 'empty', ''),
    ('06', {'data': array.array('B', bytes(BYTES - 1))}, 'truncated', ''),
    ('06', {'data': array.array('B', bytes(BYTES + 1))}, 'bad_step', ''),
    ('06', {'step': 3 * WIDTH - 1}, 'bad_step', ''),
    ('06', {'step': 0}, 'bad_step', ''),
    ('06', {'height': 0}, 'empty', ''),
    ('06', {'width': 0}, 'empty', ''),
    ('06', {'height': 2**31, 'width': 2**31}, 'bad_size', ''),
    ('06', {'height': 2**31, 'width': 2**31, 'step': 2**32 - 1}, 'bad_size', ''),
]


class TestPictures:
    """One world for all: whatever an image is, the next one is localized."""

    @pytest.fixture(scope='class')
    @classmethod
    def sound(cls):
        """A world that is localized, and has to stay able to."""
        with CameraWorld(lost_after_failures=1000, lost_timeout=0.0) as world:
            world.connect(static=False)
            world.localize()
            yield world
            world.localize(frames=1)

    @pytest.mark.parametrize('row, changes, kind, text', WRONG_IMAGES)
    def test_row_05_and_06_an_image_that_is_none_is_dropped_with_its_kind(
            self, sound, row, changes, kind, text):
        asked = len(sound.backend.asked)
        assert text in drop_one(sound, kind, change=fields(**changes))
        assert len(sound.backend.asked) == asked
        sound.wait_for(lambda: sound.status('verdict') == kind, 'the status of the frame')

    @pytest.mark.parametrize('encoding, width, step', [
        ('mono16', 96, 192), ('16UC1', 96, 192), ('yuv422_yuy2', 96, 192), ('mono8', 192, 192),
        ('bayer_rggb8', 192, 192), ('rgba8', 48, 192), ('bgr8', 64, 192), ('8UC3', 64, 192),
    ])
    def test_row_05_supported_encodings_reach_the_localizer(self, sound, encoding, width, step):
        frame = f'camera of {encoding}'
        sound.wait_for(lambda: sound.infos.publish(info_message(
            replace(CAMERA, width=width), stamp_message(0), frame)) or time.sleep(0.01)
            or sound.node.input.cameras.has_heard_of(frame), 'the camera')
        attempts = sound.node.attempts
        send_until(sound, lambda: sound.node.attempts > attempts, frame=frame,
                   change=fields(encoding=encoding, width=width, step=step))
        assert sound.node.last_result.reason == 'not a picture of this map'
        assert sound.node.input.size == (width, HEIGHT)

    def test_row_06_a_step_with_padding_is_honoured(self, sound):
        def padded(message):
            rows = np.frombuffer(message.data, np.uint8).reshape(HEIGHT, 3 * WIDTH)
            message.data = array.array('B', np.pad(rows, ((0, 0), (0, 8))).tobytes())
            message.step = 3 * WIDTH + 8
        stamp, = sound.drive(1, change=padded)
        sound.wait_for(lambda: stamp in sound.poses, 'a pose')


class CompressedWorld(CameraWorld.func):
    """A world whose camera compresses."""

    def __init__(self):
        super().__init__(tf_mode='map_to_camera', image_transport='compressed')
        self.client.destroy_publisher(self.images)
        self.images = self.client.create_publisher(CompressedImage, 'image/compressed', SENSOR)

    def send(self, data=None, form='png'):
        stamp = self.now_ns()
        if data is None:
            self.serial += 1
            pixels = picture(
                map_from_base_at(stamp * 1e-9 - self.started) @ BASE_FROM_CAMERA,
                serial=self.serial)
            data = cv2.imencode('.png', pixels[..., ::-1])[1].tobytes()
        self.images.publish(CompressedImage(
            header=Header(stamp=stamp_message(stamp), frame_id=CAMERA_FRAME), format=form,
            data=array.array('B', data)))
        return stamp

    def drive(self, frames, *, behaviour=Behaviour.GOOD, odometry=False, every=None):
        """Send frames, each once the last was worked on; give their stamps."""
        stamps = []
        while len(stamps) < frames:
            before, stamp = self.handled(), self.send()
            deadline = time.monotonic() + 3.0
            while self.handled() == before and time.monotonic() < deadline:
                time.sleep(0.002)
            if self.handled() > before:
                stamps.append(stamp)
        return stamps


def huge_png():
    """Give a PNG of a few bytes that states 60000 x 60000 pixels."""
    small = bytearray(cv2.imencode('.png', BLACK)[1].tobytes())
    small[16:24] = (60000).to_bytes(4, 'big') * 2
    return bytes(small)


def test_row_07_a_compressed_image_that_is_none_is_dropped_and_the_stream_goes_on():
    good = cv2.imencode('.jpg', picture(np.eye(4)))[1].tobytes()
    with CompressedWorld() as world:
        world.connect(static=False)
        world.localize()
        asked = len(world.backend.asked)
        for data, kinds in [(b'', {'empty'}), (b'nonsense', {'undecodable'}),
                            (good[:40], {'undecodable', 'truncated'}),
                            (huge_png(), {'bad_size'})]:
            before = world.node.drops.total
            send_until(world, lambda before=before: world.node.drops.total > before, data=data)
            assert world.node.last_drop[0] in kinds
        assert len(world.backend.asked) == asked
        world.localize()


@pytest.mark.parametrize('pixels, kind', [
    (BLACK, 'dark'), (BLACK + 255, 'saturated'), (BLACK + 120, 'flat')])
def test_row_08_a_picture_of_nothing_degrades_costs_no_inference_and_ends_in_lost(
        watched, pixels, kind):
    with World(tf_mode='map_to_odom', lost_after_failures=3) as world:
        world.connect()
        world.localize(odometry=True, frames=3)
        world.wait_for(lambda: world.transforms, 'map -> odom')
        asked, poses = len(world.backend.asked), len(world.poses)
        drop_one(world, kind, pixels=pixels)
        world.wait_for(lambda: world.status('verdict') == kind, 'the status')
        assert (world.status('degraded'), world.status('state')) == ('yes', 'COASTING')
        assert world.statuses[-1].level == WARN
        assert f'DEGRADED: the picture is {kind}' in world.statuses[-1].message
        diagnosed(world, 'input', WARN, f'DEGRADED: the pictures are {kind}')
        diagnosed(world, 'localization', WARN, 'coasting: last pose')
        diagnosed(world, 'localization', WARN, ' m since')
        sent = world.node.broadcaster.sent
        world.wait_for(lambda: world.node.broadcaster.sent > sent + 3, 'map -> odom, coasting')
        for _ in range(2):
            drop_one(world, kind, pixels=pixels)
        world.wait_for(lambda: world.status('state') == 'LOST', 'LOST')
        diagnosed(world, 'localization', ERROR, 'lost: last pose')
        assert len(world.backend.asked) == asked and len(world.poses) == poses
        world.localize(odometry=True, frames=2)
        diagnosed(world, 'localization', OK, 'localized')
        diagnosed(world, 'input', OK)
        assert world.status('degraded') == 'no'


def test_row_08_a_blurred_picture_that_the_matcher_gives_up_is_no_fix_with_its_reason():
    with CameraWorld() as world:
        world.connect(static=False)
        world.localize()
        stamp, = world.drive(1, behaviour=Behaviour.NO_POSE)
        world.wait_for(lambda: world.status('stamp') == str(stamp), 'the status')
        assert (world.status('verdict'), world.status('state')) == ('no_fix', 'COASTING')
        assert 'too few matches' in world.statuses[-1].message
        assert stamp not in world.poses


# Stamps


def test_row_09_the_same_stamp_again_is_not_worked_on_twice():
    with CameraWorld() as world:
        world.connect(static=False)
        stamps = world.localize()
        asked = len(world.backend.asked)
        drop_one(world, 'duplicate', stamp=stamps[-1])
        assert len(world.backend.asked) == asked
        world.localize(frames=1)


def test_row_09_a_frozen_camera_is_named_and_its_frames_are_not_fused(watched):
    with CameraWorld() as world:
        world.connect(static=False)
        world.localize()
        frozen = picture(map_from_base_at(0.5) @ BASE_FROM_CAMERA, serial=77)
        send_until(world, lambda: dropped(world, 'frozen') >= 5, pixels=frozen)
        assert [serial for serial, _ in world.backend.asked].count(77) <= 10
        assert logged(world, 'the camera is frozen')
        diagnosed(world, 'input', WARN, 'camera frozen')
        stamps = world.localize()
        assert stamps[-1] in world.poses
        diagnosed(world, 'input', OK)


def test_row_10_a_frame_without_a_stamp_is_dropped_with_the_remedy(watched):
    with CameraWorld() as world:
        world.connect(static=False)
        assert 'stamp_zero_as_now' in drop_one(world, 'stamp_zero', stamp=0)
        diagnosed(world, 'input', WARN, 'no image is used; the last one: its stamp is 0')
        assert not world.backend.asked
        world.localize()
        diagnosed(world, 'input', OK)


def test_row_10_a_stamp_of_zero_may_stand_for_the_time_of_arrival():
    with CameraWorld(stamp_zero_as_now=True, init_consistent_fixes=1) as world:
        world.connect(static=False)
        before = time.time_ns()
        send_until(world, lambda: world.poses, stamp=0, at=0.0)
        assert all(before < stamp < time.time_ns() for stamp in world.poses)


def test_row_11_a_frame_that_was_overtaken_is_dropped_and_no_new_epoch():
    with CameraWorld(max_image_age=0.0) as world:
        world.connect(static=False)
        stamps = world.localize()
        epoch, asked = world.tracker.epoch, len(world.backend.asked)
        drop_one(world, 'out_of_order', stamp=stamps[-1] - SECOND // 2)
        assert world.tracker.epoch == epoch and len(world.backend.asked) == asked
        assert world.tracker.state is TrackerState.LOCALIZED
        world.localize(frames=1)


# Clocks


class Bag:
    """Sends a drive with stamps of its own, and /clock where the node listens to it."""

    def __init__(self, world, begin=1000.0, *, odometry=True):
        self.world, self.begin, self.odometry = world, begin, odometry
        self.clock = world.client.create_publisher(Clock, '/clock', SENSOR)

    def set_clock(self, seconds):
        """Publish /clock until the node has the time."""
        stamp = round((self.begin + seconds) * SECOND)
        self.world.wait_for(
            lambda: self.clock.publish(Clock(clock=stamp_message(stamp))) or time.sleep(0.005)
            or self.world.node.now_ns() == stamp, 'the clock')

    def frame(self, seconds, *, clock=True):
        """Have one frame worked on."""
        world, attempts = self.world, self.world.node.attempts
        if clock:
            self.set_clock(seconds)
        stamp, received = round((self.begin + seconds) * SECOND), world.node.input.received
        send_until(world, lambda: world.node.input.received > received, at=seconds, stamp=stamp)
        # Again and again: odometry from before the jump is noticed is forgotten with the old run.
        world.wait_for(lambda: (
            self.odometry and world.send_odometry(stamp, seconds), time.sleep(0.005),
            world.node.attempts > attempts)[-1], 'the frame')
        return stamp


def test_row_12_a_bag_that_loops_begins_a_new_epoch_and_is_found_in_two_frames():
    with World(tf_mode='map_to_odom', max_image_age=0.0, wait_for_transform=5.0) as world:
        world.connect()
        bag = Bag(world)
        for length in (30, 25, 20):
            world.poses.clear()
            stamps = [bag.frame(0.1 * k, clock=False) for k in range(length)]
            world.wait_for(partial(world.poses.get, stamps[-1]), 'the pose of the last frame')
            assert sorted(world.poses) == stamps[1:], 'all but the first, which none confirms yet'
            assert world.node.listener.latest('odom', 'base_link')[1] == stamps[-1]
            assert world.node.listener.latest('base_link', CAMERA_FRAME) is not None, 'static'
            with pytest.raises(TransformError):
                world.node.listener.lookup('odom', 'base_link', stamps[-1] + SECOND)
        assert world.tracker.epoch == 3, 'one for the activation, one for each time it began anew'


@pytest.mark.parametrize('first', ['clock', 'images'])
def test_row_12_a_clock_that_goes_back_with_the_stamps_is_one_new_epoch(monkeypatch, first):
    if first == 'clock':  # then the images are no second event, however late they come
        monkeypatch.setattr(localizer_node, 'SAME_JUMP', 0.0)
    with CameraWorld(use_sim_time=True, max_image_age=0.0) as world:
        bag = Bag(world, odometry=False)
        world.connect(static=False)
        for k in range(20):
            bag.frame(0.1 * k)
        epoch = world.tracker.epoch
        if first == 'images':
            bag.frame(0.0, clock=False)
            assert world.tracker.epoch == epoch + 1
        bag.set_clock(0.0)
        world.wait_for(lambda: world.tracker.epoch > epoch, 'a new epoch')
        stamps = [bag.frame(0.1 * k) for k in range(1, 4)]
        assert world.tracker.epoch == epoch + 1
        world.wait_for(lambda: stamps[-1] in world.poses, 'the pose')
        assert world.tracker.state is TrackerState.LOCALIZED
        bag.set_clock(-10.0)  # a second jump at once is a second event
        world.wait_for(lambda: world.tracker.epoch == epoch + 2, 'another epoch')


def test_row_12_a_clock_that_leaps_ahead_makes_no_burst_and_no_frame_stale():
    with World(tf_mode='map_to_odom', use_sim_time=True) as world:
        bag = Bag(world)
        world.connect()
        for k in range(3):
            bag.frame(0.1 * k)
        epoch, sent = world.tracker.epoch, world.node.broadcaster.sent
        bag.set_clock(3600.0)
        world.wait_for(lambda: world.node.broadcaster.sent > sent, 'map -> odom')
        time.sleep(0.2)
        # The clock stands since: one transform at its new time, not an hour of them.
        assert world.node.broadcaster.sent == sent + 1
        stamps = [bag.frame(3600.0 + 0.1 * k) for k in range(1, 4)]
        assert not dropped(world, 'stale') and world.tracker.epoch == epoch
        world.wait_for(lambda: stamps[-1] in world.poses, 'the pose after the leap')


def test_row_13_a_clock_that_nobody_publishes_is_named_and_the_node_ends(watched):
    with CameraWorld(use_sim_time=True) as world:
        world.connect(static=False)
        assert 'nobody publishes /clock' in drop_one(world, 'future')
        diagnosed(world, 'input', ERROR, 'clock not advancing: use_sim_time is set')
        world.wait_for(lambda: logged(world, 'clock not advancing', LOG_ERROR), 'the error')
        assert not world.backend.asked
        world._spinners[0].executor.create_task(world.node.trigger_deactivate)
        world.wait_for(lambda: world.state == 'inactive', 'the deactivation')
    assert world.node.close(), 'every thread has ended'


def test_row_13_a_clock_that_is_paused_is_named_and_goes_on(watched):
    with CameraWorld(use_sim_time=True) as world:
        bag = Bag(world, odometry=False)
        world.connect(static=False)
        for k in range(3):
            bag.frame(0.1 * k)
        diagnosed(world, 'input', ERROR, 'clock not advancing')
        advancing = threading.Event()

        def advance():
            seconds = 1.0
            while not advancing.is_set():
                seconds += 0.01
                bag.clock.publish(Clock(clock=stamp_message(
                    round((bag.begin + seconds) * SECOND))))
                time.sleep(0.01)
        thread = threading.Thread(target=advance)
        thread.start()
        world.wait_for(lambda: 'clock not' not in diagnosis(world, 'input').message, 'the end')
        advancing.set()
        thread.join()


@pytest.mark.parametrize('seconds', [-7200.0, 7200.0])
def test_row_13_stamps_of_another_clock_are_dropped_with_the_name_of_the_parameter(seconds):
    with CameraWorld() as world:
        world.connect(static=False)
        kind = 'stale' if seconds < 0 else 'future'
        text = drop_one(world, kind, stamp=world.now_ns() + round(seconds * SECOND))
        assert 'set use_sim_time to true' in text
        world.wait_for(lambda: logged(world, 'use_sim_time'), 'the warning')


@pytest.mark.parametrize('step', [-3600.0, 3600.0])
def test_row_38_a_step_of_the_system_clock_is_one_new_epoch_and_stops_nothing(
        watched, monkeypatch, step):
    offset = [0]
    monkeypatch.setattr(LocalizerNode, 'now_ns', lambda self: time.time_ns() + offset[0])
    with World(tf_mode='map_to_odom') as world:
        monkeypatch.setattr(world, 'now_ns', lambda: time.time_ns() + offset[0])
        world.connect()
        world.localize(odometry=True)
        epoch = world.tracker.epoch
        for _ in range(2):
            offset[0] += round(step * SECOND)
            for _ in range(3):  # some before the watch looks at the clock, and some after
                world.drive(1, odometry=True)
            world.wait_for(lambda epoch=epoch: world.tracker.epoch > epoch, 'a new epoch')
            looked = len(world.diagnostics)
            world.wait_for(lambda looked=looked: len(world.diagnostics) > looked + 4, 'the watch')
            assert world.tracker.epoch == epoch + 1
            epoch = world.tracker.epoch
            stamps = world.localize(odometry=True, frames=3)
            sent = world.node.broadcaster.sent
            world.wait_for(lambda sent=sent: world.node.broadcaster.sent > sent + 2, 'map -> odom')
            assert stamp_ns(world.transforms[-1].header) - stamps[-1] < 60 * SECOND
        assert 'LOST' not in {diagnostics.status_values(status)['state']
                              for status in world.statuses}, 'an hour has not passed'


# Floods


class Flood:
    """Calls something a thousand times a second, as far as the machine can, on a thread."""

    def __init__(self, act):
        self.count, self._act, self._over = 0, act, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        assert self._thread.is_alive(), 'the flood has dried up'
        self._over.set()
        self._thread.join()

    def _run(self):
        due = time.monotonic()
        while not self._over.is_set():
            self._act()
            self.count += 1
            due = max(due + 0.001, time.monotonic() - 0.01)
            self._over.wait(max(0.0, due - time.monotonic()))


def resident_bytes():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096


def large_picture(serial):
    """Give a picture (192, 256, 3) that a leak of would show."""
    pixels = np.full((4 * HEIGHT, 4 * WIDTH, 3), 90 + serial % 100, np.uint8)
    code = picture(map_from_base_at(0.0) @ BASE_FROM_CAMERA, serial=serial).reshape(-1)
    pixels.reshape(-1)[:len(code)] = code
    return pixels


def test_row_27_a_flood_of_images_leaves_the_newest_frame_memory_and_transforms_alone():
    with World(tf_mode='map_to_odom', max_image_age=0.0, wait_for_transform=5.0) as world:
        world.connect()
        world.localize(odometry=True)
        worker, arrived, behind, periods, late = world.node.worker, {}, [], [], []
        put, work, localize = worker.slot.put, worker._work, world.backend.localize

        def counted_put(message):
            arrived[stamp_ns(message.header)] = len(arrived)
            return put(message)

        def watched_work(message):
            behind.append(len(arrived) - 1 - arrived[stamp_ns(message.header)])
            work(message)

        def slow(image, prior):
            begun = world.serial
            time.sleep(0.05)
            estimate = localize(image, prior)
            late.append(begun - world.backend.asked[-1][0])
            periods.append(world.serial - begun)
            return estimate

        worker.slot.put, worker._work, world.backend.localize = counted_put, watched_work, slow
        unaccounted = world.node.input.received - world.handled()
        with Flood(lambda: world.send_odometry(world.now_ns(), 0.0)):
            with Flood(lambda: world.send(at=0.0, pixels=large_picture(world.serial + 1))):
                world.wait_for(lambda: len(late) >= 10, 'the first frames')
                memory, heard = resident_bytes(), len(world.transforms)
                received = world.node.input.received
                world.wait_for(lambda: len(late) >= 30, 'more frames')
                growth, received = resident_bytes() - memory, world.node.input.received - received
                heard = len(world.transforms) - heard
            world.wait_for(lambda: worker.slot.waiting() is None and worker.busy_since is None,
                           'the last frame')
        assert np.median(behind) == 0 and max(behind) <= 3, 'the newest that has arrived'
        assert np.median(late) <= np.median(periods), 'later than a frame takes'
        assert growth < 0.3 * received * large_picture(0).nbytes
        assert heard >= 10
        stamps = [stamp_ns(transform.header) for transform in world.transforms]
        assert all(b > a for a, b in zip(stamps, stamps[1:]))
        assert dropped(world, 'busy') > 30
        assert world.node.input.received - world.handled() == unaccounted, 'by attempt or drop'


def test_row_27_32_cameras_share_one_place_for_the_newest_frame():
    names = [f'camera_{k}' for k in range(32)]
    with World(tf_mode='map_to_base', camera_names=names, init_consistent_fixes=1) as world:
        world.wait_for(lambda: world.state == 'active', 'an active localizer')
        world.tf_static.publish(TFMessage(transforms=[
            transform_stamped(BASE_FROM_CAMERA, stamp_message(0), 'base_link', name)
            for name in names]))
        make = world.client.create_publisher
        cameras = [(name, make(Image, f'{name}/image', SENSOR),
                    make(CameraInfo, f'{name}/camera_info', SENSOR)) for name in names]
        for name, images, infos in cameras:
            world.wait_for(lambda infos=infos, name=name: (
                infos.publish(info_message(CAMERA, stamp_message(0), name)), time.sleep(0.002),
                world.node.input.cameras.has_heard_of(name))[-1], f'the camera {name}')
            world.wait_for(images.get_subscription_count, 'discovery')
        seen = set()
        localize = world.backend.localize

        def seeing(image, prior):
            seen.add(world.node.worker.slot.waiting() is not None)
            return localize(image, prior)
        world.backend.localize = seeing
        before = world.node.input.received
        while world.node.input.received < before + 3 * len(names):
            for name, images, _ in cameras:
                world.images = images
                world.send(at=0.0, frame=name)
            time.sleep(0.01)
        world.wait_for(lambda: world.handled() == world.node.input.received, 'the last frame')
        assert set(world.node.drops.counts()) <= {'busy', 'frozen'}
        world.wait_for(lambda: world.poses, 'poses')


# Who looks on


def test_row_28_what_nobody_looks_at_is_neither_computed_nor_copied(monkeypatch):
    drawn = []
    monkeypatch.setattr(pose_output, 'matches_picture',
                        lambda rgb, estimate: drawn.append('matches') or np.array(rgb))
    monkeypatch.setattr(pose_output, 'point_cloud', lambda *_: drawn.append('points'))
    with CameraWorld() as world:
        render, similar = world.backend.render, world.backend.similar_views
        world.backend.render = lambda *call: (drawn.append('rendered'), render(*call))[1]
        world.backend.similar_views = lambda *call: (drawn.append('similar'), similar(*call))[1]
        world.connect(static=False)
        world.localize(frames=4)
        assert not drawn
        pictures = []
        topics = ('matches_image', 'rendered_image')
        onlookers = [world.client.create_subscription(
            Image, f'{NAME}/{topic}', pictures.append, NEWEST) for topic in topics]
        send_until(world, lambda: len(pictures) >= 4)
        assert set(drawn) == {'matches', 'rendered'}
        # They leave while a picture is drawn for them.
        drawing, gone = threading.Event(), threading.Event()

        def slow_render(*call):
            drawing.set()
            assert gone.wait(60.0)
            return render(*call)
        world.backend.render = slow_render
        send_until(world, drawing.is_set)
        leave(world, *onlookers)
        world.wait_for(lambda: not any(
            publisher.get_subscription_count()
            for publisher in world.node.output._debug.publishers), 'their leaving')
        gone.set()
        stamps = world.localize(frames=2)
        drawn.clear()
        stamps = world.localize(frames=2)
        assert not drawn and stamps[-1] in world.poses
        assert not world.node.unexpected.count


def test_row_28_a_picture_that_cannot_be_drawn_costs_no_pose():
    with CameraWorld() as world:
        world.connect(static=False)
        world.localize()

        def broken(*_):
            raise RuntimeError('injected failure of rendering')
        world.backend.render = broken
        onlooker = world.client.create_subscription(
            Image, f'{NAME}/rendered_image', lambda _: None, NEWEST)
        send_until(world, lambda: world.node.unexpected.count >= 2)
        assert logged(world, 'injected failure of rendering', LOG_ERROR)
        leave(world, onlooker)
        stamps = world.localize()
        assert stamps[-1] in world.poses
        assert not world.node.drops.total, 'these frames gave poses'


def test_row_29_a_publisher_that_offers_too_little_is_named_with_both_profiles(watched):
    with CameraWorld(image_qos='reliable') as world:
        world.wait_for(lambda: logged(world, 'incompatible', LOG_ERROR), 'the error')
        status = diagnosed(world, 'input', WARN, "'/image': incompatible")
        assert 'publisher /test_client (best_effort, volatile)' in status.message
        diagnosed(world, 'input', WARN, 'no image for')
        diagnosed(world, 'input', WARN,
                  "'/image' (1 publishers, some with an incompatible quality of service)")
        lines = logged(world, 'incompatible', LOG_ERROR)
        line, = [line for line in lines if line.startswith("'/image'")]
        assert 'here reliable, volatile' in line
        assert 'publisher /test_client (best_effort, volatile)' in line
        assert len(lines) == 2, 'one for the images, one for the camera_info'
        leave(world, world.images, world.infos)
        world.images = world.client.create_publisher(Image, 'image', NEWEST)
        world.infos = world.client.create_publisher(CameraInfo, 'camera_info', NEWEST)
        world.connect(static=False)
        world.localize()
        diagnosed(world, 'input', OK)
        diagnosed(world, 'camera_info', OK)


def test_row_29_a_subscriber_that_asks_for_too_much_is_named_and_the_poses_go_on(watched):
    with CameraWorld() as world:
        world.connect(static=False)
        onlooker = world.client.create_subscription(
            PoseWithCovarianceStamped, f'{NAME}/pose_raw', lambda _: None, LATCHED)
        status = diagnosed(world, 'output', WARN, 'incompatible')
        assert 'subscriber /test_client (reliable, transient_local)' in status.message
        line, = world.wait_for(lambda: logged(world, 'incompatible', LOG_ERROR), 'the error')
        assert f"'/{NAME}/pose_raw': incompatible" in line and 'here reliable, volatile' in line
        assert 'subscriber /test_client (reliable, transient_local)' in line
        world.localize()
        leave(world, onlooker)
        diagnosed(world, 'output', OK)


# What nobody expected


def test_row_36_a_frame_that_raises_is_dropped_with_its_traceback_and_the_next_one_is_not(watched):
    with CameraWorld(lost_after_failures=1000) as world:
        world.connect(static=False)
        world.localize()
        thread = world.node.worker.thread
        stamp, = world.drive(1, behaviour=Behaviour.RAISE)
        world.wait_for(lambda: world.status('stamp') == str(stamp), 'the status of the frame')
        assert (world.status('verdict'), world.status('reason')) == (
            'exception', 'injected failure')
        assert dropped(world, 'exception') == world.node.unexpected.count == 1
        line, = world.wait_for(lambda: logged(world, 'a frame failed', LOG_ERROR), 'the error')
        assert 'Traceback' in line and 'injected failure' in line
        assert stamp not in world.poses
        stamps = world.localize(frames=1)
        assert stamps[-1] in world.poses
        diagnosed(world, 'localization', OK)
        world.drive(9, behaviour=Behaviour.RAISE)
        status = diagnosed(world, 'localization', ERROR, 'keep failing')
        assert status.level == ERROR
        assert len(logged(world, 'a frame failed', LOG_ERROR)) < 10, 'not one for each'
        assert world.node.worker.thread is thread and thread.is_alive()
        stamps = world.localize(frames=1)
        assert stamps[-1] in world.poses


def test_row_36_the_worker_outlives_what_its_own_parts_raise():
    with CameraWorld() as world:
        world.errors_expected = True
        world.connect(static=False)
        world.localize()
        slot, drop = world.node.worker.slot, world.node.worker._drop
        is_ready = slot._is_ready

        def broken(*_):
            raise RuntimeError('injected failure of a part')
        slot._is_ready = broken
        send_until(world, lambda: world.node.unexpected.count >= 2)
        slot._is_ready = is_ready
        world.node.worker._drop = broken
        count = world.node.unexpected.count
        send_until(world, lambda: world.node.unexpected.count > count, behaviour=Behaviour.RAISE)
        world.node.worker._drop = drop
        assert logged(world, 'injected failure of a part', LOG_ERROR)
        stamps = world.localize(frames=3)
        assert stamps[-1] in world.poses


def test_row_36_a_callback_that_raises_ends_nothing(watched):
    with World(tf_mode='map_to_odom') as world:
        world.errors_expected = True
        world.connect()
        world.localize(odometry=True)
        node = world.node

        def broken(*_):
            raise RuntimeError('injected failure of a callback')

        def failing(owner, name, provoke):
            """Break a method for as long as it takes to fail once; unexpected is what counts."""
            sound, count = getattr(owner, name), node.unexpected.in_callbacks
            setattr(owner, name, broken)
            world.wait_for(lambda: (provoke(), time.sleep(0.02),
                                    node.unexpected.in_callbacks > count)[-1], name)
            setattr(owner, name, sound)
        pose = PoseWithCovarianceStamped(header=Header(frame_id='map'))
        save = world.client.create_client(Trigger, f'{NAME}/save_pose')
        assert save.wait_for_service(60.0)
        answers = []
        failing(node.input.gate, 'check', world.send)
        failing(node.input.cameras, 'put', world.send_info)
        failing(node.start_pose, 'take', lambda: world.initial_poses.publish(pose))
        failing(node.health, 'note_refined', lambda: world.refined_poses.publish(pose))
        failing(node.start_pose, 'save', lambda: answers.append(
            save.call_async(Trigger.Request())))
        failing(node.health, '_watch_state', lambda: None)
        world.wait_for(answers[0].done, 'an answer of the service')
        assert not answers[0].result().success
        line = world.wait_for(lambda: logged(
            world, 'injected failure of a callback', LOG_ERROR), 'the errors')[0]
        assert 'Traceback' in line
        stamps = world.localize(odometry=True, frames=3)
        assert stamps[-1] in world.poses
        looked = len(world.diagnostics)
        world.wait_for(lambda: len(world.diagnostics) > looked, 'diagnostics go on')


# Transforms at a high rate


def test_row_37_hundreds_of_frames_at_a_high_rate_reach_another_thread_than_the_images():
    with World(tf_mode='map_to_odom', wait_for_transform=5.0, max_image_age=0.0) as world:
        world.connect()
        threads = {'transforms': set(), 'images': set()}
        heard, check = world.node.listener.on_transform, world.node.input.gate.check

        def on_transform(*call):
            threads['transforms'].add(threading.get_ident())
            return heard(*call)

        def checked(*call):
            threads['images'].add(threading.get_ident())
            return check(*call)
        world.node.listener.on_transform, world.node.input.gate.check = on_transform, checked
        world.localize(odometry=True)
        transforms = [transform_stamped(
            np.eye(4), stamp_message(world.now_ns()), 'base_link', f'part_{k}')
            for k in range(300)]
        one = serialize_message(TFMessage(transforms=transforms[:1]))
        all_of_them = serialize_message(TFMessage(transforms=transforms))
        before = world.node.listener.received

        def transform():
            # As of a robot: odometry 50 times a second, everything else 30 times, one joint often.
            if flood.count % 20 == 0:
                stamp = world.now_ns()
                world.send_odometry(stamp, stamp * 1e-9 - world.started)
            world.tf.publish(all_of_them if flood.count % 33 == 0 else one)
        flood = Flood(transform)
        with flood:
            stamps = world.drive(10)
            world.wait_for(lambda: world.node.listener.received > before + 1000, 'the flood')
            world.wait_for(lambda: stamps[-1] in world.poses, 'the pose of the last frame')
        assert set(stamps) <= set(world.poses)
        assert not any(threads['transforms'] & threads['images'])
        assert '/tf' not in [subscription.topic_name
                             for subscription in world.node.subscriptions]


def test_row_37_transforms_that_are_stuck_do_not_hold_up_the_images():
    with World(tf_mode='map_to_base') as world:
        world.connect()
        stuck, free = threading.Event(), threading.Event()

        def on_transform(*_):
            stuck.set()
            assert free.wait(60.0)
        world.node.listener.on_transform = on_transform
        world.wait_for(lambda: world.send_odometry(world.now_ns(), 0.0) or stuck.wait(0.05), 'it')
        stamps = world.localize(frames=4)
        assert stamps[-1] in world.poses
        free.set()
