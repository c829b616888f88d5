from dataclasses import fields, replace
import math

import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')

from builtin_interfaces.msg import Time  # noqa: E402
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus  # noqa: E402
from nerfmatch_ros.ros import diagnostics, snapshots  # noqa: E402
from nerfmatch_ros.ros.diagnostics import (  # noqa: E402
    camera_info_status,
    diagnostic_array,
    input_status,
    latency_status,
    localization_status,
    map_status,
    output_status,
    refiner_status,
    status_message,
    status_values,
    transform_status,
)
from nerfmatch_ros.ros.snapshots import (  # noqa: E402
    CameraInfoSnapshot,
    InputSnapshot,
    LatencySnapshot,
    LocalizationSnapshot,
    MapSnapshot,
    OutputSnapshot,
    RefinerSnapshot,
    TopicSnapshot,
    TransformSnapshot,
)
from nerfmatch_ros.ros.statistics import Summary  # noqa: E402
import numpy as np  # noqa: E402
from rclpy.serialization import deserialize_message, serialize_message  # noqa: E402

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
IMAGES = TopicSnapshot('/camera/image', 1)
LOCALIZED = LocalizationSnapshot('LOCALIZED', fix_age=0.1)
INPUT = InputSnapshot(topics=(IMAGES,), silence=0.1, received=9, rate=5.0, processed_rate=5.0)
CAMERA = CameraInfoSnapshot(topics=(TopicSnapshot('/camera/camera_info', 1),), frames=('camera',))
TRANSFORMS = TransformSnapshot(
    'map_to_odom', odom_frame='odom', base_frame='base_link', odometry=True)
REFINER = RefinerSnapshot(publishers=1, silence=1.0)
MAP = MapSnapshot('maps/kitchen', sha256='0123456789abcdef' * 4, device='cpu')
OUTPUT = OutputSnapshot({'/pose': 1, '/pose_with_covariance': 2})
HEALTHY = [LOCALIZED, INPUT, CAMERA, LatencySnapshot(), TRANSFORMS, OUTPUT, REFINER, MAP]


def test_a_healthy_node_says_ok_in_eight_tasks_of_its_name():
    message = diagnostic_array('nerfmatch_localizer', Time(sec=7), HEALTHY, MAP.hardware_id)
    assert [status.name for status in message.status] == [
        'nerfmatch_localizer: ' + task for task in (
            'localization', 'input', 'camera_info', 'latency', 'tf', 'output', 'refiner', 'map')]
    assert {status.level for status in message.status} == {OK}
    assert {status.hardware_id for status in message.status} == {'0123456789ab'}
    assert message.header.stamp.sec == 7
    assert deserialize_message(serialize_message(message), DiagnosticArray) == message


def test_every_snapshot_has_its_task():
    kinds = {kind for kind in vars(snapshots).values()
             if isinstance(kind, type) and kind.__name__.endswith('Snapshot')}
    assert kinds - {TopicSnapshot} == {type(snapshot) for snapshot in HEALTHY}


# localization


@pytest.mark.parametrize('changes, level, text', [
    ({}, OK, 'localized'),
    ({'state': 'COASTING', 'fix_age': 2.5, 'fix_distance': 0.75}, WARN,
     'coasting: last pose 2.5 s ago, 0.75 m since'),
    ({'state': 'COASTING', 'fix_age': 2.5}, WARN, 'last pose 2.5 s ago'),
    ({'state': 'COASTING', 'reason': '3 inliers'}, WARN, '3 inliers'),
    ({'state': 'COASTING', 'reason': 'it is dark', 'degraded': True}, WARN,
     'DEGRADED: it is dark'),
    ({'state': 'LOST', 'fix_age': 12.0}, ERROR, 'lost: last pose 12 s ago'),
    ({'state': 'UNLOCALIZED', 'fix_age': None}, ERROR, 'not localized yet'),
    ({'paused': True}, WARN, 'paused'),
    ({'failing': True}, ERROR, 'traceback'),
    ({'same_names': 2}, ERROR, '2 nodes have this name; give each its own namespace'),
    ({'active': False, 'state': 'UNLOCALIZED'}, OK, 'inactive'),
    ({'active': False, 'same_names': 2}, ERROR, 'namespace'),
])
def test_levels_of_localization(changes, level, text):
    status = localization_status(replace(LOCALIZED, **changes))
    assert status.level == level and text in status.message


def test_a_reason_from_before_is_no_warning_once_localized():
    assert localization_status(replace(LOCALIZED, reason='')).level == OK
    assert localization_status(replace(LOCALIZED, reason='dark')).level == OK


def test_the_worst_finding_decides_the_level_and_comes_first():
    status = localization_status(replace(LOCALIZED, state='LOST', paused=True))
    assert status.level == ERROR
    assert status.message.index('lost') < status.message.index('paused')


def test_localization_carries_the_numbers_of_the_estimate():
    status = localization_status(replace(
        LOCALIZED, inliers=40, matches=160, reprojection_error=1.25,
        position_std=np.array([0.01, 0.02, 0.03]), rotation_std=(0.1, 0.2, 0.3),
        last_jump=(1.5, 0.25), rejects_in_a_row=2, epoch=3, counts={'gated': 5}))
    values = status_values(status)
    assert values['inliers'] == '40' and values['inlier ratio'] == '0.25'
    assert values['reprojection error [px]'] == '1.25'
    assert [values[f'sigma {axis} [m]'] for axis in 'xyz'] == ['0.01', '0.02', '0.03']
    assert [values[f'sigma r{axis} [rad]'] for axis in 'xyz'] == ['0.1', '0.2', '0.3']
    assert (values['last jump [m]'], values['last jump [rad]']) == ('1.5', '0.25')
    assert values['poses gated'] == '5' and values['epoch'] == '3'


def test_localization_says_what_the_image_was_matched_with_and_how_often():
    status = localization_status(replace(
        LOCALIZED, reference='rendered: 31 % of the view is covered',
        references={'splatted': 90, 'rendered': 10}))
    values = status_values(status)
    assert values['reference'] == 'rendered: 31 % of the view is covered'
    assert (values['reference splatted'], values['reference rendered']) == ('90', '10')
    assert status.level == OK, 'rendering is slower, not worse'
    assert status_values(localization_status(LOCALIZED))['reference'] == '-'


def test_what_is_not_known_is_a_dash_and_not_zero():
    values = status_values(localization_status(replace(
        LOCALIZED, fix_age=None, reprojection_error=math.nan)))
    for key in ('inliers', 'inlier ratio', 'sigma x [m]', 'reprojection error [px]',
                'seconds since last pose', 'last jump [m]'):
        assert values[key] == '-', key


# input


def test_silence_names_the_topic_and_its_publishers():
    status = input_status(replace(INPUT, silence=6.0, topics=(TopicSnapshot('/x/image', 0),)))
    assert status.level == WARN
    assert "no image for 6 s on '/x/image' (0 publishers)" in status.message


def test_silence_with_an_incompatible_publisher_says_so():
    topic = TopicSnapshot('/x/image', 1, ("'/x/image': incompatible RELIABILITY: ...",))
    status = input_status(replace(INPUT, silence=6.0, topics=(topic,)))
    assert '1 publishers, some with an incompatible quality of service' in status.message
    assert 'RELIABILITY' in status.message


@pytest.mark.parametrize('changes, level, text', [
    ({'degraded': 'dark'}, WARN, 'DEGRADED: the pictures are dark'),
    ({'frozen': True}, WARN, 'camera frozen'),
    ({'clock_stopped': True}, ERROR, 'use_sim_time'),
    ({'processed_rate': 0.0, 'last_drop': 'stale: 3 s old'}, WARN, 'stale: 3 s old'),
    ({'silence': 4.9}, OK, '5.0 images/s, 5.0 used'),
])
def test_levels_of_input(changes, level, text):
    status = input_status(replace(INPUT, **changes))
    assert status.level == level and text in status.message


def test_input_carries_drops_by_reason_ages_and_format():
    values = status_values(input_status(replace(
        INPUT, drops={'stale': 3, 'bad_step': 1}, age=Summary(0.01, 0.02, 0.5),
        encoding='rgb8', size=(640, 480), transport='compressed')))
    assert values['dropped stale'] == '3' and values['dropped bad_step'] == '1'
    assert (values['age p50 [s]'], values['age p95 [s]']) == ('0.01', '0.02')
    assert values['size'] == '640 x 480' and values['encoding'] == 'rgb8'
    assert values['transport'] == 'compressed' and values['stamps monotonic'] == 'yes'
    values = status_values(input_status(replace(INPUT, drops={'out_of_order': 1})))
    assert values['stamps monotonic'] == 'no'


def test_an_absurd_text_of_a_message_does_not_flood_the_diagnostics():
    values = status_values(input_status(replace(INPUT, encoding='x' * 10**6)))
    assert len(values['encoding']) == diagnostics.LONGEST


# camera_info


@pytest.mark.parametrize('changes, level, text', [
    ({'waiting': 6.0, 'lacking': ('left',), 'frames': ()}, WARN,
     "no camera_info of frame 'left' for 6 s on '/camera/camera_info' (1 publishers)"),
    ({'waiting': 4.0, 'frames': ()}, OK, 'none yet'),
    ({'complaint': 'camera uncalibrated'}, ERROR, 'camera uncalibrated'),
    ({'size_matches': False}, ERROR, 'differ in size'),
    ({'size_matches': True}, OK, 'present'),
    ({'topics': (TopicSnapshot('/i', 1, ("'/i': incompatible",)),)}, WARN, 'incompatible'),
])
def test_levels_of_camera_info(changes, level, text):
    status = camera_info_status(replace(CAMERA, **changes))
    assert status.level == level and text in status.message


def test_a_camera_with_a_complaint_is_not_valid():
    assert status_values(camera_info_status(CAMERA))['valid'] == 'yes'
    for changes in ({'complaint': 'uncalibrated'}, {'frames': ()}):
        assert status_values(camera_info_status(replace(CAMERA, **changes)))['valid'] == 'no'


# latency


def test_latency_shows_every_stage_and_warns_of_an_image_that_does_not_end():
    stages = {'match': Summary(0.1, 0.2, 0.3), 'total': Summary(0.5, 0.6, 0.7)}
    status = latency_status(LatencySnapshot(stages, busy=0.25))
    values = status_values(status)
    assert status.level == OK and '0.500 s' in status.message
    assert [values[f'match {part} [s]'] for part in ('p50', 'p95', 'max')] == ['0.1', '0.2', '0.3']
    assert values['total max [s]'] == '0.7' and values['share of time busy'] == '0.25'
    status = latency_status(LatencySnapshot(stages, busy_for=31.0))
    assert status.level == WARN and 'one image has taken 31 s' in status.message


# tf


@pytest.mark.parametrize('changes, level, text', [
    ({'odometry': False}, ERROR, 'no transform odom to base_link'),
    ({'odometry': False}, ERROR, 'use tf_mode map_to_base or map_to_camera'),
    ({'odometry': False, 'mode': 'none'}, OK, ''),
    ({'odometry': None}, OK, ''),
    ({'extrinsic_fault': 'ros2 run tf2_ros static_transform_publisher ...'}, ERROR,
     'static_transform_publisher'),
    ({'foreign': ('map -> odom',)}, ERROR, 'tf_mode none'),
])
def test_levels_of_tf(changes, level, text):
    status = transform_status(replace(TRANSFORMS, **changes))
    assert status.level == level and text in status.message


def test_tf_carries_failures_by_kind_and_waits():
    values = status_values(transform_status(replace(
        TRANSFORMS, failures={'future': 2}, wait=Summary(0.0, 0.05, 0.1), rate=20.0, jumps=1)))
    assert values['failed future'] == '2' and values['wait p95 [s]'] == '0.05'
    assert values['rate [Hz]'] == '20' and values['jumps'] == '1'


# output


def test_output_counts_subscribers_and_warns_of_those_that_are_not_served():
    assert status_values(output_status(OUTPUT)) == {
        'subscribers /pose': '1', 'subscribers /pose_with_covariance': '2'}
    status = output_status(replace(OUTPUT, mismatches=("'/pose': incompatible DEADLINE",)))
    assert status.level == WARN and 'DEADLINE' in status.message


# refiner


@pytest.mark.parametrize('changes, level, text', [
    ({}, OK, 'alive'),
    ({'publishers': 0}, WARN, 'no refiner runs'),
    ({'silence': 45.0}, WARN, 'no refined pose for 45 s'),
    ({'silence': None}, WARN, 'no refined pose yet'),
])
def test_the_refiner_is_never_worse_than_a_warning(changes, level, text):
    status = refiner_status(replace(REFINER, **changes))
    assert status.level == level and text in status.message


def test_refiner_carries_verdicts_latency_and_improvement():
    values = status_values(refiner_status(replace(
        REFINER, counts={'accepted': 4, 'refined_worse': 1}, latency=Summary(0.8, 1.0, 1.5),
        improvement=0.013)))
    assert values['refined accepted'] == '4' and values['refined refined_worse'] == '1'
    assert values['latency p50 [s]'] == '0.8' and values['mean improvement [m]'] == '0.013'


# map


def test_map_shows_memory_and_warns_when_it_ran_out():
    status = map_status(replace(MAP, memory=3 * 2**20, memory_limit=2**30))
    assert status.level == OK and status.message == 'maps/kitchen on cpu'
    values = status_values(status)
    assert values['memory [MB]'] == '3' and values['memory limit [MB]'] == '1024'
    assert values['sha256'] == MAP.sha256
    status = map_status(replace(MAP, out_of_memory=2))
    assert status.level == WARN and 'out of memory in 2 images' in status.message
    assert map_status(MapSnapshot('', loaded=False)).message == 'no map loaded'


# ~/status


def test_the_status_of_an_image_names_stamp_verdict_state_and_map():
    message = status_message(
        'nerfmatch_localizer', replace(LOCALIZED, state='COASTING', reason='3 inliers'),
        stamp_ns=1_700_000_000_123_456_789, verdict='no_fix', seconds={'localize': 0.125},
        map_sha256=MAP.sha256)
    assert message.name == 'nerfmatch_localizer: status' and message.level == WARN
    values = status_values(message)
    assert values['stamp'] == '1700000000123456789' and values['verdict'] == 'no_fix'
    assert values['state'] == 'COASTING' and values['reason'] == '3 inliers'
    assert values['map_sha256'] == MAP.sha256 and values['seconds localize'] == '0.125'
    assert deserialize_message(serialize_message(message), DiagnosticStatus) == message


def test_no_snapshot_needs_more_than_its_first_facts():
    """A node has most numbers later than its first diagnostics."""
    for snapshot in HEALTHY:
        needed = {item.name: getattr(snapshot, item.name) for item in fields(snapshot)
                  if item.name in ('state', 'topics', 'silence', 'mode', 'publishers', 'path')}
        diagnostic_array('node', Time(), [type(snapshot)(**needed)])
