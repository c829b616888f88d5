"""Registration by the field: poses become better, stay in the given frame, go on when killed."""

from dataclasses import replace

from nerfmatch_ros.data.pose_noise import noisy
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.geometry.trajectory_alignment import align_trajectories
from nerfmatch_ros.mapping import pose_registration as module
from nerfmatch_ros.mapping.pose_prior import PosePrior
from nerfmatch_ros.mapping.pose_registration import register_by_field
from nerfmatch_ros.mapping.pose_registration_config import (
    detail_at,
    METHODS,
    PoseRegistrationConfig,
)
from nerfmatch_ros.radiance_field.grid_field import GridField
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from sphere_scene import FRAME, POSES, sphere_images
from tiny_build import TINY, TINY_MIP
import torch

SMALL = PoseRegistrationConfig(
    steps=30, rays=100, longest_side=40, blur=1.0, bfloat16=False, field=TINY.field)


@pytest.fixture(scope='module')
def images():
    return [replace(image, map_from_camera=None) for image in sphere_images()]


@pytest.fixture
def rough(generator):
    return noisy(np.stack(POSES), 0.05, np.radians(3), generator)


def mean_errors(poses, true):
    moved = align_trajectories(poses, true).apply_to_pose(poses)
    metres, radians = pose_distance(torch.from_numpy(moved), torch.from_numpy(true))
    return metres.mean().item(), radians.mean().item()


def test_detail_opens_while_the_photographs_become_sharp():
    config = PoseRegistrationConfig(blur=4.0, final_blur=0.0, first_detail=0.2, ramp=(0.25, 0.75))
    assert detail_at(0.0, config) == (0.2, 4.0)
    assert detail_at(0.25, config) == (0.2, 4.0)
    assert detail_at(0.5, config) == pytest.approx((0.6, 2.0))
    assert detail_at(0.75, config) == pytest.approx((1.0, 0.0))
    assert detail_at(1.0, config) == pytest.approx((1.0, 0.0))


class Killed(BaseException):
    """Ends a registration as a kill would."""


@pytest.mark.parametrize('method', METHODS)
def test_an_interrupted_registration_ends_like_a_whole_one(
        method, images, rough, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'CHECKPOINT_STEPS', 10)
    config = replace(SMALL, method=method)
    whole = register_by_field(images, rough, config, checkpoint=tmp_path / 'a')

    def kill(progress, numbers):
        if numbers['step'] == 20:
            raise Killed

    with pytest.raises(Killed):
        register_by_field(images, rough, config, checkpoint=tmp_path / 'b', report=kill)
    again = register_by_field(images, rough, config, checkpoint=tmp_path / 'b')
    np.testing.assert_allclose(again.poses, whole.poses, atol=1e-5)
    assert abs(whole.poses - rough).max() > 1e-3


@pytest.mark.parametrize(('rigid_from', 'settled'), [(0.5, True), (1.0, False)])
def test_warps_become_rigid_when_asked_to(rigid_from, settled, images, rough, tmp_path):
    config = replace(SMALL, steps=4, rigid_from=rigid_from)
    register_by_field(images, rough, config, checkpoint=tmp_path / 'a')
    state = torch.load(tmp_path / 'a', weights_only=True)
    assert state['model']['motions.settled'].item() is settled


def test_poses_of_odometry_bend_along_the_way(images, rough, tmp_path):
    """The same photographs, told that the poses are exact relative to one another, or nothing."""
    prior = PosePrior(rough, 0.05, 0.05, odometry=1e-6, sequence=np.arange(len(rough)))
    config = replace(SMALL, method='barf', still=0.0)
    held = register_by_field(images, rough, config, checkpoint=tmp_path / 'a', prior=prior)
    free = register_by_field(images, rough, config, checkpoint=tmp_path / 'b')
    moved = [pose_distance(torch.from_numpy(found.poses), torch.from_numpy(rough))[1].mean()
             for found in (held, free)]
    assert moved[0] < 0.2 * moved[1]


def test_a_mip_field_registers_too(images, rough, tmp_path):
    config = replace(SMALL, field=TINY_MIP.field, steps=5, still=0.0)
    found = register_by_field(images, rough, config, checkpoint=tmp_path / 'a')
    assert found.poses.shape == (5, 4, 4) and np.isfinite(found.poses).all()
    assert found.frame.ball and abs(found.poses - rough).max() > 1e-6


def test_poses_and_field_are_put_back_to_where_the_rough_poses_were(generator):
    true = np.stack(POSES)
    gone = Similarity(0.8, Rotation.from_euler('xyz', [0.1, 0.2, -0.1]).as_matrix(), [0.3, 0, -1])
    registered = gone.apply_to_pose(true)
    found = module._put_back(registered, true, GridField(TINY.field.grid), FRAME, {})
    np.testing.assert_allclose(found.poses, true, atol=1e-9)
    assert found.numbers['drift_scale'] == pytest.approx(0.8)
    assert found.numbers['moved_m'] == pytest.approx(0, abs=1e-9)
    directions = torch.randn(7, 3, generator=generator, dtype=torch.float64)
    before = FRAME.rays(torch.from_numpy(registered[2]), directions, 0.01)
    after = found.frame.rays(torch.from_numpy(found.poses[2]), directions, 0.01)
    torch.testing.assert_close(after.origins, before.origins)
    torch.testing.assert_close(after.directions, before.directions)


@pytest.mark.parametrize('wrong', [
    {'method': 'icp'}, {'rays': 0}, {'ramp': (0.5, 0.5)}, {'first_detail': 2.0},
    {'depth_range': (3.0, 1.0)}, {'rigid_from': 1.5}])
def test_what_registers_nothing_is_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong.values())) if 'method' in wrong
                       else next(iter(wrong))):
        PoseRegistrationConfig(**wrong)


def test_a_pose_for_each_of_three_images_is_needed(images, rough, tmp_path):
    for few, poses in ((images[:2], rough[:2]), (images, rough[:4])):
        with pytest.raises(DataError, match='pose'):
            register_by_field(few, poses, SMALL, checkpoint=tmp_path / 'a')


def test_poses_that_diverged_are_said_to_have(rough):
    with pytest.raises(DataError, match='diverged'):
        module._put_back(np.full_like(rough, np.nan), rough, None, FRAME, {})


@pytest.mark.parametrize('method', METHODS)
def test_lost_frames_are_put_where_others_show_them(method, images, rough, tmp_path, monkeypatch):
    asked = []

    def places(given, moved, errors, scale, share, weight, shown):
        every = torch.arange(len(moved))
        own = shown(every, moved)
        assert own.shape == (5,) and (own > 0).all() and share == 0.4
        asked.append(given)
        return every[2:3], torch.full((1, 6), 3.0)

    monkeypatch.setattr(module, 'places_of_lost', places)
    config = replace(SMALL, method=method, lost=0.4, rigid_from=0.96, still=0.0, twist_rate=1e-9,
                     warp_rate=1e-9, prior_weight=0.0)
    found = register_by_field(images, rough, config, checkpoint=tmp_path / 'a')
    assert len(asked) == 1
    moved = pose_distance(torch.from_numpy(found.poses), torch.from_numpy(rough))[1]
    assert moved.argmax() == 2 and moved[2] > 0.2
