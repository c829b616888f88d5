"""A small world around the nodes under test: a robot that drives, its camera, odometry and TF.

Everything runs in this process on one context, so a test sees both the messages and the nodes.
"""

from collections.abc import Callable
import os
import threading
import time

os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'

from fake_backend import Behaviour, CAMERA, FakeBackend, loader, picture  # noqa: E402
from geometry_msgs.msg import PoseStamped, PoseWithCovarianceStamped  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from nerfmatch_ros.ros.camera_messages import info_message  # noqa: E402
from nerfmatch_ros.ros.conversions import stamp_message, stamp_ns, transform_stamped  # noqa: E402
from nerfmatch_ros.ros.image_messages import image_message  # noqa: E402
from nerfmatch_ros.ros.localizer_node import LocalizerNode  # noqa: E402
from nerfmatch_ros.ros.node_process import own_domain  # noqa: E402
from nerfmatch_ros.ros.quality import EVERY, LATCHED, SENSOR, STATIC  # noqa: E402
from nerfmatch_ros.ros.refiner_node import RefinerNode  # noqa: E402
import numpy as np  # noqa: E402
from rcl_interfaces.msg import Log  # noqa: E402
import rclpy  # noqa: E402
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

TIMEOUT = 60.0  # seconds; the machine may be busy
CAMERA_FRAME = 'camera_optical_frame'
DOMAIN = own_domain()
# Camera looks along the x axis of the base, 0.1 m ahead and 0.3 m above it.
BASE_FROM_CAMERA = np.array([
    [0.0, 0.0, 1.0, 0.1], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.3], [0.0, 0.0, 0.0, 1.0]])
MAP_FROM_ODOM = np.array([
    [0.0, -1.0, 0.0, 1.0], [1.0, 0.0, 0.0, 2.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


def map_from_base_at(seconds):
    """Give the true pose of the robot: 0.5 m/s on a circle."""
    angle = 0.25 * seconds
    c, s = np.cos(angle), np.sin(angle)
    pose = np.eye(4)
    pose[:2, :2] = (c, -s), (s, c)
    pose[:3, 3] = 2.0 * s, 2.0 - 2.0 * c, 0.0
    return pose


class Spinner:
    """Spins nodes on a thread; an exception out of a callback is kept for the test."""

    def __init__(self, context, *nodes):
        self.executor = SingleThreadedExecutor(context=context)
        for node in nodes:
            self.executor.add_node(node)
        self.errors = []
        self._running = True
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        while self._running:
            try:
                self.executor.spin_once(timeout_sec=0.05)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)

    def stop(self):
        self._running = False
        self._thread.join(TIMEOUT)
        self.executor.shutdown(timeout_sec=1.0)


class World:
    """The nodes under test and everything that a robot would connect to them.

    Used as a context. Stamps are of the wall clock; `at` names the frame's place on the drive.
    arguments: of ROS, for every node, such as remappings. domain: another one for a world that
    lives beside others.
    """

    def __init__(self, *, refiner=False, autostart=True, namespace='', backend=None, load=None,
                 refiner_parameters=None, arguments=(), domain=DOMAIN, **parameters):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.backend = backend or FakeBackend()
        self.load = load or loader(self.backend)
        self._common = {'context': self.context, 'namespace': namespace,
                        'cli_args': ['--ros-args', *arguments]}
        self.map_from_odom = MAP_FROM_ODOM  # what odometry is off by
        self.node = self.make_localizer(**{'autostart': autostart, **parameters})
        self.refiner = None
        self.refiner_backend = FakeBackend()
        if refiner:
            shared = {name: value for name, value in parameters.items()
                      if name in ('tf_mode', 'pose_frame', 'use_sim_time')}
            self.refiner = self.make_refiner(**shared, **(refiner_parameters or {}))
        self.client = rclpy.create_node('test_client', **self._common)
        make = self.client.create_publisher
        self.images = make(Image, 'image', SENSOR)
        self.infos = make(CameraInfo, 'camera_info', SENSOR)
        self.tf = make(TFMessage, '/tf', QoSProfile(depth=100))
        self.tf_static = make(TFMessage, '/tf_static', STATIC)
        self.initial_poses = make(PoseWithCovarianceStamped, 'initialpose', 1)
        self.refined_poses = make(PoseWithCovarianceStamped, 'refined_pose', EVERY)
        self.poses, self.covariances, self.raw, self.refined = {}, {}, {}, {}
        self.transforms, self.statuses, self.logs = [], [], []
        self.pose_stamps = []  # in the order of arrival
        listen = self.client.create_subscription
        from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
        self.diagnostics = []
        listen(PoseStamped, 'pose', by_stamp(self.poses), 50)
        listen(PoseStamped, 'pose', lambda message: self.pose_stamps.append(
            stamp_ns(message.header)), 50)
        listen(Log, '/rosout', self.logs.append, STATIC)
        listen(PoseWithCovarianceStamped, 'pose_with_covariance', by_stamp(self.covariances), 50)
        listen(PoseWithCovarianceStamped, 'nerfmatch_localizer/pose_raw', by_stamp(self.raw), 50)
        listen(PoseWithCovarianceStamped, 'refined_pose', by_stamp(self.refined), 50)
        listen(TFMessage, '/tf', self._on_transform, QoSProfile(depth=100))
        listen(DiagnosticStatus, 'nerfmatch_localizer/status', self.statuses.append, LATCHED)
        listen(DiagnosticArray, '/diagnostics', self.diagnostics.append, 10)
        self.serial = 0
        self.errors = []
        self.errors_expected = False  # out of callbacks of the nodes
        self._last_ns = 0

    def make_localizer(self, **parameters):
        return LocalizerNode(
            self.load, **self._common,
            parameter_overrides=overrides({'map_path': '/maps/fake', **parameters}))

    def make_refiner(self, **parameters):
        return RefinerNode(
            loader(self.refiner_backend), **self._common,
            parameter_overrides=overrides({'map_path': '/maps/fake', **parameters}))

    def __enter__(self):
        self._spinners = [Spinner(self.context, self.node),
                          Spinner(self.context, self.client)]
        if self.refiner is not None:
            self._spinners.append(Spinner(self.context, self.refiner))
        return self

    def __exit__(self, *_):
        self.backend.hold.set()
        self.refiner_backend.refine_hold.set()
        for spinner in self._spinners:
            spinner.stop()
            self.errors += spinner.errors
        self.node.close()
        if self.refiner is not None:
            self.refiner.close()
        self.client.destroy_node()
        rclpy.shutdown(context=self.context)
        assert not self.errors, f'out of a callback came {self.errors}'
        for node in filter(None, (self.node, self.refiner)):
            assert self.errors_expected or not node.unexpected.in_callbacks, 'see the log'

    def wait_for(self, done: Callable[[], object], what: str = '', seconds: float = TIMEOUT):
        """Wait until `done` gives something true, and give that."""
        deadline = time.monotonic() + seconds
        while not (result := done()):
            assert time.monotonic() < deadline, f'waited in vain for {what or done}'
            time.sleep(0.005)
        return result

    def connect(self, *, info=True, static=True):
        """Wait until the nodes hear the test and the test hears them; send what comes once."""
        self.wait_for(lambda: self.state == 'active', 'an active localizer')
        listeners = 1
        if self.refiner is not None and self.refiner.parameters.values.autostart:
            self.wait_for(lambda: self.refiner._input, 'an active refiner')
            listeners = 2
        self.wait_for(lambda: (
            self.images.get_subscription_count() >= listeners
            and self.infos.get_subscription_count() >= listeners
            and self.client.count_publishers('pose')), 'discovery')
        if static:
            self.send_static()
        if info:
            inputs = [self.node.input] + ([self.refiner._input] if listeners > 1 else [])
            self.wait_for(lambda: self.send_info() or all(
                CAMERA_FRAME in source.cameras.frames for source in inputs),
                'the camera to be known')

    def call(self, kind, name, **request):
        """Call a service; give the response."""
        return self.call_async(kind, name, **request)()

    def call_async(self, kind, name, **request):
        """Call a service; give a function that waits for the response."""
        client = self.client.create_client(kind, name)
        assert client.wait_for_service(TIMEOUT), f'there is no service {name}'
        future = client.call_async(kind.Request(**request))

        def response():
            self.wait_for(future.done, f'an answer of {name}')
            self.client.destroy_client(client)
            return future.result()
        return response

    def change(self, transition, node='nerfmatch_localizer'):
        """Ask for a transition as a lifecycle manager does; tell whether it was made."""
        return self.call(ChangeState, f'{node}/change_state',
                         transition=Transition(id=transition)).success

    @property
    def state(self):
        return self.node._state_machine.current_state[1]

    @property
    def tracker(self):
        return self.node.pipeline.tracker

    def send_info(self, camera=CAMERA, frame=CAMERA_FRAME, stamp=0):
        self.infos.publish(info_message(camera, stamp_message(stamp), frame))
        time.sleep(0.02)

    def send_static(self):
        self.tf_static.publish(TFMessage(transforms=[transform_stamped(
            BASE_FROM_CAMERA, stamp_message(0), 'base_link', CAMERA_FRAME)]))

    def send_odometry(self, stamp, at, map_from_odom=None):
        map_from_odom = self.map_from_odom if map_from_odom is None else map_from_odom
        odom_from_base = np.linalg.inv(map_from_odom) @ map_from_base_at(at)
        self.tf.publish(TFMessage(transforms=[transform_stamped(
            odom_from_base, stamp_message(stamp), 'odom', 'base_link')]))

    def now_ns(self):
        """Give the time, later than ever before."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        return self._last_ns

    def send(self, at=None, behaviour=Behaviour.GOOD, *, stamp=None, odometry=False,
             frame=CAMERA_FRAME, pixels=None, change=None):
        """Send one frame, `at` seconds into the drive; give its stamp."""
        stamp = self.now_ns() if stamp is None else stamp
        at = stamp * 1e-9 - self.started if at is None else at
        self.serial += 1
        if odometry:
            self.send_odometry(stamp, at)
        if pixels is None:
            pixels = picture(map_from_base_at(at) @ BASE_FROM_CAMERA, behaviour, self.serial)
        message = image_message(pixels, stamp_message(stamp), frame)
        if change is not None:
            change(message)
        self.images.publish(message)
        return stamp

    @property
    def started(self):
        """Give the time (s) that the drive began: when it was first asked for."""
        if not hasattr(self, '_started'):
            self._started = time.time()
        return self._started

    def drive(self, frames, *, behaviour=Behaviour.GOOD, odometry=False, every=None, **options):
        """Send frames one after another, each once the last was worked on; give their stamps.

        A frame that best effort lost is sent again with a new stamp.
        """
        stamps = []
        while len(stamps) < frames:
            before, received = self.handled(), self.received()
            stamp = self.send(behaviour=behaviour, odometry=odometry, **options)
            sent = time.monotonic()
            while self.handled() == before and time.monotonic() - sent < (
                    15.0 if self.received() == received or self.busy() else 3.0):
                time.sleep(0.002)
            if self.handled() > before:
                stamps.append(stamp)
            if every:
                time.sleep(every)
        return stamps

    def handled(self):
        """Give how many frames were worked on or dropped."""
        return self.node.attempts + self.node.drops.total

    def received(self):
        """Give how many frames arrived in this activation."""
        return self.node.input.received if self.node.input is not None else 0

    def busy(self):
        """Tell whether a frame is being worked on."""
        worker = self.node.worker
        return worker is not None and worker.busy_since is not None

    def localize(self, *, odometry=False, frames=2):
        """Drive until poses come; give the stamps."""
        stamps = self.drive(frames, odometry=odometry)
        self.wait_for(lambda: stamps[-1] in self.poses, 'a pose')
        return stamps

    def logged(self, text):
        """Tell whether a line with this text was logged."""
        return any(text in log.msg for log in self.logs)

    def diagnosis(self, name):
        """Give the newest diagnostic status whose name ends so, or None."""
        return next((status for array in reversed(self.diagnostics)
                     for status in array.status if status.name.endswith(name)), None)

    def status(self, key):
        """Give a value of the newest status."""
        if not self.statuses:
            return None
        return {item.key: item.value for item in self.statuses[-1].values}.get(key)

    def _on_transform(self, message):
        self.transforms += [transform for transform in message.transforms
                            if transform.header.frame_id == 'map']


def by_stamp(store):
    """Give a callback that stores messages by their stamp."""
    return lambda message: store.__setitem__(stamp_ns(message.header), message)


def overrides(values):
    """Make parameters of plain values."""
    return [Parameter(name.replace('__', '.'), value=value) for name, value in values.items()]


def error_of(message, truth):
    """Give the distance in metres of a pose message from a true pose."""
    position = message.pose.pose.position if hasattr(message.pose, 'pose') else (
        message.pose.position)
    return float(np.linalg.norm(np.array([position.x, position.y, position.z]) - truth[:3, 3]))
