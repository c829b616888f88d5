"""The nodes at their work: poses, transforms, refinement, over real topics in one process."""

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from fake_backend import loader  # noqa: E402
from nerfmatch_ros.ros import health  # noqa: E402
from nerfmatch_ros.ros.conversions import matrix_from_transform, stamp_ns  # noqa: E402
from nerfmatch_ros.ros.diagnostics import status_values  # noqa: E402
from node_world import (  # noqa: E402
    BASE_FROM_CAMERA,
    error_of,
    map_from_base_at,
    MAP_FROM_ODOM,
    World,
)
from rclpy.parameter import Parameter  # noqa: E402


def truth(world, stamp):
    return map_from_base_at(stamp * 1e-9 - world.started)


def test_a_camera_alone_needs_no_transform_and_no_odometry():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        stamps = world.localize(frames=4)
        world.wait_for(lambda: set(stamps[1:]) <= set(world.covariances), 'covariances')
        assert set(world.poses) == set(stamps[1:]), 'nothing before two fixes agree'
        for stamp, pose in world.poses.items():
            assert error_of(pose, truth(world, stamp) @ BASE_FROM_CAMERA) < 0.1
        world.wait_for(lambda: len(world.transforms) >= 3, 'transforms')
        for transform in world.transforms:
            assert stamp_ns(transform.header) in world.poses
            assert transform.child_frame_id == 'camera_optical_frame'


def test_the_localizer_that_the_parameter_names_is_loaded():
    asked = []

    def load(folder, **options):
        asked.append(options.get('localizer'))
        return loader()(folder, **options)

    with World(load=load, tf_mode='map_to_camera', localizer='hybrid') as world:
        world.connect(static=False)
        world.localize(frames=2)
    assert asked == ['hybrid']


def test_a_base_is_placed_by_its_extrinsic():
    with World(tf_mode='map_to_base') as world:
        world.connect()
        stamps = world.localize(frames=3)
        for stamp in stamps[1:]:
            assert error_of(world.poses[stamp], truth(world, stamp)) < 0.1
        world.wait_for(lambda: world.transforms, 'transforms')
        assert world.transforms[0].child_frame_id == 'base_link'


def test_pose_frame_camera_names_the_camera_while_the_base_is_tracked():
    with World(tf_mode='map_to_odom', pose_frame='camera') as world:
        world.connect()
        stamps = world.localize(odometry=True, frames=3)
        for stamp in stamps[1:]:
            assert error_of(world.poses[stamp], truth(world, stamp) @ BASE_FROM_CAMERA) < 0.1


def test_odometry_and_refinement_bring_map_from_odom_to_the_truth():
    with World(tf_mode='map_to_odom', refiner=True) as world:
        world.connect()
        world.wait_for(
            lambda: world.client.count_subscribers('pose_with_covariance') == 2, 'the refiner')
        stamps = world.localize(odometry=True, frames=8)
        # On a busy machine only the newest is refined, so there may have to be more.
        world.wait_for(lambda: len(world.refined) >= 5 or stamps.extend(
            world.drive(1, odometry=True)), 'refined poses')
        refined_poses = dict(world.refined)  # more may come
        assert set(refined_poses) <= set(stamps)
        world.wait_for(lambda: world.tracker.counts['refined_accepted'] >= 5, 'feedback')
        fast = np.mean([error_of(world.raw[s], truth(world, s)) for s in refined_poses])
        refined = np.mean([error_of(m, truth(world, s)) for s, m in refined_poses.items()])
        assert refined < fast / 2
        error = world.tracker.map_from_odom - MAP_FROM_ODOM
        assert np.abs(error).max() < 0.01
        world.wait_for(lambda: np.abs(matrix_from_transform(
            world.transforms[-1].transform) - MAP_FROM_ODOM).max() < 0.02, 'map -> odom')
        stamps = [stamp_ns(transform.header) for transform in world.transforms]
        assert all(b > a for a, b in zip(stamps, stamps[1:]))


@pytest.mark.parametrize('pose_frame', ['base', 'camera'])
def test_tf_mode_none_broadcasts_nothing_and_works_without_odometry(pose_frame):
    with World(tf_mode='none', pose_frame=pose_frame, wait_for_transform=0.05) as world:
        world.connect()
        stamps = world.localize(frames=3)
        offset = BASE_FROM_CAMERA if pose_frame == 'camera' else np.eye(4)
        assert error_of(world.poses[stamps[-1]], truth(world, stamps[-1]) @ offset) < 0.1
        assert not world.transforms


def test_tracking_looks_from_the_prediction_and_mode_global_does_not():
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.localize(frames=4)
        priors = [prior for _, prior in world.backend.asked]
        assert priors[0] is None and priors[1] is None and priors[-1] is not None
        result = world.node.set_parameters_atomically(
            [Parameter('mode', value='global')])
        assert result.successful
        world.drive(1)
        assert world.backend.asked[-1][1] is None


def test_diagnostics_tell_how_busy_the_node_is_and_how_far_refinement_moves_poses(monkeypatch):
    monkeypatch.setattr(health, 'PERIOD', 0.05)
    with World(tf_mode='map_to_camera', refiner=True) as world:
        world.connect(static=False)
        world.backend.delay = 0.05

        def value(task, key):
            return next((status_values(status)[key] for message in reversed(world.diagnostics)
                         for status in message.status
                         if status.name == f'nerfmatch_localizer: {task}'), '-')
        world.wait_for(lambda: (world.drive(1), world.tracker.counts['refined_accepted'])[-1],
                       'a refined pose')
        world.wait_for(lambda: value('refiner', 'mean improvement [m]') != '-', 'the improvement')
        assert 0 < float(value('refiner', 'mean improvement [m]')) < 0.2
        world.wait_for(lambda: (world.drive(1), float(
            value('latency', 'share of time busy')) > 0.1)[-1], 'the share')
        assert float(value('latency', 'share of time busy')) <= 1


def test_status_and_diagnostics_say_where_the_time_goes_and_what_images_are_matched_with(
        monkeypatch):
    monkeypatch.setattr(health, 'PERIOD', 0.05)
    with World(tf_mode='map_to_camera') as world:
        world.connect(static=False)
        world.backend.delay = 0.02
        world.backend.source = 'rendered: 31 % of the view is covered'
        world.drive(2)
        world.backend.source = 'splatted'
        world.drive(1)
        world.wait_for(lambda: world.status('reference') == 'splatted', 'the reference')
        assert float(world.status('seconds localize')) >= float(
            world.status('seconds localize/match')) >= 0.02
        world.wait_for(lambda: 'reference splatted' in values(world, 'localization'),
                       'diagnostics of the third image')
        found = values(world, 'localization')
        assert (found['reference rendered'], found['reference splatted']) == ('2', '1')
        world.wait_for(lambda: 'localize/match p50 [s]' in values(world, 'latency'), 'the stage')
        assert float(values(world, 'latency')['localize/match p50 [s]']) >= 0.02


def values(world, task):
    status = world.diagnosis(f': {task}')
    return {} if status is None else status_values(status)
