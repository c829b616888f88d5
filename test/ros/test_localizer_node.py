"""The localizer node as a process of its own, over real DDS, with a stand-in for a localizer."""

from collections.abc import Callable
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest

REASON = 'needs rclpy (a sourced ROS 2, or the extra ros-wheels)'
rclpy = pytest.importorskip('rclpy', reason=REASON)
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from builtin_interfaces.msg import Time  # noqa: E402
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped  # noqa: E402
from nerfmatch_ros.ros import conversions  # noqa: E402
from nerfmatch_ros.ros.camera_messages import info_message  # noqa: E402
from nerfmatch_ros.ros.image_messages import image_message  # noqa: E402
from nerfmatch_ros.ros.newest_image import NewestImage  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import fake_localizer_node  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 180.0  # seconds; the machine may be busy
RETRY = 1.0  # seconds before an image that brought nothing is sent again
DOMAIN = 1 + (os.getpid() * 7) % 100
VGA = Camera('PINHOLE', 640, 480, 525.5, 525.5, 320, 240)
ENVIRONMENT = {
    'ROS_DOMAIN_ID': str(DOMAIN),
    'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
    'FASTDDS_DEFAULT_PROFILES_FILE': str(ROOT / 'config' / 'fastdds_large_images.xml'),
    'RCUTILS_LOGGING_BUFFERED_STREAM': '0',
    'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]),
    'OMP_NUM_THREADS': '1',
}
FAKE_NODE = [sys.executable, str(ROOT / 'test' / 'ros' / 'fake_localizer_node.py'), '--ros-args']


class NodeProcess:
    """A process whose output is read while it runs."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(
            command, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True)
        self.output = ''
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.output += line

    def wait(self) -> int:
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def wait_for(self, text: str):
        deadline = time.monotonic() + TIMEOUT
        while text not in self.output:
            assert time.monotonic() < deadline, f'no {text!r} in:\n{self.output}'
            assert self.process.poll() is None or text in self.output, self.output
            time.sleep(0.02)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.wait()


class Client:
    """The other end of the topics."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN)
        self.node = rclpy.create_node('test_client', context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        reliable = QoSProfile(depth=50)
        sensor = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.images = self.node.create_publisher(Image, 'image', sensor)
        self.infos = self.node.create_publisher(CameraInfo, 'camera_info', sensor)
        self.latched_infos = self.node.create_publisher(CameraInfo, 'camera_info', latched)
        self.poses, self.covariances, self.transforms = {}, {}, {}
        self._subscriptions = [
            self.node.create_subscription(PoseStamped, 'pose', lambda m: self.poses.update(
                {conversions.stamp_ns(m.header): m}), reliable),
            self.node.create_subscription(
                PoseWithCovarianceStamped, 'pose_with_covariance',
                lambda m: self.covariances.update({conversions.stamp_ns(m.header): m}), reliable),
            self.node.create_subscription(TFMessage, '/tf', lambda m: self.transforms.update(
                {conversions.stamp_ns(m.transforms[0].header): m.transforms[0]}), reliable)]
        self._stamp = 1_403_715_273_262_142_976

    def spin_until(self, done: Callable[[], object], seconds: float = TIMEOUT) -> bool:
        deadline = time.monotonic() + seconds
        while not done():
            if time.monotonic() > deadline:
                return False
            self.executor.spin_once(timeout_sec=0.05)
        return True

    def connect(self):
        assert self.spin_until(lambda: (
            self.images.get_subscription_count() and self.infos.get_subscription_count()
            and all(self.node.count_publishers(topic) for topic in (
                'pose', 'pose_with_covariance', '/tf')))), 'the node was not discovered'

    def next_stamp(self) -> Time:
        self._stamp += 33_333_333
        return Time(sec=self._stamp // 10**9, nanosec=self._stamp % 10**9)

    def make(self, first_pixel, camera=VGA, frame='camera_optical_frame', encoding='rgb8'):
        pixels = np.full((camera.height, camera.width, 3), 90, np.uint8)
        pixels[0, 0] = first_pixel
        order = (0, 1, 2) if encoding == 'rgb8' else (2, 1, 0)
        stamp = self.next_stamp()
        image = image_message(pixels[..., order], stamp, frame)
        image.encoding = encoding
        return image, info_message(camera, stamp, frame)

    def answer(self, image, info=None) -> int:
        """Send an image until its pose is there; give its stamp in nanoseconds.

        Best effort may lose an image; one that was received already is dropped for its stamp.
        """
        stamp = conversions.stamp_ns(image.header)
        for _ in range(round(TIMEOUT / RETRY)):
            if info is not None:
                self.infos.publish(info)
            self.images.publish(image)
            if self.spin_until(lambda: stamp in self.poses, RETRY):
                return stamp
        raise AssertionError('no pose came back')

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture(scope='module')
def client():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        client = Client()
        yield client
        client.close()


@pytest.fixture(scope='module')
def node(client):
    # Published once, before the node exists.
    client.latched_infos.publish(info_message(VGA, Time(), 'latched_camera'))
    process = NodeProcess(
        [*FAKE_NODE, '-p', 'map_path:=/maps/room', '-p', 'devise:=cpu', '-p', 'device:=cpu'])
    process.wait_for('map /maps/room')
    client.connect()
    yield process
    process.kill()


@pytest.mark.parametrize('camera, encoding', [
    (VGA, 'rgb8'), (Camera('PINHOLE', 1280, 720, 900, 900, 640, 360), 'bgr8'),
    (Camera('OPENCV_FISHEYE', 752, 480, 460, 460, 376, 240, (0.1, 0, 0, 0)), 'rgb8')])
def test_a_pose_comes_back_for_every_image(client, node, camera, encoding):
    for value in (10, 20, 30):
        image, info = client.make((value, 5, 7), camera, f'camera_{camera.width}', encoding)
        stamp = client.answer(image, info)
        pose = client.poses[stamp]
        assert pose.header.stamp == image.header.stamp and pose.header.frame_id == 'map'
        matrix = conversions.matrix_from_pose(pose.pose)
        np.testing.assert_allclose(matrix[:3, 3], (value / 100, 0.05, 0.07), atol=1e-12)
        assert matrix[1, 0] == pytest.approx(np.sin(0.1))
        assert client.spin_until(
            lambda s=stamp: s in client.transforms and s in client.covariances)
        transform = client.transforms[stamp]
        assert transform.header == pose.header
        assert transform.child_frame_id == f'camera_{camera.width}'
        assert transform.transform.rotation == pose.pose.orientation
        assert transform.transform.translation.x == pose.pose.position.x
        covariance = client.covariances[stamp]
        assert covariance.pose.pose == pose.pose
        np.testing.assert_allclose(
            np.diag(np.reshape(covariance.pose.covariance, (6, 6))), np.arange(1, 7) * 1e-4)


def test_no_covariance_no_message(client, node):
    first = client.answer(*client.make((1, 0, 0)))
    second = client.answer(*client.make((2, 0, 0)))
    assert client.spin_until(lambda: second in client.covariances)
    assert first not in client.covariances


def test_what_cannot_be_localized_publishes_nothing_and_says_why(client, node):
    client.answer(*client.make((3, 0, 0)))
    bad, _ = client.make((255, 0, 0))
    bug, _ = client.make((254, 0, 0))
    cut, _ = client.make((4, 0, 0))
    cut.step += 1
    grey, _ = client.make((4, 0, 0))
    grey.encoding = 'mono16'
    wrong_size, _ = client.make((4, 0, 0), Camera('PINHOLE', 600, 480, 500, 500, 300, 240))
    sent = [bad, bug, cut, grey, wrong_size]
    for image, text in ((bad, 'only 3 matches'), (bug, 'a bug in the localizer'),
                        (cut, 'truncated')):
        for _ in range(round(TIMEOUT / RETRY)):
            client.images.publish(image)
            if client.spin_until(lambda text=text: text in node.output, RETRY):
                break
        assert text in node.output
    # These two may be throttled in the log; the thread lives on after them too.
    for image in (grey, wrong_size):
        client.images.publish(image)
    last = client.answer(*client.make((5, 0, 0)))
    assert client.spin_until(lambda: last in client.transforms)
    for image in sent:
        stamp = conversions.stamp_ns(image.header)
        assert stamp not in client.poses and stamp not in client.transforms
    assert f'{bad.header.stamp.sec}.{bad.header.stamp.nanosec:09d}: only 3 matches' in node.output


def test_an_image_waits_for_a_late_camera_info(client, node):
    image, info = client.make((6, 0, 0), frame='late_camera')
    stamp = conversions.stamp_ns(image.header)
    client.images.publish(image)
    assert not client.spin_until(lambda: stamp in client.poses, 0.5)
    client.answer(image, info)


def test_a_latched_camera_info_from_before_the_start_is_used(client, node):
    image, _ = client.make((7, 0, 0), frame='latched_camera')
    client.answer(image)


def test_a_bad_camera_info_is_reported_once_and_the_last_good_one_kept(client, node):
    image, info = client.make((8, 0, 0), frame='flaky_camera')
    client.answer(image, info)
    bad = info_message(VGA, info.header.stamp, 'flaky_camera')
    bad.k = [0.0] * 9
    text = "camera_info of frame 'flaky_camera' cannot be used"
    for _ in range(round(TIMEOUT / RETRY)):
        client.infos.publish(bad)
        if client.spin_until(lambda: text in node.output, RETRY):
            break
    client.answer(client.make((9, 0, 0), frame='flaky_camera')[0])
    assert node.output.count(text) == 1 and 'the last good one is kept' in node.output


def test_unknown_parameters_are_named(node):
    assert "'devise' does not exist and is ignored; did you mean device?" in node.output


def test_sigint_ends_the_node_cleanly_even_twice(client, node):
    client.answer(*client.make((11, 0, 0)))
    node.process.send_signal(signal.SIGINT)
    time.sleep(0.05)
    node.process.send_signal(signal.SIGINT)
    assert node.wait() == 0, node.output
    # The one traceback that is there on purpose names a bug of the localizer.
    assert 'KeyboardInterrupt' not in node.output
    assert 'images processed' in node.output


def test_sigterm_while_the_map_loads_ends_the_node(client):
    slow = NodeProcess([*FAKE_NODE, '-p', 'map_path:=/maps/slow'])
    bad = NodeProcess([*FAKE_NODE, '-p', 'map_path:=/maps/nowhere'])
    try:
        slow.wait_for('loading')
        slow.process.send_signal(signal.SIGTERM)
        assert slow.wait() == 0, slow.output
        assert 'Traceback' not in slow.output
        assert bad.wait() == 1, bad.output
        assert 'MapError: there is no map at /maps/nowhere' in bad.output
        assert 'Traceback' not in bad.output
    finally:
        slow.kill()
        bad.kill()


def in_process(client, **parameters):
    """The node in this process, its worker alive, no executor: callbacks are called by hand."""
    values = {'map_path': '/maps/room', 'device': 'cpu', **parameters}
    return fake_localizer_node.LocalizerNode(
        fake_localizer_node.load, context=client.context, namespace=f'n{time.monotonic_ns()}',
        parameter_overrides=[Parameter(name, value=value) for name, value in values.items()])


def finish(node, count):
    deadline = time.monotonic() + TIMEOUT
    while node.processed + node.failed < count:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def published(node):
    """Keep what the node sends instead of sending it."""
    sent = []
    node._poses.publish = sent.append
    return sent


def test_the_previous_pose_is_the_prior_only_where_asked_and_within_one_run(client):
    for use_prior, heights in ((False, (0, 0, 0)), (True, (0, 100.5, 0))):
        node = in_process(client, use_prior=use_prior)
        sent = published(node)
        first, info = client.make((50, 0, 0))
        node._on_camera_info(info)
        second, _ = client.make((51, 0, 0))
        back, _ = client.make((52, 0, 0))
        back.header.stamp.sec -= 100  # as a bag that starts again
        for count, image in enumerate((first, second, back), 1):
            node._on_image(image)
            finish(node, count)
        assert node.close()
        assert [pose.pose.position.z for pose in sent] == list(heights)


def test_images_without_a_useful_stamp_are_dropped(client):
    node = in_process(client, tf_broadcast=False)
    image, info = client.make((12, 0, 0))
    node._on_camera_info(info)
    node._on_image(image)
    finish(node, 1)
    node._on_image(image)  # the same again
    image.header.stamp.nanosec -= 1  # just before it
    node._on_image(image)
    image.header.stamp = Time()  # never set
    node._on_image(image)
    assert (node.processed, node.dropped) == (1, 3)
    assert node.close()


@pytest.mark.parametrize('parameters, cause', [
    ({'map_path': ''}, 'map_path is empty'), ({'threads': -1}, 'threads is out of range'),
    ({'threads': 1.5}, 'threads has the wrong type'), ({'device': 'tpu0'}, 'tpu0'),
    ({'global_frame_id': ''}, 'global_frame_id is empty'),
    ({'global_frame_id': '/map'}, 'leading slash'),
    ({'camera_frame_id': 'map'}, 'must differ')])
def test_a_wrong_parameter_is_named(client, parameters, cause):
    from nerfmatch_ros.errors import NerfmatchError
    with pytest.raises(NerfmatchError, match=cause):
        in_process(client, **parameters)


def test_only_the_newest_waits_and_the_others_are_counted():
    slot = NewestImage(lambda message: message != 'not ready')
    slot.put(1)
    slot.put(2)
    assert (slot.take(), slot.replaced) == (2, 1)
    slot.put('not ready')
    taken = []
    thread = threading.Thread(target=lambda: taken.extend(iter(slot.take, None)))
    thread.start()
    slot.put(3)
    while not taken:
        time.sleep(0.001)
    slot.close()
    thread.join(TIMEOUT)
    slot.put(4)
    assert not thread.is_alive() and taken == [3] and slot.waiting() is None
