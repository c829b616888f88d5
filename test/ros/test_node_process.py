"""The localizer as a process: signals, exit codes, a crash and what comes after it."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from fake_backend import Behaviour, CAMERA, picture, SHA256  # noqa: E402
from geometry_msgs.msg import PoseStamped  # noqa: E402
from nerfmatch_ros.localization.saved_pose import load_pose  # noqa: E402
from nerfmatch_ros.ros.camera_messages import info_message  # noqa: E402
from nerfmatch_ros.ros.conversions import (  # noqa: E402
    matrix_from_transform,
    stamp_message,
    stamp_ns,
    transform_stamped,
)
from nerfmatch_ros.ros.image_messages import image_message  # noqa: E402
from nerfmatch_ros.ros.quality import SENSOR, STATIC  # noqa: E402
from node_world import (  # noqa: E402
    BASE_FROM_CAMERA,
    CAMERA_FRAME,
    map_from_base_at,
    MAP_FROM_ODOM,
    Spinner,
    TIMEOUT,
)
import rclpy  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import CameraInfo, Image  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

HERE = Path(__file__).resolve().parent
DOMAIN = 1 + (os.getpid() * 7 + 53) % 100


def wait_for(done, what):
    deadline = time.monotonic() + TIMEOUT
    while not (result := done()):
        assert time.monotonic() < deadline, f'waited in vain for {what}'
        time.sleep(0.01)
    return result


class Process:
    """The node with parameters; `said` is all that it printed."""

    def __init__(self, folder, **parameters):
        self.log = folder / 'log.txt'
        arguments = [text for name, value in parameters.items()
                     for text in ('-p', f'{name}:={value}')]
        with open(self.log, 'ab') as log:
            self._process = subprocess.Popen(
                [sys.executable, HERE / 'fake_localizer_process.py', '--ros-args', *arguments],
                stdout=log, stderr=subprocess.STDOUT, env={
                    **os.environ, 'ROS_DOMAIN_ID': str(DOMAIN), 'CUDA_VISIBLE_DEVICES': '',
                    'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
                    'PYTHONPATH': os.pathsep.join([str(HERE.parents[1]), str(HERE)])})

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()

    @property
    def said(self):
        return self.log.read_text(encoding='utf-8', errors='replace')

    def wait_until_it_says(self, text):
        wait_for(lambda: text in self.said or not self.runs, text)
        assert text in self.said, self.said

    @property
    def runs(self):
        return self._process.poll() is None

    def send(self, number):
        self._process.send_signal(number)

    def exit_code(self):
        return self._process.wait(TIMEOUT)

    def assert_clean(self):
        assert self.exit_code() == 0, self.said
        for word in ('Traceback', 'Exception', 'rror'):
            assert word not in self.said, self.said


class Robot:
    """Sends images, camera, odometry and extrinsic until it is closed; keeps what it hears."""

    def __init__(self):
        self.context = rclpy.Context()
        rclpy.init(context=self.context, domain_id=DOMAIN)
        self.node = rclpy.create_node('robot', context=self.context)
        make, listen = self.node.create_publisher, self.node.create_subscription
        self._images, self._infos = make(Image, 'image', SENSOR), make(
            CameraInfo, 'camera_info', SENSOR)
        self._tf = make(TFMessage, '/tf', QoSProfile(depth=100))
        make(TFMessage, '/tf_static', STATIC).publish(TFMessage(transforms=[transform_stamped(
            BASE_FROM_CAMERA, stamp_message(0), 'base_link', CAMERA_FRAME)]))
        self.poses, self.transforms = [], []
        self.behaviour = Behaviour.GOOD
        listen(PoseStamped, 'pose', lambda message: self.poses.append(
            stamp_ns(message.header)), 50)
        listen(TFMessage, '/tf', lambda message: self.transforms.extend(
            transform for transform in message.transforms
            if transform.header.frame_id == 'map'), QoSProfile(depth=100))

    def __enter__(self):
        self._spinner = Spinner(self.context, self.node)
        self._driving = True
        self._thread = threading.Thread(target=self._drive, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._driving = False
        self._thread.join(TIMEOUT)
        self._spinner.stop()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _drive(self):
        serial, started = 0, time.time()
        while self._driving:
            serial += 1
            stamp = time.time_ns()
            header_stamp, base = stamp_message(stamp), map_from_base_at(stamp * 1e-9 - started)
            self._tf.publish(TFMessage(transforms=[transform_stamped(
                np.linalg.inv(MAP_FROM_ODOM) @ base, header_stamp, 'odom', 'base_link')]))
            self._infos.publish(info_message(CAMERA, header_stamp, CAMERA_FRAME))
            self._images.publish(image_message(
                picture(base @ BASE_FROM_CAMERA, self.behaviour, serial), header_stamp,
                CAMERA_FRAME))
            time.sleep(0.05)


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_row_32_a_signal_ends_a_running_node_cleanly_with_its_pose_saved(tmp_path, number):
    path = tmp_path / 'pose.json'
    with Process(tmp_path, map_path='/maps/fake', tf_mode='map_to_odom', save_pose_path=path,
                 save_pose_rate=0.0) as process, Robot() as robot:
        wait_for(lambda: len(robot.poses) > 3 and robot.transforms, 'poses and transforms')
        assert not path.exists()
        process.send(number)
        process.assert_clean()
        load_pose(path, map_sha256=SHA256, max_age=600.0, now=time.time())


def test_row_32_a_signal_does_not_wait_for_an_inference_without_end(tmp_path):
    with Process(tmp_path, map_path='/maps/endless_frames', tf_mode='map_to_camera') as process, \
            Robot() as robot:
        process.wait_until_it_says('inference begins')
        process.send(signal.SIGTERM)
        # A launch file passes a signal on that the terminal has sent already.
        process.send(signal.SIGINT)
        process.assert_clean()
        assert 'a computation was left unfinished' in process.said
        assert not robot.poses


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_row_32_a_signal_breaks_off_the_configuration(tmp_path, number):
    with Process(tmp_path, map_path='/maps/endless_load') as process:
        process.wait_until_it_says('loading begins')
        process.send(number)
        process.assert_clean()
        assert 'stopped while starting' in process.said


def test_row_32_a_second_signal_ends_the_process_at_once(tmp_path):
    with Robot(), Process(
            tmp_path, map_path='/maps/endless_patience', tf_mode='map_to_camera') as process:
        process.wait_until_it_says('inference begins')
        process.send(signal.SIGINT)
        process.wait_until_it_says('epoch 2: deactivated')
        # One hour would pass before the node gave the inference up.
        while process.runs:
            time.sleep(0.2)
            process.send(signal.SIGINT)
        process.assert_clean()
        assert 'unfinished' not in process.said


def test_row_21_a_lost_gpu_ends_the_process_with_an_error(tmp_path):
    with Process(tmp_path, map_path='/maps/fake', tf_mode='map_to_camera') as process, \
            Robot() as robot:
        wait_for(lambda: len(robot.poses) > 1, 'poses')
        robot.behaviour = Behaviour.GPU_LOST
        assert process.exit_code() == 1
        assert 'the GPU is lost (CUDA error: unspecified launch failure)' in process.said


@pytest.mark.parametrize('parameters, reason', [
    ({'device': 'cuda:0'}, "device 'cuda:0' was asked for but torch finds no CUDA device"),
    ({'min_inliers': 20000}, 'min_inliers')])
def test_row_21_and_30_a_start_that_fails_ends_with_an_error_and_its_reason(
        tmp_path, parameters, reason):
    with Process(tmp_path, **{'map_path': '/maps/fake', **parameters}) as process:
        assert process.exit_code() == 1
        assert reason in process.said and 'Traceback' not in process.said


def test_row_33_after_a_crash_the_node_finds_its_place_and_nothing_flashes(tmp_path):
    path = tmp_path / 'pose.json'
    parameters = {'map_path': '/maps/fake', 'tf_mode': 'map_to_odom', 'save_pose_path': path,
                  'save_pose_rate': 10.0, 'initialize_at_saved_pose': 'true'}
    with Robot() as robot:
        with Process(tmp_path, **parameters) as process:
            wait_for(lambda: len(robot.poses) > 3 and robot.transforms and path.exists(), 'work')
            process.send(signal.SIGKILL)
            assert process.exit_code() == -signal.SIGKILL
        assert 'looking first near saved pose' not in process.said, 'there was none before'
        crashed = len(robot.transforms)
        before = len(robot.poses)
        with Process(tmp_path, **parameters) as process:
            wait_for(lambda: len(robot.transforms) > crashed + 3, 'transforms of the new process')
            wait_for(lambda: len(robot.poses) > before + 3, 'poses of the new process')
            process.send(signal.SIGINT)
            process.assert_clean()
        assert 'looking first near saved pose' in process.said
    stamps = [stamp_ns(transform.header) for transform in robot.transforms]
    assert all(earlier < later for earlier, later in zip(stamps, stamps[1:]))
    assert all(earlier < later for earlier, later in zip(robot.poses, robot.poses[1:]))
    for transform in robot.transforms:
        difference = matrix_from_transform(transform.transform) - MAP_FROM_ODOM
        assert np.abs(difference).max() < 0.3
