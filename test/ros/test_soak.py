"""Random faults of every kind, one after another, while both nodes go on.

By default for 15 seconds; NERFMATCH_SOAK_SECONDS makes it longer (600 is a good soak), and
NERFMATCH_SOAK_SEED chooses another sequence of faults:

    NERFMATCH_SOAK_SECONDS=600 python -m pytest test/ros/test_soak.py -s

Frames of every `Behaviour`, damaged images and cameras, gaps and nonsense on /tf, odometry and
stamps that jump, floods, parameters, services and transitions, refined and initial poses of every
kind, a refiner that is slow or stopped. In the end: nothing came out of a callback but what was
injected, no thread and no memory is left over, stamps are those of images and rise, and two good
frames are enough for a pose.
"""

from collections import Counter
import gc
import math
import os
from pathlib import Path
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from fake_backend import Behaviour, CAMERA, FakeBackend  # noqa: E402
from geometry_msgs.msg import PoseWithCovarianceStamped  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from lifecycle_msgs.srv import ChangeState  # noqa: E402
from nerfmatch_ros.data.posed_image import PosedImage  # noqa: E402
from nerfmatch_ros.localization.frame_pipeline import FrameResult  # noqa: E402
from nerfmatch_ros.localization.rigid_motion import is_pose  # noqa: E402
from nerfmatch_ros.ros.camera_messages import info_message  # noqa: E402
from nerfmatch_ros.ros.conversions import (  # noqa: E402
    matrix_from_pose,
    matrix_from_transform,
    pose_with_covariance,
    SECOND,
    stamp_message,
    stamp_ns,
    transform_stamped,
)
from node_world import (  # noqa: E402
    CAMERA_FRAME,
    map_from_base_at,
    MAP_FROM_ODOM,
    World,
)
from rclpy.parameter import Parameter  # noqa: E402
from rclpy.parameter_client import AsyncParameterClient  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402
from std_srvs.srv import Empty, SetBool, Trigger  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

SECONDS = float(os.environ.get('NERFMATCH_SOAK_SECONDS', 15))
SEED = int(os.environ.get('NERFMATCH_SOAK_SEED', 1))
MEGABYTES = 16  # that the process may grow by after its first fifth; allocators are not exact
INJECTED = ('injected', 'CUDA error')  # texts of errors that the fake localizer raises

LOCALIZER, REFINER = 'nerfmatch_localizer', 'nerfmatch_refiner'
DEFAULTS = {  # of the parameters that change on the way
    'gate_chi2': 22.46, 'init_consistent_fixes': 2, 'relocalize_after_rejects': 3,
    'lost_after_failures': 3, 'lost_timeout': 5.0, 'mode': 'auto', 'tf_broadcast': True,
    'transform_tolerance': 0.1, 'covariance_diagonal_only': False, 'correction_horizon': 10.0,
    'slew_linear': 0.5, 'max_update_rate': 0.0, 'max_image_age': 0.0, 'max_speed': 5.0,
    'covariance_scale': 1.0, 'wait_for_transform': 0.02}
CHANGES = {  # good and bad ones
    'gate_chi2': (0.0, 12, math.nan, -1.0), 'init_consistent_fixes': (1, 3, 0, 'two'),
    'relocalize_after_rejects': (1, 5), 'lost_after_failures': (1, 10, 0),
    'lost_timeout': (0.0, 1, -3.0), 'mode': ('global', 'auto', 'none'),
    'tf_broadcast': (False, True, 1), 'transform_tolerance': (0.0, 0.3, 5.0),
    'covariance_diagonal_only': (True,), 'correction_horizon': (0.0, 1.0, -1.0),
    'slew_linear': (0.0, 2), 'max_update_rate': (30.0, 0.0, 1e9), 'max_image_age': (0.5, 0.0),
    'max_speed': (1.0, 0.0), 'covariance_scale': (10.0, 0.0), 'wait_for_transform': (0.0, 0.05),
    'global_frame_id': ('world',), 'tf_mode': ('none',), 'no_such_parameter': (1,)}


class Soak:
    """Does one random thing after another to a world, and keeps account."""

    def __init__(self, world, seed):
        self.world, self.random = world, np.random.default_rng(seed)
        self.done = Counter()  # actions by name
        self.unexpected = []
        self.offset_ns = 0  # of all stamps to the clock
        self.run_number = 0  # how often stamps went back by a second or more
        self.sent = {}  # stamps of images with the run that they are of, the newest few thousand
        self.newest = self.stamp()  # of the last image that was sent in its time
        self.newest_pose = 0, 0  # run and stamp
        self.newest_transform = 0
        self.poses = self.transforms = 0
        make = world.client.create_client
        self.services = [
            (make(Trigger, f'{LOCALIZER}/{name}'), Trigger.Request)
            for name in ('reset', 'save_pose', 'load_map', 'relocalize')]
        self.services.append((make(Empty, 'reinitialize_global_localization'), Empty.Request))
        self.pause_client = make(SetBool, f'{LOCALIZER}/pause')
        self.transitions = {
            name: make(ChangeState, f'{name}/change_state') for name in (LOCALIZER, REFINER)}
        self.parameters = AsyncParameterClient(world.client, LOCALIZER)
        for node in (world.node, world.refiner):
            watch_unexpected(node, self.unexpected)
        self.actions = {
            self.frame: 70, self.flood: 0.5, self.bad_frame: 5, self.bad_image: 5,
            self.bad_info: 1, self.send_info: 2, self.frame_without_odometry: 2,
            self.bad_transform: 3, self.odometry_jump: 0.3, self.jump_back: 0.3, self.catch_up: 1,
            self.change_parameters: 1.5, self.restore_parameters: 2, self.change_tolerance: 1,
            self.call_service: 0.5, self.pause: 0.3, self.refined_pose: 5, self.initial_pose: 0.5,
            self.change_state: 0.2, self.disturb_refiner: 1, self.hang: 0.3}

    def run(self, seconds, every):
        """Act for so long; `every` is called now and then."""
        actions = list(self.actions)
        weights = np.array(list(self.actions.values()))
        weights /= weights.sum()
        end, checked = time.monotonic() + seconds, time.monotonic()
        while time.monotonic() < end:
            action = actions[self.random.choice(len(actions), p=weights)]
            action()
            self.done[action.__name__] += 1
            time.sleep(self.random.uniform(0.0, 0.02))
            if time.monotonic() - checked > 1.0:
                self.check()
                self.activate()
                every()
                checked = time.monotonic()

    # What may happen

    def stamp(self):
        return self.world.now_ns() + self.offset_ns

    def frame(self, behaviour=Behaviour.GOOD, odometry=True, change=None, stamp=None):
        if stamp is None:
            stamp = self.newest = self.stamp()
        world, at = self.world, stamp * 1e-9 - self.world.started
        self.sent.setdefault(stamp, self.run_number)
        if len(self.sent) > 5000:
            del self.sent[next(iter(self.sent))]
        if odometry:
            world.send_odometry(stamp, at)
        world.send(at, behaviour, stamp=stamp, change=change)

    def flood(self):
        for _ in range(30):
            self.frame()

    def bad_frame(self):
        behaviour = Behaviour(self.random.choice(list(Behaviour)))
        for _ in range(self.random.integers(1, 5)):
            self.frame(behaviour)

    def frame_without_odometry(self):
        self.frame(odometry=False)

    def bad_image(self):
        def change(message):
            name, value = self.random.choice(np.array([
                ('encoding', ''), ('encoding', 'rgb99'), ('encoding', 'bayer_rggb8'),
                ('encoding', 'mono16'), ('step', 0), ('step', 2 ** 32 - 1), ('height', 0),
                ('width', 0), ('height', 2 ** 32 - 1), ('width', 2 ** 31), ('width', 63),
                ('is_bigendian', 1), ('frame_id', ''), ('frame_id', 'nobody'), ('data', 0),
                ('data', 100), ('data', 9999), ('dark', 0), ('bright', 255)], dtype=object))
            if name == 'frame_id':
                message.header.frame_id = value
            elif name == 'data':
                message.data = bytes(value)
            elif name in ('dark', 'bright'):
                message.data = bytes([value]) * len(message.data)
            else:
                setattr(message, name, value)

        newest = self.newest
        stamp = self.random.choice(np.array([
            None, None, None, 0, newest, newest - 3_000_000, newest + 3600 * SECOND,
            newest - 3600 * SECOND], dtype=object))
        if stamp is not None and 0 < stamp < newest - SECOND:
            self.run_number += 1
        self.frame(change=None if stamp else change, stamp=stamp)

    def bad_info(self):
        message = info_message(CAMERA, stamp_message(self.stamp()), CAMERA_FRAME)
        name, value = self.random.choice(np.array([
            ('k', np.zeros(9)), ('k', np.full(9, math.nan)), ('distortion_model', 'fancy'),
            ('d', [0.1]), ('width', 0), ('height', 7), ('binning_x', 3)], dtype=object))
        setattr(message, name, value)
        self.world.infos.publish(message)

    def send_info(self):
        self.world.send_info()

    def bad_transform(self):
        parent, child = self.random.choice(np.array([
            ('odom', 'base_link'), ('base_link', CAMERA_FRAME), ('map', 'odom'), ('', 'base_link'),
            ('base_link', 'base_link'), ('base_link', 'odom')], dtype=object))
        transform = transform_stamped(np.eye(4), stamp_message(self.stamp()), parent, child)
        if parent in ('odom', 'base_link') and child != 'odom':
            name = self.random.choice(['x', 'w'])
            setattr(transform.transform.rotation, name, self.random.choice([math.nan, 7.0]))
        elif child == 'odom' and parent == 'base_link':
            transform.header.frame_id = 'elsewhere'  # a second parent of odom
        self.world.tf.publish(TFMessage(transforms=[transform]))

    def odometry_jump(self):
        self.world.map_from_odom = MAP_FROM_ODOM @ map_from_base_at(self.random.uniform(0, 20))

    def jump_back(self):
        self.offset_ns -= int(self.random.uniform(1.5, 10) * SECOND)
        self.run_number += 1
        self.frame()

    def catch_up(self):
        self.offset_ns = 0

    def change_parameters(self):
        names = self.random.choice(list(CHANGES), self.random.integers(1, 4), replace=False)
        self.parameters.set_parameters([Parameter(
            str(name), value=CHANGES[name][self.random.integers(len(CHANGES[name]))])
            for name in names])

    def change_tolerance(self):
        self.parameters.set_parameters([Parameter(
            'transform_tolerance', value=float(self.random.choice([0.0, 0.1, 0.3])))])

    def restore_parameters(self):
        self.parameters.set_parameters(
            [Parameter(name, value=value) for name, value in DEFAULTS.items()])

    def call_service(self):
        client, request = self.services[self.random.integers(len(self.services))]
        if client.service_is_ready():
            client.call_async(request())

    def pause(self):
        self.pause_client.call_async(SetBool.Request(data=bool(self.random.integers(2))))

    def refined_pose(self):
        stamps = list(self.sent)[-40:]
        if not stamps:
            return
        stamp = stamps[self.random.integers(len(stamps))] + int(self.random.choice([0, 0, 0, 1]))
        pose = map_from_base_at(stamp * 1e-9 - self.world.started)
        pose[:3, 3] += self.random.choice([0.0, 0.001, 3.0, 100.0])
        sigma = self.random.choice([1e-9, 0.001, 0.01, 1.0])
        self.publish_pose(self.world.refined_poses, pose, sigma, stamp)

    def initial_pose(self):
        pose = map_from_base_at(self.stamp() * 1e-9 - self.world.started)
        pose[:3, 3] += self.random.choice([0.0, 0.3, 1e6])
        sigma = self.random.choice([0.0, 0.3, 1e3])
        self.publish_pose(self.world.initial_poses, pose, sigma, self.stamp())

    def publish_pose(self, publisher, pose, sigma, stamp):
        message = PoseWithCovarianceStamped()
        if 0 <= stamp < 2 ** 31 * SECOND:
            message = pose_with_covariance(pose, np.eye(6) * sigma ** 2, stamp_message(stamp),
                                           self.random.choice(['map', 'map', 'map', 'odom', '']))
        fault = self.random.integers(8)
        if fault == 0:
            message.pose.pose.position.x = math.nan
        elif fault == 1:
            message.pose.pose.orientation.w = 0.0
            message.pose.pose.orientation.z = 0.0
        elif fault == 2:
            message.pose.covariance[int(self.random.integers(36))] = self.random.choice(
                [math.nan, math.inf, -1.0, 1e300])
        publisher.publish(message)

    def change_state(self):
        name = self.random.choice([LOCALIZER, REFINER])
        self.transition(name, Transition.TRANSITION_DEACTIVATE)
        if self.random.integers(2):
            self.transition(name, Transition.TRANSITION_CLEANUP)

    def transition(self, name, number):
        request = ChangeState.Request(transition=Transition(id=number))
        self.transitions[name].call_async(request)

    def activate(self):
        """Bring both nodes back to work, from whatever state."""
        for name in (LOCALIZER, REFINER):
            self.transition(name, Transition.TRANSITION_CONFIGURE)
            self.transition(name, Transition.TRANSITION_ACTIVATE)
        self.pause_client.call_async(SetBool.Request(data=False))

    def disturb_refiner(self):
        self.world.refiner_backend.refine_delay = self.random.choice([0.0, 0.0, 0.05, 0.5])

    def hang(self):
        world = self.world
        hold = self.random.choice([world.backend.hold, world.refiner_backend.refine_hold])
        hold.clear()
        time.sleep(0.2)
        hold.set()

    # What must hold

    def check(self):
        """Look at all that was published since the last time, and forget it."""
        world = self.world
        taken = take(world.pose_stamps)
        for stamp in taken:
            assert stamp in self.sent, f'{stamp} is the stamp of no image'
            pose = self.sent[stamp], stamp
            assert pose > self.newest_pose, f'(run, stamp) {pose} follows {self.newest_pose}'
            self.newest_pose = pose
        self.poses += len(taken)
        for transform in take(world.transforms):
            # A rival is among the faults: what it sends is the identity.
            matrix, stamp = matrix_from_transform(transform.transform), stamp_ns(transform.header)
            if np.array_equal(matrix, np.eye(4)):
                continue
            assert is_pose(matrix)
            assert stamp > self.newest_transform, (
                f'transform of {stamp} follows {self.newest_transform}')
            self.newest_transform = stamp
            self.transforms += 1
        for store in (world.poses, world.covariances, world.raw, world.refined):
            for stamp in list(store):
                message = store.pop(stamp)
                if not hasattr(message.pose, 'covariance'):
                    assert is_pose(matrix_from_pose(message.pose))
                elif store is not world.refined:  # where the test injects what is none
                    assert is_pose(matrix_from_pose(message.pose.pose))
                    assert np.isfinite(message.pose.covariance).all()
        for lines in (world.statuses, world.diagnostics, world.logs, world.backend.asked,
                      world.backend.refined, world.refiner_backend.refined):
            take(lines)
        assert not self.unexpected, self.unexpected[0]
        assert not [error for spinner in world._spinners for error in spinner.errors]

    def recover(self):
        """Let everything be well again."""
        world = self.world
        world.backend.hold.set()
        world.refiner_backend.refine_hold.set()
        world.refiner_backend.refine_delay = 0.0
        self.offset_ns, world.map_from_odom, world.node.fatal = 0, MAP_FROM_ODOM, ''
        self.run_number += 1
        for _ in range(200):
            self.activate()
            self.restore_parameters()
            world.send_info()
            world.send_static()
            self.frame()
            time.sleep(0.1)
            if world.state == 'active' and world.refiner._state_machine.current_state[1] == (
                    'active') and not world.node.paused and world.tracker.state.name == (
                    'LOCALIZED'):
                return
        raise AssertionError('the nodes do not come back')


def watch_unexpected(node, found):
    """Keep what a node did not expect, unless the fake localizer raised it."""
    note = node.unexpected.note

    def watch(what):
        error = sys.exc_info()[1]
        if not any(text in str(error) for text in INJECTED):
            found.append(f'{what}: {type(error).__name__}: {error}')
        note(what)
    node.unexpected.note = watch


def take(items):
    """Empty a list that others append to, and give what was in it."""
    taken = items[:]
    del items[:len(taken)]
    return taken


def resident_megabytes():
    gc.collect()
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf('SC_PAGESIZE') / 2**20


def os_threads():
    return len(os.listdir('/proc/self/task'))


def alive(kind):
    """Count the objects of a class: what leaks shows here before it shows in the memory."""
    return sum(type(item) is kind for item in gc.get_objects())


def test_soak_of_random_faults():
    with World(tf_mode='map_to_odom', refiner=True, autostart=True, max_image_age=0.0,
               wait_for_transform=0.02, backend=FakeBackend(noise=0.01),
               refiner_parameters={'refine.frame_cache_mb': 1, 'refine.max_age': 0.3}) as world:
        world.connect()
        soak = Soak(world, SEED)
        figures = []

        def measure():
            figures.append((time.monotonic(), resident_megabytes(), threading.active_count(),
                            os_threads()))

        soak.run(SECONDS / 5, measure)
        soak.recover()
        measure()
        before = figures[-1]
        soak.run(SECONDS * 4 / 5, measure)
        soak.recover()
        measure()
        after = figures[-1]
        for _ in range(3):
            soak.check()
            soak.frame()
            time.sleep(0.05)
        started = figures[0][0]
        print(f'\n{sum(soak.done.values())} actions {dict(soak.done)}\n{soak.poses} poses, '
              f'{soak.transforms} transforms; seconds, MB, Python threads, threads:')
        for at, memory, python_threads, threads in figures[::max(1, len(figures) // 20)]:
            print(f'{at - started:7.0f} {memory:7.1f} {python_threads:3d} {threads:3d}')
        assert soak.poses > SECONDS and soak.transforms > 2 * SECONDS
        assert world.node.unexpected.in_callbacks == world.refiner.unexpected.in_callbacks == 0
        assert world.node.broadcaster.errors == 0
        assert after[2:] == before[2:], 'threads are left over'
        assert after[1] - before[1] < MEGABYTES, 'memory grows'
        # The cache of the refiner has room for a hundred images.
        assert alive(Image) < 200 and alive(PosedImage) < 20 and alive(FrameResult) < 20
