"""Faults of GPU, map, parameters, first pose and saved pose: what the node refuses, and why."""

import errno
import json
import os
import pickle
import shutil
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from damaged_maps import DAMAGES, DEMO_MAP, signed  # noqa: E402
from fake_backend import Behaviour  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from nav_msgs.srv import LoadMap  # noqa: E402
from nerfmatch_ros.errors import ConfigError  # noqa: E402
from nerfmatch_ros.localization.body_pose import PRIOR_POSITION  # noqa: E402
from nerfmatch_ros.localization.saved_pose import load_pose, save_pose, SavedPose  # noqa: E402
from nerfmatch_ros.ros import backend, localizer_node  # noqa: E402
from nerfmatch_ros.ros.conversions import (  # noqa: E402
    pose_with_covariance,
    SECOND,
    stamp_message,
    stamp_ns,
)
from nerfmatch_ros.scene_map import FILES  # noqa: E402
from node_world import (  # noqa: E402
    BASE_FROM_CAMERA,
    DOMAIN,
    error_of,
    map_from_base_at,
    World,
)
from rclpy.parameter import Parameter  # noqa: E402
import torch  # noqa: E402

CONFIGURE, ACTIVATE = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE
DEACTIVATE, CLEANUP = Transition.TRANSITION_DEACTIVATE, Transition.TRANSITION_CLEANUP
OWN = 'nerfmatch_localizer/'
WARN = 30  # of rcl_interfaces/Log, whose constants are bytes in some distributions


def apart(number):
    """Give what keeps a world that lives beside others from them; loggers go by namespaces."""
    return {'domain': 1 + (DOMAIN + number) % 100, 'namespace': f'apart_{number}'}


def truth(world, stamp):
    return map_from_base_at(stamp * 1e-9 - world.started) @ BASE_FROM_CAMERA


# Rows 20 and 21: the GPU

def test_row_20_out_of_memory_costs_one_frame_and_makes_the_next_ones_smaller():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize(frames=3)
        for _ in range(2):
            lost, = world.drive(1, behaviour=Behaviour.OUT_OF_MEMORY)
            stamps = world.localize(frames=1)
            assert lost not in world.poses and stamps[0] in world.poses
        assert world.node.drops.counts()['out_of_memory'] == 2
        assert world.backend.saved_memory == 1, 'halved once'
        world.wait_for(lambda: (found := world.diagnosis('map')) and any(
            (item.key, item.value) == ('out of memory', '2') for item in found.values), 'it')
        assert world.state == 'active' and not world.node.fatal


def test_row_20_three_in_a_row_deactivate_and_no_crash_follows():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize(frames=3)
        world.drive(3, behaviour=Behaviour.OUT_OF_MEMORY)
        world.wait_for(lambda: world.state == 'inactive', 'the node to give up')
        world.wait_for(lambda: world.logged('out of memory in 3 frames in a row'), 'the reason')
        assert not world.node.fatal, 'the process goes on'
        assert world.change(ACTIVATE)
        world.connect(static=False)
        world.localize()


def test_row_21_a_gpu_that_is_not_there_is_a_failure_with_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with World(autostart=False, device='cuda:0') as world:
        assert not world.change(CONFIGURE)
        assert world.state == 'unconfigured'
        assert "device 'cuda:0'" in world.node.failure and 'no CUDA device' in world.node.failure
        world.wait_for(lambda: world.logged("cannot configure: device 'cuda:0'"), 'the reason')
        assert not world.logged('Traceback')


def test_row_21_a_fallback_to_the_cpu_is_asked_for_and_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with World(device='auto') as world:
        world.wait_for(lambda: world.state == 'active', 'an active node')
        world.wait_for(lambda: world.logged('no GPU is found, computing on the CPU'), 'a warning')


def test_row_21_a_gpu_that_was_lost_while_inactive_keeps_the_node_so(monkeypatch):
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="'cuda:0' does not answer"):
            backend.require_device('cuda:0')
    backend.require_device('cpu')
    with World(autostart=False) as world:
        assert world.change(CONFIGURE)
        asked = []

        def fail(device):
            asked.append(device)
            raise ConfigError('the device does not answer')
        with monkeypatch.context() as patch:
            patch.setattr(localizer_node, 'require_device', fail)
            assert not world.change(ACTIVATE)
        assert asked == ['cpu'] and world.state == 'inactive'
        assert world.node.failure == 'the device does not answer'
        assert world.change(ACTIVATE)


def test_row_21_a_gpu_that_is_lost_at_work_ends_the_process():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        stamp, = world.drive(1, behaviour=Behaviour.GPU_LOST)
        world.wait_for(lambda: world.node.fatal, 'the node to give up')
        assert 'unspecified launch failure' in world.node.fatal
        assert stamp not in world.raw


@pytest.mark.parametrize('error, ends', [
    (torch.OutOfMemoryError('injected'), False),
    (RuntimeError('CUDA error: unspecified launch failure'), True)])
def test_row_20_and_21_a_gpu_that_fails_the_refiner_leaves_the_poses_alone(error, ends):
    with World(tf_mode='map_to_camera', refiner=True) as world:
        def fail(*_):
            raise error
        world.refiner_backend.refine = fail
        world.connect(static=False)
        world.wait_for(lambda: world.client.count_subscribers('pose_with_covariance') == 2,
                       'the refiner')
        if ends:
            world.wait_for(lambda: world.drive(1) and world.refiner.fatal, 'the refiner to end')
            assert 'unspecified launch failure' in world.refiner.fatal
        else:
            world.wait_for(lambda: world.drive(1) and world.refiner._state_machine.current_state[
                1] == 'inactive', 'the refiner to give up')
            assert not world.refiner.fatal
        assert world.localize(frames=1)[0] in world.poses
        assert world.state == 'active'


# Rows 22 and 23: the map, read by the localizer itself

@pytest.fixture(scope='module')
def real_world():
    """The node with the real localizer, on the map that the demo uses."""
    patch = pytest.MonkeyPatch()
    services = SimpleNamespace(LoadMap=LoadMap)
    patch.setitem(sys.modules, 'nav2_msgs', SimpleNamespace(srv=services))
    patch.setitem(sys.modules, 'nav2_msgs.srv', services)
    with World(autostart=False, load=backend.load_localizer, map_path=str(DEMO_MAP),
               device='cpu', threads=1, warmup=False, **apart(1)) as world:
        assert world.change(CONFIGURE) and world.change(ACTIVATE)
        yield world
    patch.undo()


@pytest.mark.parametrize('name', DAMAGES)
def test_row_22_a_bad_map_is_refused_with_its_code_and_the_old_one_stays(
        real_world, tmp_path, name):
    damage, part, reason = DAMAGES[name]
    folder = shutil.copytree(DEMO_MAP, tmp_path / 'map')
    damage(folder)
    before = real_world.node.pipeline.backend
    code = real_world.call(LoadMap, OWN + 'load_map', map_url=str(folder)).result
    assert code == {'folder': 1, 'data': 2, 'description': 3}[part]
    real_world.wait_for(lambda: any(
        str(folder) in log.msg and reason in log.msg for log in real_world.logs), 'the reason')
    assert real_world.node.pipeline.backend is before
    assert real_world.state == 'active'


@pytest.mark.parametrize('name', ['missing folder', 'truncated file', 'NaN weights'])
def test_row_22_a_bad_map_fails_the_configuration_and_a_good_one_then_works(tmp_path, name):
    damage, _, reason = DAMAGES[name]
    folder = shutil.copytree(DEMO_MAP, tmp_path / 'map')
    damage(folder)
    with World(autostart=False, load=backend.load_localizer, map_path=str(folder),
               device='cpu', threads=1, warmup=False) as world:
        assert not world.change(CONFIGURE)
        assert world.state == 'unconfigured' and reason in world.node.failure
        world.node.set_parameters([Parameter('map_path', value=str(DEMO_MAP))])
        assert world.change(CONFIGURE) and world.change(ACTIVATE)


def test_row_22_a_map_of_another_sha256_is_refused(real_world):
    wanted = 'ab' * 32
    real_world.node.set_parameters([Parameter('map_sha256', value=wanted)])
    try:
        code = real_world.call(LoadMap, OWN + 'load_map', map_url=str(DEMO_MAP)).result
    finally:
        real_world.node.set_parameters([Parameter('map_sha256', value='')])
    assert code == LoadMap.Response.RESULT_INVALID_MAP_DATA
    found = real_world.node.pipeline.backend.map_sha256
    real_world.wait_for(lambda: any(
        wanted in log.msg and found in log.msg for log in real_world.logs), 'both numbers')


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def pickled(payload):
    return pickle.dumps(payload)


def saved_by_torch(payload):
    from io import BytesIO
    stream = BytesIO()
    torch.save({'weight': payload}, stream)
    return stream.getvalue()


def saved_by_numpy(payload):
    from io import BytesIO
    stream = BytesIO()
    np.savez(stream, weight=np.array([payload], object))
    return stream.getvalue()


@pytest.mark.parametrize('packed', [pickled, saved_by_torch, saved_by_numpy])
@pytest.mark.parametrize('name', [*FILES, 'map.yaml'])
def test_row_23_a_pickle_in_a_map_is_never_executed(real_world, tmp_path, name, packed):
    """Also not under a checksum that is right."""
    folder, made = shutil.copytree(DEMO_MAP, tmp_path / 'map'), tmp_path / 'made'
    (folder / name).write_bytes(packed(Payload(made)))
    if name != 'map.yaml':
        signed(folder)
    code = real_world.call(LoadMap, OWN + 'load_map', map_url=str(folder)).result
    assert code in (2, 3)
    assert not made.exists()
    pickle.loads(pickled(Payload(made)))
    assert made.exists(), 'the payload would have worked'


@pytest.mark.parametrize('tag', ['os.mkdir', 'os.system'])
def test_row_23_a_tag_in_the_description_calls_nothing(real_world, tmp_path, tag):
    folder, made = shutil.copytree(DEMO_MAP, tmp_path / 'map'), tmp_path / 'made'
    command = str(made) if tag == 'os.mkdir' else f'mkdir {made}'
    text = (folder / 'map.yaml').read_text(encoding='utf-8')
    (folder / 'map.yaml').write_text(
        text + f"\nextra: !!python/object/apply:{tag} ['{command}']\n", encoding='utf-8')
    assert real_world.call(LoadMap, OWN + 'load_map', map_url=str(folder)).result == 3
    assert not made.exists()


# Row 30: parameters

@pytest.mark.parametrize('name, wrong, right', [
    ('min_inliers', 20_000, 30), ('transform_tolerance', float('nan'), 0.2),
    ('gate_chi2', 'much', 22.46), ('wait_for_transform', -1.0, 0.1),
    ('mode', 'sometimes', 'auto'), ('map_path', 7, '/maps/fake')])
def test_row_30_configure_fails_with_the_name_of_the_parameter(name, wrong, right):
    with World(autostart=False, **{name: wrong}) as world:
        assert not world.change(CONFIGURE)
        assert name in world.node.failure
        world.wait_for(lambda: any('cannot configure' in log.msg and name in log.msg
                                   for log in world.logs), 'the reason')
        assert not world.logged('Traceback')
        assert world.node.set_parameters([Parameter(name, value=right)])[0].successful
        assert world.change(CONFIGURE)


def test_row_30_a_contradiction_fails_the_start_with_both_names():
    with World(global_frame_id='world', odom_frame_id='world') as world:
        world.wait_for(lambda: world.node.fatal, 'the node to give up')
        assert 'global_frame_id' in world.node.fatal and 'odom_frame_id' in world.node.fatal


def set_now(world, **values):
    results = world.node.set_parameters([
        Parameter(name, value=value) for name, value in values.items()])
    assert all(result.successful for result in results), results


def test_row_30_changes_at_run_time_take_effect_with_the_next_frame():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        first = world.localize(frames=3)[-1]
        set_now(world, covariance_scale=100.0, covariance_diagonal_only=True)
        second = world.localize(frames=1)[-1]
        before, after = (np.array(world.raw[stamp].pose.covariance).reshape(6, 6)
                         for stamp in (first, second))
        assert np.allclose(np.diag(after), 100 * np.diag(before))
        assert not (after - np.diag(np.diag(after))).any()
        set_now(world, tf_broadcast=False)
        sent = len(world.transforms)
        third = world.localize(frames=1)[-1]
        assert third in world.poses
        set_now(world, tf_broadcast=True)
        fourth = world.localize(frames=1)[-1]
        world.wait_for(lambda: len(world.transforms) > sent, 'a transform')
        stamps = [stamp_ns(transform.header) for transform in world.transforms]
        assert fourth in stamps and third not in stamps
        set_now(world, lost_after_failures=1)
        world.drive(1, behaviour=Behaviour.NO_POSE)
        assert world.tracker.state.name == 'LOST'
        set_now(world, init_consistent_fixes=1)
        assert world.localize(frames=1)[0] in world.poses, 'one is enough now'
        set_now(world, max_image_age=1.0)
        world.drive(1, stamp=world.now_ns() - 2 * SECOND)
        assert world.node.drops.counts()['stale'] >= 1 or world.node.drops.counts()['out_of_order']


def test_row_30_the_tolerance_of_the_broadcast_changes_at_run_time():
    with World(tf_mode='map_to_odom') as world:
        world.connect()
        world.localize(odometry=True)

        def ahead():
            transform = world.transforms[-1] if world.transforms else None
            return transform and (stamp_ns(transform.header) - time.time_ns()) / SECOND
        world.wait_for(lambda: (ahead() or -1) > -1, 'the broadcast')
        assert ahead() < 0.2
        set_now(world, transform_tolerance=2.0)
        world.wait_for(lambda: ahead() > 1.0, 'the new tolerance')


def test_row_30_a_refused_change_leaves_the_node_as_it_was():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize()
        before = world.node.parameters.values
        result = world.node.set_parameters_atomically([
            Parameter('covariance_scale', value=5.0), Parameter('gate_chi2', value=-1.0)])
        assert not result.successful and 'gate_chi2' in result.reason
        assert world.node.parameters.values == before
        assert world.node.pipeline.options.covariance_scale == 1.0


# Row 31: initialpose

PLACE = map_from_base_at(0.0) @ BASE_FROM_CAMERA


def initial_pose(change=None, *, place=PLACE, covariance=None, frame='map', stamp=0):
    message = pose_with_covariance(
        place, np.zeros((6, 6)) if covariance is None else covariance, stamp_message(stamp), frame)
    if change is not None:
        change(message)
    return message


def prediction(world):
    with world.node.lock:
        return world.tracker.predict(time.time_ns(), None)


def with_position(x):
    return lambda message: setattr(message.pose.pose.position, 'x', x)


def with_quaternion(*numbers):
    def change(message):
        for axis, number in zip('xyzw', numbers):
            setattr(message.pose.pose.orientation, axis, number)
    return change


def with_covariance(row, value):
    def change(message):
        message.pose.covariance[7 * row] = value
    return change


def with_frame(frame):
    return lambda message: setattr(message.header, 'frame_id', frame)


def an_hour_ahead(message):
    message.header.stamp = stamp_message(time.time_ns() + 3600 * SECOND)


def correlated_beyond_one(message):
    covariance = np.diag(np.full(6, 0.01))
    covariance[0, 1] = covariance[1, 0] = 0.05
    message.pose.covariance = covariance.ravel()


REFUSED = {
    'NaN': (with_position(float('nan')), 'not finite'),
    'infinite': (with_position(float('inf')), 'not finite'),
    'NaN quaternion': (with_quaternion(0, 0, float('nan'), 1), 'not finite'),
    'zero quaternion': (with_quaternion(0.0, 0.0, 0.0, 0.0), 'quaternion'),
    'long quaternion': (with_quaternion(0.0, 0.0, 0.0, 2.0), 'quaternion'),
    'unknown frame': (with_frame('odom'), "frame_id is 'odom'"),
    'no frame': (with_frame(''), "frame_id is ''"),
    'negative variance': (with_covariance(0, -1.0), 'negative variances'),
    'NaN variance': (with_covariance(3, float('nan')), 'not finite'),
    'no covariance': (correlated_beyond_one, 'covariance'),
    'outside the map': (with_position(1000.0), 'from the nearest view of the map'),
    'beyond all numbers': (with_position(1e308), 'from the nearest view of the map'),
    'in the future': (an_hour_ahead, 's in the future'),
}


@pytest.fixture(scope='module')
def localized_world():
    with World(tf_mode='map_to_camera', **apart(2)) as world:
        world.connect(static=False)
        world.wait_for(lambda: world.client.count_subscribers('initialpose'), 'a listener')
        world.localize(frames=3)
        yield world


@pytest.mark.parametrize('name', REFUSED)
def test_row_31_an_initialpose_that_means_nothing_is_refused_with_a_warning(
        localized_world, name):
    world, (change, reason) = localized_world, REFUSED[name]
    epoch, said = world.tracker.epoch, len(world.logs)
    world.initial_poses.publish(initial_pose(change))
    line = world.wait_for(lambda: next(
        (log for log in world.logs[said:] if 'initialpose is refused' in log.msg), None), name)
    assert reason in line.msg and line.level == WARN
    assert world.tracker.epoch == epoch and world.tracker.state.name == 'LOCALIZED'
    assert world.localize(frames=1)[0] in world.poses


def test_row_31_an_initialpose_is_looked_from_and_one_fix_confirms_it():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.wait_for(lambda: world.client.count_subscribers('initialpose'), 'a listener')
        epoch = world.tracker.epoch
        world.initial_poses.publish(initial_pose(frame='/map'))
        pose, covariance = world.wait_for(lambda: prediction(world), 'the pose to be taken')
        assert world.tracker.epoch == epoch + 1
        assert not world.poses, 'nothing but an image gives a pose'
        assert np.allclose(pose, PLACE)
        assert covariance[0, 0] >= PRIOR_POSITION ** 2, 'zeros stand for unknown'
        stamp, = world.drive(1, at=0.0)
        assert np.allclose(world.backend.asked[-1][1], PLACE)
        world.wait_for(lambda: stamp in world.poses, 'a pose after one image')


def test_row_31_an_initialpose_is_never_blindly_trusted():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.wait_for(lambda: world.client.count_subscribers('initialpose'), 'a listener')
        wrong = PLACE.copy()
        wrong[:3, 3] += 3.0
        world.initial_poses.publish(initial_pose(
            place=wrong, covariance=np.diag(np.full(6, 1e-4))))
        world.wait_for(lambda: prediction(world), 'the pose to be taken')
        first, second = world.drive(2)
        world.wait_for(lambda: second in world.poses, 'a pose')
        assert first not in world.poses, 'a fix elsewhere needs a second one'
        assert error_of(world.poses[second], truth(world, second)) < 0.1


def test_row_31_an_initialpose_before_activation_is_kept():
    with World(autostart=False, tf_mode='map_to_camera') as world:
        world.wait_for(lambda: world.client.count_subscribers('initialpose'), 'a listener')
        world.initial_poses.publish(initial_pose())
        world.wait_for(lambda: world.node._pending_initial_pose is not None, 'the pose')
        assert world.change(CONFIGURE) and world.change(ACTIVATE)
        world.connect(static=False)
        world.drive(1, at=0.0)
        assert np.allclose(world.backend.asked[0][1], PLACE)
        assert world.change(DEACTIVATE) and world.change(ACTIVATE)
        world.connect(static=False)
        world.drive(1)
        assert world.backend.asked[-1][1] is None, 'it was meant for one activation'


def test_row_31_a_bad_initialpose_before_activation_is_refused_then():
    with World(autostart=False, tf_mode='map_to_camera') as world:
        world.wait_for(lambda: world.client.count_subscribers('initialpose'), 'a listener')
        world.initial_poses.publish(initial_pose(with_position(float('nan'))))
        world.wait_for(lambda: world.node._pending_initial_pose is not None, 'the pose')
        assert world.change(CONFIGURE) and world.change(ACTIVATE)
        world.wait_for(lambda: world.logged('initialpose is refused'), 'a warning')
        assert world.state == 'active'


def test_row_31_the_parameters_may_say_where_to_look_first():
    with World(tf_mode='map_to_base', set_initial_pose=True, initial_pose__x=0.5,
               initial_pose__yaw=0.3) as world:
        world.connect()
        pose, _ = prediction(world)
        c, s = np.cos(0.3), np.sin(0.3)
        assert np.allclose(pose, [[c, -s, 0, 0.5], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with World(tf_mode='map_to_base', set_initial_pose=True, initial_pose__x=1e6) as world:
        world.connect()
        assert prediction(world) is None
        assert world.logged('initial_pose is not used')


# Row 34: the saved pose

def saved_pose(**changes):
    return SavedPose(**{
        'map_sha256': 'fa' * 32, 'frame_id': 'map', 'body_frame_id': 'camera',
        'unix_time': time.time() - 1.0, 'map_from_base': PLACE,
        'covariance': np.diag(np.full(6, 0.01)), **changes})


def truncated(path):
    save_pose(path, saved_pose())
    path.write_bytes(path.read_bytes()[:100])


BAD_FILES = {
    'truncated': (truncated, 'truncated or damaged'),
    'missing': (lambda path: None, 'cannot be read'),
    'empty': (lambda path: path.touch(), 'truncated or damaged'),
    'other map': (lambda path: save_pose(path, saved_pose(map_sha256='0' * 64)), 'lies in map'),
    'old': (lambda path: save_pose(path, saved_pose(unix_time=time.time() - 3600)), 's old'),
    'from the future': (lambda path: save_pose(
        path, saved_pose(unix_time=time.time() + 3600)), 'in the future'),
    'other body': (lambda path: save_pose(
        path, saved_pose(body_frame_id='base_link')), "'base_link'"),
    'other frame': (lambda path: save_pose(path, saved_pose(frame_id='world')), "in 'world'"),
    'no pose': (lambda path: path.write_text(json.dumps([1, 2])), 'does not say format'),
    'folder': (lambda path: path.mkdir(), 'cannot be read'),
}


@pytest.mark.parametrize('name', BAD_FILES)
def test_row_34_a_saved_pose_that_means_nothing_is_ignored_with_a_warning(tmp_path, name):
    path, (write, reason) = tmp_path / 'pose.json', BAD_FILES[name]
    write(path)
    with World(tf_mode='map_to_camera', save_pose_path=str(path),
               initialize_at_saved_pose=True) as world:
        world.connect(static=False)
        world.wait_for(lambda: world.logged(reason), 'a warning')
        world.localize()
        assert world.backend.asked[0][1] is None


def test_row_34_a_good_saved_pose_is_looked_from_and_an_image_confirms_it(tmp_path):
    path = tmp_path / 'pose.json'
    save_pose(path, saved_pose())
    with World(tf_mode='map_to_camera', save_pose_path=str(path),
               initialize_at_saved_pose=True) as world:
        world.connect(static=False)
        assert not world.poses and not world.transforms
        stamp, = world.drive(1, at=0.0)
        assert np.allclose(world.backend.asked[0][1], PLACE)
        world.wait_for(lambda: stamp in world.poses, 'a pose after one image')


def disk_full(monkeypatch, path):
    def fail(_):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', fail)
    return path


def folder_is_a_file(_, path):
    path.write_text('')
    return path / 'pose.json'


def folder_cannot_be_written(_, path):
    return type(path)('/proc/nerfmatch/pose.json')


@pytest.mark.parametrize('spoil', [disk_full, folder_is_a_file, folder_cannot_be_written])
def test_row_34_a_pose_that_cannot_be_saved_stops_nothing(tmp_path, monkeypatch, spoil):
    path = spoil(monkeypatch, tmp_path / 'pose.json')
    with World(tf_mode='map_to_camera', save_pose_path=str(path), save_pose_rate=10.0) as world:
        world.connect(static=False)
        world.localize()
        world.wait_for(lambda: world.logged('the pose cannot be saved'), 'a warning')
        assert world.localize(frames=1)[0] in world.poses
        assert not path.exists()
        assert world.change(DEACTIVATE) and world.change(CLEANUP)
    assert not [name for name in os.listdir(tmp_path) if name != 'pose.json'], 'a leftover'


def test_row_34_the_pose_is_saved_regularly_and_at_the_end_as_of_its_own_time(tmp_path):
    path = tmp_path / 'pose.json'
    with World(tf_mode='map_to_camera', save_pose_path=str(path), save_pose_rate=10.0) as world:
        world.connect(static=False)
        world.localize()
        world.wait_for(path.exists, 'the pose to be saved')
        last = world.localize(frames=1)[0]
        localized = time.time()
        path.unlink()
        world.drive(2, behaviour=Behaviour.NO_POSE)
        assert world.change(DEACTIVATE)
        assert path.exists()
        saved = load_pose(path, map_sha256='fa' * 32, max_age=60.0, now=time.time())
        assert last * 1e-9 <= saved.unix_time <= localized
        position = world.poses[last].pose.position
        assert np.allclose(saved.map_from_base[:3, 3], (position.x, position.y, position.z))


# Row 39: two nodes of one name

def test_row_39_two_nodes_of_one_name_are_noticed():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize()
        assert world.statuses[-1].level == world.statuses[-1].OK
        other = world.make_localizer(autostart=False)
        try:
            world.wait_for(
                lambda: (found := world.diagnosis('localization')) and '2 nodes have this name'
                in found.message and found.level == found.ERROR, 'the diagnosis')
            assert 'namespace' in world.diagnosis('localization').message
            world.wait_for(lambda: world.logged('2 nodes are named /nerfmatch_localizer'),
                           'the log')
        finally:
            other.close()
        world.wait_for(lambda: '2 nodes' not in world.diagnosis('localization').message, 'peace')


def test_row_39_the_same_name_in_another_namespace_is_no_fault():
    with World(tf_mode='map_to_camera', namespace='robot_1') as world:
        world.wait_for(lambda: world.state == 'active', 'an active node')
        other = localizer_node.LocalizerNode(
            world.load, context=world.context, namespace='robot_2')
        try:
            world.wait_for(lambda: world.client.count_publishers('/robot_2/initialpose') == 0
                           and ('nerfmatch_localizer', '/robot_2')
                           in world.client.get_node_names_and_namespaces(), 'the other node')
            known = len(world.diagnostics)
            world.wait_for(lambda: len(world.diagnostics) > known + 1, 'a diagnosis')
            assert 'have this name' not in world.diagnosis('localization').message
        finally:
            other.close()
