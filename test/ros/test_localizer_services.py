"""The services of the localizer, called over DDS while it works."""

from pathlib import Path
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from fake_backend import Behaviour, FakeBackend, loader  # noqa: E402
from lifecycle_msgs.msg import Transition  # noqa: E402
from nav_msgs.srv import LoadMap, SetMap  # noqa: E402
from nerfmatch_ros.errors import MapError  # noqa: E402
from nerfmatch_ros.localization.saved_pose import load_pose  # noqa: E402
from nerfmatch_ros.ros.conversions import pose_with_covariance, stamp_message  # noqa: E402
from node_world import BASE_FROM_CAMERA, map_from_base_at, World  # noqa: E402
from rclpy.parameter import Parameter  # noqa: E402
from std_srvs.srv import Empty, SetBool, Trigger  # noqa: E402

OWN = 'nerfmatch_localizer/'


@pytest.fixture
def nav2(monkeypatch):
    """Stand-ins of the same fields for the services of nav2_msgs, which is not on PyPI."""
    monkeypatch.setattr(SetMap.Request, 'pose', property(lambda self: self.initial_pose),
                        raising=False)
    services = SimpleNamespace(LoadMap=LoadMap, SetInitialPose=SetMap)
    monkeypatch.setitem(sys.modules, 'nav2_msgs', SimpleNamespace(srv=services))
    monkeypatch.setitem(sys.modules, 'nav2_msgs.srv', services)


@pytest.fixture
def world():
    with World(tf_mode='map_to_camera', relocalize_timeout=300.0) as world:
        world.connect(static=False)
        yield world


def looked_from(world):
    """Give the places that images were looked from, None for the whole map."""
    return [prior for _, prior in world.backend.asked]


def test_reinitialize_global_localization_searches_the_whole_map(world):
    world.localize(frames=3)
    epoch = world.tracker.epoch
    assert looked_from(world)[-1] is not None
    world.call(Empty, 'reinitialize_global_localization')
    assert world.tracker.epoch == epoch + 1
    world.wait_for(lambda: world.tracker.state.name == 'UNLOCALIZED', 'a new start')
    world.localize()
    assert looked_from(world)[-2:] == [None, None]


def test_reset_begins_a_new_epoch(world):
    world.localize()
    epoch = world.tracker.epoch
    answer = world.call(Trigger, OWN + 'reset')
    assert answer.success and answer.message == f'epoch {epoch + 1}'
    assert world.tracker.state.name == 'UNLOCALIZED'


def relocalize(world, behaviour, **options):
    """Call ~/relocalize and send a frame once the call has come to wait."""
    epoch = world.tracker.epoch
    answer = world.call_async(Trigger, OWN + 'relocalize')
    world.wait_for(lambda: world.tracker.epoch > epoch, 'the pose to be forgotten')
    world.drive(1, behaviour=behaviour, **options)
    return answer()


def test_relocalize_answers_with_what_the_next_image_gives(world):
    world.localize()
    found = relocalize(world, Behaviour.GOOD)
    assert found.success
    assert '100 inliers of 150 matches' in found.message
    assert '0.80 px' in found.message and 'standard deviation' in found.message
    lost = relocalize(world, Behaviour.NO_POSE)
    assert not lost.success and 'too few matches' in lost.message
    again = relocalize(world, Behaviour.GOOD)
    assert again.success and looked_from(world)[-1] is None


def test_relocalize_is_not_answered_by_an_older_image(world):
    world.localize()
    asked = len(world.backend.asked)
    world.backend.hold.clear()
    world.send(behaviour=Behaviour.NO_POSE)
    world.wait_for(lambda: len(world.backend.asked) > asked, 'an inference')
    epoch = world.tracker.epoch
    answer = world.call_async(Trigger, OWN + 'relocalize')
    world.wait_for(lambda: world.tracker.epoch > epoch, 'the call to wait')
    world.backend.hold.set()
    world.wait_for(lambda: world.node.drops.counts().get('superseded'), 'the drop')
    world.drive(1)
    assert answer().success


@pytest.mark.parametrize('case', ['no image', 'dropped', 'paused', 'inactive', 'deactivated'])
def test_relocalize_says_why_there_is_no_answer(world, case):
    expected = {'no image': 'no image was worked on within 0.1 s', 'dropped': 'dark',
                'paused': 'paused', 'inactive': 'not active', 'deactivated': 'not active'}[case]
    if case in ('no image', 'dropped'):
        world.node.set_parameters([Parameter('relocalize_timeout', value=0.1)])
    if case == 'paused':
        assert world.call(SetBool, OWN + 'pause', data=True).success
    if case == 'inactive':
        assert world.change(Transition.TRANSITION_DEACTIVATE)
    if case == 'dropped':
        before = world.node.drops.total
        world.send(pixels=np.zeros((48, 64, 3), np.uint8))
        world.wait_for(lambda: world.node.drops.total > before, 'a dark image')
    epoch = world.tracker.epoch
    answer = world.call_async(Trigger, OWN + 'relocalize')
    if case == 'deactivated':
        # It would wait for five minutes.
        world.wait_for(lambda: world.tracker.epoch > epoch, 'the call to wait')
        assert world.change(Transition.TRANSITION_DEACTIVATE)
    response = answer()
    assert not response.success and expected in response.message


def test_a_call_that_waits_holds_nothing_else_up(world):
    epoch = world.tracker.epoch
    answer = world.call_async(Trigger, OWN + 'relocalize')
    world.wait_for(lambda: world.tracker.epoch > epoch, 'the call to wait')
    assert world.call(SetBool, OWN + 'pause', data=False).success
    world.drive(1)
    assert answer().success


def test_pause_stops_the_poses_until_it_is_lifted(world):
    world.localize(frames=3)
    answer = world.call(SetBool, OWN + 'pause', data=True)
    assert answer.success and answer.message == 'paused'
    asked = len(world.backend.asked)
    ignored = world.drive(3)
    assert world.node.drops.counts()['paused'] == 3
    assert len(world.backend.asked) == asked
    answer = world.call(SetBool, OWN + 'pause', data=False)
    assert answer.success and answer.message == 'running'
    world.localize(frames=3)
    assert not set(ignored) & set(world.poses)


def test_a_pause_longer_than_lost_timeout_does_not_lose_the_robot(world):
    world.localize(frames=3)
    world.call(SetBool, OWN + 'pause', data=True)
    world.node.set_parameters([Parameter('lost_timeout', value=0.01)])
    seen = len(world.diagnostics)
    world.wait_for(lambda: len(world.diagnostics) >= seen + 2, 'two looks at the state')
    assert world.tracker.state.name == 'LOCALIZED'
    world.call(SetBool, OWN + 'pause', data=False)
    world.wait_for(lambda: world.tracker.state.name == 'LOST', 'the time-out to count again')


def test_pause_ends_with_the_activation(world):
    world.call(SetBool, OWN + 'pause', data=True)
    assert world.change(Transition.TRANSITION_DEACTIVATE)
    assert world.change(Transition.TRANSITION_ACTIVATE)
    world.connect(static=False)
    world.localize()


def test_save_pose_writes_what_was_published_last(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    path = tmp_path / 'pose.json'
    with World(tf_mode='map_to_camera', save_pose_rate=0.0) as world:
        world.connect(static=False)
        assert 'save_pose_path is empty' in world.call(Trigger, OWN + 'save_pose').message
        world.node.set_parameters([Parameter('save_pose_path', value='~/pose.json')])
        early = world.call(Trigger, OWN + 'save_pose')
        assert not early.success and early.message == 'there is no pose yet'
        stamps = world.localize(frames=3)
        assert world.call(Trigger, OWN + 'save_pose').success
        saved = load_pose(path, map_sha256=world.backend.map_sha256, max_age=60.0,
                          now=stamps[-1] * 1e-9 + 30.0)
        published = world.poses[stamps[-1]].pose.position
        assert np.allclose(saved.map_from_base[:3, 3], (published.x, published.y, published.z))
        path.unlink()
        world.node.set_parameters([Parameter('save_pose_path', value='/proc/no/pose.json')])
        refused = world.call(Trigger, OWN + 'save_pose')
        assert not refused.success and '/proc/no/pose.json' in refused.message


class Maps:
    """Loads backends by the name of the folder; `gate` holds the loading of 'slow'."""

    def __init__(self):
        self.first, self.other = FakeBackend(), FakeBackend(sha256='bb' * 32)
        self.gate = threading.Event()
        self.waiting = threading.Event()

    def load(self, folder, **options):
        if folder.name == 'slow':
            self.waiting.set()
            assert self.gate.wait(60.0)
        if folder.name == 'undescribed':
            raise MapError('map.yaml has map version 7', 'description')
        if folder.name in ('missing', 'broken', 'bug'):
            return loader()(folder, **options)
        return {'fake': self.first}.get(folder.name, self.other)


@pytest.fixture
def maps():
    return Maps()


def load_by_parameter(world, folder):
    world.node.set_parameters([Parameter('map_path', value=folder)])
    return world.call(Trigger, OWN + 'load_map')


def test_load_map_by_parameter_takes_the_map_into_use(maps):
    with World(load=maps.load, tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize(frames=3)
        answer = load_by_parameter(world, '/maps/other')
        assert answer.success and answer.message == maps.other.map_sha256
        world.wait_for(lambda: world.status('map_sha256') == maps.other.map_sha256,
                       'the status, from which the refiner learns of the map')
        assert not maps.other.asked
        world.localize()
        assert [prior for _, prior in maps.other.asked[:2]] == [None, None]


@pytest.mark.parametrize('name', ['missing', 'broken', 'undescribed', 'bug'])
def test_a_map_that_cannot_be_loaded_leaves_the_old_one(maps, name):
    with World(load=maps.load, tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize(frames=3)
        epoch = world.tracker.epoch
        answer = load_by_parameter(world, f'/maps/{name}')
        assert not answer.success
        assert {'missing': 'there is no map folder', 'broken': 'sha256 differs',
                'undescribed': 'version 7', 'bug': 'injected failure'}[name] in answer.message
        assert world.tracker.epoch == epoch and world.tracker.state.name == 'LOCALIZED'
        world.localize(frames=1)
        assert world.status('map_sha256') == maps.first.map_sha256


def test_load_map_of_nav2_gives_its_result_codes(maps, nav2):
    with World(load=maps.load, tf_mode='map_to_camera') as world:
        world.connect(static=False)

        def load(url):
            return world.call(LoadMap, OWN + 'load_map', map_url=url).result
        codes = LoadMap.Response
        assert load('/maps/missing') == codes.RESULT_MAP_DOES_NOT_EXIST == 1
        assert load('/maps/broken') == codes.RESULT_INVALID_MAP_DATA == 2
        assert load('/maps/undescribed') == codes.RESULT_INVALID_MAP_METADATA == 3
        assert load('/maps/bug') == codes.RESULT_UNDEFINED_FAILURE == 255
        assert world.node.pipeline.backend is maps.first
        assert load('file:///maps/other') == codes.RESULT_SUCCESS == 0
        assert world.node.pipeline.backend is maps.other
        assert world.node.map_path == '/maps/other'


def test_parameters_that_change_while_a_map_is_loaded_hold_for_it(maps, monkeypatch):
    used = []
    monkeypatch.setattr('nerfmatch_ros.ros.localizer_node.with_parameters',
                        lambda backend, values: used.append(values.min_inliers) or backend)
    with World(load=maps.load) as world:
        world.wait_for(lambda: world.state == 'active', 'an active node')
        world.node.set_parameters([Parameter('map_path', value='/maps/slow')])
        answer = world.call_async(Trigger, OWN + 'load_map')
        world.wait_for(maps.waiting.is_set, 'the map to be loaded')
        world.node.set_parameters([Parameter('min_inliers', value=77)])
        used.clear()
        maps.gate.set()
        assert answer().success
        assert used == [77]


def test_row_24_a_map_switch_does_not_wait_for_the_inference_and_drops_its_result(maps):
    with World(load=maps.load, tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize(frames=3)
        asked, known = len(maps.first.asked), set(world.poses)
        maps.first.hold.clear()
        stamp = world.send()
        world.wait_for(lambda: len(maps.first.asked) > asked, 'an inference')
        assert load_by_parameter(world, '/maps/other').success, 'answered during the inference'
        assert set(world.poses) == known
        maps.first.hold.set()
        world.wait_for(lambda: world.node.drops.counts().get('superseded'), 'the drop')
        stamps = world.localize()
        assert stamp not in world.poses and stamp not in world.raw
        assert set(world.poses) - known <= set(stamps)
        assert len(maps.first.asked) == asked + 1


@pytest.mark.parametrize('service', ['reset', 'reinitialize_global_localization'])
def test_row_24_a_reset_drops_the_result_of_the_inference(world, service):
    world.localize(frames=3)
    asked = len(world.backend.asked)
    world.backend.hold.clear()
    stamp = world.send()
    world.wait_for(lambda: len(world.backend.asked) > asked, 'an inference')
    if service == 'reset':
        world.call(Trigger, OWN + 'reset')
    else:
        world.call(Empty, service)
    world.backend.hold.set()
    world.wait_for(lambda: world.node.drops.counts().get('superseded'), 'the drop')
    world.localize()
    assert stamp not in world.poses and stamp not in world.raw


def test_row_24_what_is_refined_while_the_map_changes_is_not_taken(maps):
    with World(load=maps.load, tf_mode='map_to_camera', refiner=True) as world:
        world.connect(static=False)
        world.wait_for(lambda: world.client.count_subscribers('pose_with_covariance') == 2,
                       'the refiner')
        world.refiner_backend.refine_hold.clear()
        world.localize(frames=3)
        world.wait_for(lambda: world.refiner._worker.busy_since, 'a refinement')
        assert load_by_parameter(world, '/maps/other').success
        world.refiner_backend.refine_hold.set()
        world.wait_for(lambda: world.refined, 'the refined pose')
        world.wait_for(lambda: world.tracker.counts['refined_unknown_frame'], 'the verdict')
        assert not world.tracker.counts['refined_accepted']
        # From the status the refiner learns of the other map, and refines no more.
        world.wait_for(lambda: world.drive(1) and world.refiner.drops.counts().get('other_map'),
                       'the refiner to refuse')


def test_row_24_a_map_is_not_put_into_a_node_that_was_configured_anew(maps):
    with World(load=maps.load, tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.node.set_parameters([Parameter('map_path', value='/maps/slow')])
        world.call_async(Trigger, OWN + 'load_map')  # whose answer is lost with the service
        world.wait_for(maps.waiting.is_set, 'the map to be loaded')
        loading = world.node._offered_services._thread
        world.node.set_parameters([Parameter('map_path', value='/maps/fake')])
        assert world.change(Transition.TRANSITION_DEACTIVATE)
        assert world.change(Transition.TRANSITION_CLEANUP)
        assert world.change(Transition.TRANSITION_CONFIGURE)
        maps.gate.set()
        world.wait_for(lambda: not loading.is_alive(), 'the end of the loading')
        assert world.node.pipeline.backend is maps.first
        world.wait_for(lambda: world.logged('cleaned up while the map was loaded'), 'the reason')
        assert not world.logged('Traceback')


def test_row_24_a_pose_is_saved_with_the_map_that_it_is_in(maps, tmp_path):
    path = tmp_path / 'pose.json'
    with World(load=maps.load, tf_mode='map_to_camera', save_pose_path=str(path),
               save_pose_rate=0.0) as world:
        world.connect(static=False)
        world.localize()
        assert load_by_parameter(world, '/maps/other').success
        assert world.call(Trigger, OWN + 'save_pose').success
        load_pose(path, map_sha256=maps.first.map_sha256, max_age=60.0, now=time.time())


def test_set_initial_pose_of_nav2_is_a_place_to_look_first(nav2, world):
    place = map_from_base_at(0.0) @ BASE_FROM_CAMERA
    world.call(SetMap, 'set_initial_pose', initial_pose=pose_with_covariance(
        place, np.zeros((6, 6)), stamp_message(0), 'map'))
    world.drive(1)
    assert np.allclose(looked_from(world)[-1], place)


def test_without_nav2_there_is_no_set_initial_pose(world, monkeypatch):
    names = dict(world.client.get_service_names_and_types_by_node('nerfmatch_localizer', '/'))
    assert '/set_initial_pose' not in names
    assert names['/reinitialize_global_localization'] == ['std_srvs/srv/Empty']
    waiting = dict(world.client.get_service_names_and_types_by_node(
        'nerfmatch_localizer_services', '/'))
    assert waiting['/nerfmatch_localizer/load_map'] == ['std_srvs/srv/Trigger']
    assert Path('/nerfmatch_localizer/relocalize').as_posix() in waiting
