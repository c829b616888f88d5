"""What the doctor says of the inputs: verdicts on their own, then of a robot over DDS."""

from contextlib import contextmanager
import json
import os
import threading

import numpy as np
import pytest

REASON = 'needs rclpy (a sourced ROS 2, or the extra ros-wheels)'
rclpy = pytest.importorskip('rclpy', reason=REASON)
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from geometry_msgs.msg import PoseWithCovarianceStamped  # noqa: E402
from nerfmatch_ros.cli import main  # noqa: E402
from nerfmatch_ros.errors import ConfigError  # noqa: E402
from nerfmatch_ros.geometry.camera import Camera  # noqa: E402
from nerfmatch_ros.ros import conversions, doctor_findings, doctor_inputs  # noqa: E402
from nerfmatch_ros.ros.camera_messages import info_message  # noqa: E402
from nerfmatch_ros.ros.doctor import examine  # noqa: E402
from nerfmatch_ros.ros.doctor_findings import End, FAULT, Finding, NOTE, OK  # noqa: E402
from nerfmatch_ros.ros.doctor_inputs import DoctorOptions  # noqa: E402
from nerfmatch_ros.ros.image_messages import image_message  # noqa: E402
from nerfmatch_ros.ros.quality import (  # noqa: E402
    EVERY,
    LATCHED,
    NEWEST,
    SENSOR,
    SENSOR_RELIABLE,
    STATIC,
)
from rclpy.executors import SingleThreadedExecutor  # noqa: E402
from rclpy.node import Node  # noqa: E402
from rclpy.qos import QoSProfile  # noqa: E402
from sensor_msgs.msg import CameraInfo, CompressedImage, Image  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402

DOMAIN = 1 + (os.getpid() * 7 + 71) % 100
LONG = 60.0  # seconds; the machine may be busy, and the doctor ends as soon as all is there
SECOND = 1_000_000_000
NOW = 1_700_000_000 * SECOND
CAMERA = Camera('PINHOLE', 64, 48, 50.0, 50.0, 31.5, 23.5)
FRAME = 'camera_optical_frame'


def picture():
    return np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)


def stamp(nanoseconds=NOW):
    return conversions.stamp_message(nanoseconds)


# Verdicts


def test_quality_is_judged_as_the_middleware_does():
    fits = {(offered, asked): doctor_findings.quality_verdict([End('/a', profiles[offered])],
                                                              profiles[asked])[0]
            for profiles in [{'best effort': SENSOR, 'reliable': EVERY, 'latched': LATCHED}]
            for offered in profiles for asked in profiles}
    assert {pair for pair, verdict in fits.items() if verdict == FAULT} == {
        ('best effort', 'reliable'), ('best effort', 'latched'), ('reliable', 'latched')}
    assert set(fits.values()) == {OK, FAULT}


def test_a_publisher_that_is_not_heard_is_named_with_the_policy():
    ends = [End('/driver', SENSOR), End('/other', EVERY)]
    verdict, text = doctor_findings.quality_verdict(ends[:1], SENSOR_RELIABLE)
    assert verdict == FAULT and '/driver' in text and 'eliab' in text
    # Where another one is heard, it may be meant so.
    verdict, text = doctor_findings.quality_verdict(ends, SENSOR_RELIABLE)
    assert verdict == NOTE and '/driver' in text and '/other' not in text
    assert doctor_findings.quality_verdict([], SENSOR) == (OK, '')


def test_a_topic_without_publisher_is_a_fault_only_if_it_is_needed():
    finding = doctor_findings.topic_finding('image', '/image', [], SENSOR, others=['/b', '/a'])
    assert finding.verdict == FAULT and 'nobody publishes it' in finding.text
    assert '/a, /b' in finding.text
    finding = doctor_findings.topic_finding('initialpose', '/initialpose', [], NEWEST,
                                            needed=False)
    assert finding.verdict == OK and finding.text


@pytest.mark.parametrize('age, verdict, words', [
    (0.0, OK, []), (0.4, OK, []), (2.0, NOTE, ['2.000 s old', 'max_image_age']),
    (-1.0, NOTE, ['ahead of the clock']), (3 * 3600, NOTE, ['use_sim_time', '/clock is not pub']),
    (-3 * 3600, NOTE, ['use_sim_time'])])
def test_stamps_that_do_not_go_with_the_clock_are_noted(age, verdict, words):
    found, text = doctor_findings.stamp_problem(NOW - int(age * SECOND), NOW, False)
    assert found == verdict and bool(text) == bool(words)
    assert all(word in text for word in words)
    if words:
        assert '/clock is published' in doctor_findings.stamp_problem(
            NOW - int(age * SECOND), NOW, True)[1]


def test_an_image_without_stamp_is_a_fault():
    verdict, text = doctor_findings.stamp_problem(0, NOW, False)
    assert verdict == FAULT and 'header.stamp' in text


def test_an_image_is_read_as_the_localizer_reads_it():
    message = image_message(picture(), stamp(), FRAME)
    assert doctor_findings.read_image(message) == ((64, 48), '')
    assert doctor_findings.image_text(message) == f"frame '{FRAME}', 64 x 48 rgb8"
    message.step = 3
    size, problem = doctor_findings.read_image(message)
    assert size is None and 'step' in problem
    size, problem = doctor_findings.read_image(CompressedImage(data=b'nothing'))
    assert size is None and problem


def test_a_camera_must_be_calibrated_and_belong_to_the_image():
    good = info_message(CAMERA, stamp(), FRAME)
    problem = doctor_findings.camera_problem
    assert problem([good], FRAME, (64, 48), False) == ''
    assert problem([good], FRAME, (32, 24), False) == ''  # half the size
    assert 'other_frame' in problem([good], 'other_frame', (64, 48), False)
    assert '100 x 48' in problem([good], FRAME, (100, 48), False)
    bad = CameraInfo(width=64, height=48)
    bad.header.frame_id = FRAME
    assert 'K' in problem([bad], FRAME, (64, 48), False)
    assert 'K' in problem([bad], '', None, False)
    assert problem([good], '', None, False) == ''


def test_the_report_has_a_paragraph_for_each_input():
    findings = [
        Finding('image', OK, 'all is well', '/image', ('/driver (reliable, volatile)',),
                'compatible', 5 * SECOND + 7, 0.25),
        Finding('transform odom -> base_link', FAULT, 'none')]
    assert doctor_findings.report_lines(findings) == [
        'OK    image: /image', '      from /driver (reliable, volatile)', '      compatible',
        '      last stamp 5.000000007, 0.250 s old', '      all is well',
        'FAULT transform odom -> base_link', '      none']
    assert doctor_findings.exit_code(findings) == 1
    assert doctor_findings.exit_code([findings[0], Finding('x', NOTE)]) == 0


def test_no_time_to_listen_is_an_error():
    with pytest.raises(ConfigError, match='seconds 0'):
        DoctorOptions(seconds=0.0)


# A robot over DDS


class Robot(Node):
    """Publishes what the localizer needs, all with one stamp."""

    def __init__(self, context, *, namespace='', image='image', image_quality=SENSOR,
                 infos=True, odometry=True, frames='', static=True):
        super().__init__('robot', context=context, namespace=namespace,
                         start_parameter_services=False)
        publish = self.create_publisher
        self._images = publish(Image, image, image_quality)
        self._transforms = publish(TFMessage, f'{frames}/tf', QoSProfile(depth=100))
        self._odometry = odometry
        if infos:  # once, before anybody listens
            self._infos = publish(CameraInfo, 'camera_info', LATCHED)
            self._infos.publish(info_message(CAMERA, stamp(), FRAME))
        if static:
            self._static = publish(TFMessage, f'{frames}/tf_static', STATIC)
            self._static.publish(TFMessage(transforms=[conversions.transform_stamped(
                np.eye(4), stamp(), 'base_link', FRAME)]))
        self.create_timer(0.05, self._tick)

    def _tick(self):
        now = self.get_clock().now().to_msg()
        if self._odometry:
            self._transforms.publish(TFMessage(transforms=[conversions.transform_stamped(
                np.eye(4), now, 'odom', 'base_link')]))
        self._images.publish(image_message(picture(), now, FRAME))


@contextmanager
def spinning(*makers):
    """Run nodes in a thread, each of them made from the context."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=DOMAIN)
    nodes = [make(context) for make in makers]
    executor = SingleThreadedExecutor(context=context)
    for node in nodes:
        executor.add_node(node)
    running = threading.Event()
    running.set()

    def spin():
        while running.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin, daemon=True)
    thread.start()
    try:
        yield nodes
    finally:
        running.clear()
        thread.join(LONG)
        executor.shutdown(timeout_sec=0)
        for node in nodes:
            node.destroy_node()
        rclpy.shutdown(context=context)


@pytest.fixture(autouse=True)
def local_discovery(monkeypatch):
    monkeypatch.setenv('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')


def by_input(findings):
    return {finding.input: finding for finding in findings}


def test_a_robot_with_everything_is_found_in_order():
    with spinning(Robot):
        findings = examine(DoctorOptions(seconds=LONG), domain=DOMAIN)
    assert doctor_findings.exit_code(findings) == 0, doctor_findings.report_lines(findings)
    found = by_input(findings)
    assert list(found) == [
        'localizer', 'image', 'camera_info', 'transform odom -> base_link',
        f'transform base_link -> {FRAME}', 'initialpose', 'refined_pose']
    image = found['image']
    assert image.topic == '/image' and image.publishers == ('/robot (best_effort, volatile)',)
    assert image.quality.startswith('compatible') and image.age < LONG
    assert '64 x 48 rgb8' in image.text
    assert found['camera_info'].verdict == OK and found['camera_info'].stamp_ns == NOW
    assert found['transform odom -> base_link'].stamp_ns >= image.stamp_ns
    assert found['localizer'].verdict == NOTE and 'does not run' in found['localizer'].text


class Localizer(Node):
    """Listens as the localizer does, remapped and with a quality of its own."""

    def __init__(self, context):
        super().__init__('nerfmatch_localizer', context=context, namespace='robot1',
                         start_parameter_services=False)
        listen = self.create_subscription
        listen(Image, '/front/image', print, SENSOR_RELIABLE)
        listen(CameraInfo, '/front/camera_info', print, SENSOR)
        listen(PoseWithCovarianceStamped, 'initialpose', print, NEWEST)


def test_a_running_localizer_tells_the_topics_and_what_it_does_not_hear():
    with spinning(Localizer, lambda context: Robot(
            context, namespace='front', frames='/robot1', infos=False, static=False)):
        findings = examine(
            DoctorOptions(namespace='robot1', seconds=3.0, odom='odom'), domain=DOMAIN)
    found = by_input(findings)
    assert doctor_findings.exit_code(findings) == 1
    assert 'is active' in found['localizer'].text
    image = found['image']
    assert (image.topic, image.verdict) == ('/front/image', FAULT)
    assert 'no message passes' in image.text and '/front/robot' in image.quality
    assert image.stamp_ns is not None  # the doctor hears it all the same
    info = found['camera_info']
    assert (info.topic, info.verdict) == ('/front/camera_info', FAULT)
    assert 'nobody publishes it' in info.text
    link = found['transform odom -> base_link']
    assert (link.topic, link.verdict) == ('/robot1/tf', OK)
    link = found[f'transform base_link -> {FRAME}']
    assert link.verdict == FAULT
    assert f'--frame-id base_link --child-frame-id {FRAME}' in link.text
    assert found['initialpose'].topic == '/robot1/initialpose'


def test_a_localizer_that_becomes_known_late_is_listened_to_all_the_same(monkeypatch):
    monkeypatch.setattr(doctor_inputs, 'DISCOVERY_SECONDS', 0.0)
    with spinning(Localizer, lambda context: Robot(
            context, namespace='front', image_quality=SENSOR_RELIABLE, frames='/robot1')):
        findings = examine(DoctorOptions(namespace='robot1', seconds=LONG), domain=DOMAIN)
    assert doctor_findings.exit_code(findings) == 0, doctor_findings.report_lines(findings)
    assert by_input(findings)['image'].topic == '/front/image'
    assert by_input(findings)['transform odom -> base_link'].topic == '/robot1/tf'


def test_the_verb_prints_what_is_missing_and_fails(monkeypatch, capsys):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(DOMAIN))
    with spinning(lambda context: Robot(context, image='/camera/rgb', odometry=False)):
        status = main(['doctor', '--seconds', '2', '--json'])
    found = {finding['input']: finding
             for finding in json.loads(capsys.readouterr().out)['findings']}
    assert status == 1 and found['image']['verdict'] == 'fault'
    assert 'of that type are /camera/rgb' in found['image']['text']
    assert found['camera_info']['verdict'] == 'ok'
    assert 'map_to_base' in found['transform odom -> base_link']['text']


def test_no_transforms_are_needed_without_a_base(monkeypatch, capsys):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(DOMAIN))
    with spinning(lambda context: Robot(context, odometry=False, static=False)):
        status = main(['doctor', '--seconds', str(LONG), '--base', ''])
    out = capsys.readouterr().out
    assert status == 0 and 'transform' not in out
    assert 'OK    image: /image' in out


def test_an_impossible_name_is_an_error_in_one_line(monkeypatch, capsys):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(DOMAIN))
    assert main(['doctor', '--image', 'a b', '--seconds', '0.1']) == 2
    assert main(['doctor', '--namespace', 'a-b', '--seconds', '0.1']) == 2
    error = capsys.readouterr().err
    assert error.count('error: ') == 2 and 'Traceback' not in error
