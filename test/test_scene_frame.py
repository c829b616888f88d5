"""The scene frame: round trip, rays, and the box that is fitted around a scene."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import se3_exp
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.radiance_field.scene_frame import fit_scene_frame, SceneFrame
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

CAMERA = Camera('PINHOLE', 32, 24, 30.0, 31.0, 15.5, 11.5)


def some_frame():
    rotation = Rotation.from_rotvec([0.3, -0.5, 0.2]).as_matrix()
    return SceneFrame(Similarity(0.25, rotation, np.array([0.1, -0.2, 0.3])), 0.05, 3.0)


def some_pose(generator):
    return se3_exp(torch.randn(6, generator=generator, dtype=torch.float64))


def test_points_return_from_the_scene(generator):
    points = torch.randn(50, 3, generator=generator, dtype=torch.float64)
    frame = some_frame()
    torch.testing.assert_close(frame.to_map(frame.to_scene(points)), points)


def test_rays_meet_the_points_whose_pixels_they_are_of(generator):
    frame, pose = some_frame(), some_pose(generator)
    directions = CAMERA.rays(CAMERA.pixel_grid(dtype=torch.float64))
    depth = 1 + torch.rand(len(directions), 1, generator=generator, dtype=torch.float64)
    points = (directions * depth) @ pose[:3, :3].T + pose[:3, 3]
    rays = frame.rays(pose, directions, 1 / CAMERA.fx)
    # Directions are unit, so a distance in the scene is the metric one times the scale.
    met = rays.origins + depth * frame.scene_from_map.scale * rays.directions
    torch.testing.assert_close(frame.to_map(met), points)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones_like(depth[:, 0]))
    assert (rays.near == 0.05).all() and (rays.far == 3.0).all()


def test_a_far_background_does_not_inflate_the_box(generator):
    cameras = poses_at(np.random.default_rng(0).uniform(-3, 3, (20, 3)))
    facade = np.random.default_rng(1).uniform([-8, 9, -4], [8, 11, 4], (900, 3))
    hills = np.random.default_rng(2).uniform([-300, 300, 0], [300, 400, 50], (100, 3))
    points = np.concatenate([facade, hills])
    distances = np.linalg.norm(points, axis=1)
    alone = fit_scene_frame(cameras, facade, distances[:900])
    both = fit_scene_frame(cameras, points, distances)
    assert both.scene_from_map.scale > 0.9 * alone.scene_from_map.scale
    assert both.far > 300 * both.scene_from_map.scale


def test_a_pose_for_each_ray_equals_one_pose_at_a_time(generator):
    frame = some_frame()
    poses = torch.stack([some_pose(generator) for _ in range(4)])
    directions = CAMERA.rays(torch.rand(4, 2, generator=generator, dtype=torch.float64) * 20)
    together = frame.rays(poses, directions, 0.01, torch.arange(4))
    for k in range(4):
        alone = frame.rays(poses[k], directions[k:k + 1], 0.01)
        torch.testing.assert_close(together.origins[k], alone.origins[0])
        torch.testing.assert_close(together.directions[k], alone.directions[0])


def test_rays_are_differentiable_in_the_pose(generator):
    frame = some_frame()
    directions = CAMERA.rays(torch.rand(3, 2, generator=generator, dtype=torch.float64) * 20)

    def cast(pose):
        rays = frame.rays(pose, directions, 0.01)
        return rays.origins, rays.directions

    assert torch.autograd.gradcheck(cast, some_pose(generator).requires_grad_())


def poses_at(centres):
    poses = np.tile(np.eye(4), (len(centres), 1, 1))
    poses[:, :3, 3] = centres
    return poses


def test_cameras_and_the_bulk_of_the_points_fill_the_unit_box():
    random = np.random.default_rng(3)
    centres = random.uniform(-1, 1, (20, 3)) + [10, 5, 0]
    points = random.uniform(-3, 3, (500, 3)) + [10, 5, 0]
    points[0] = 1e4  # an outlier must not blow the box up
    distances = np.linalg.norm(points[1:] - centres[0], axis=1)
    frame = fit_scene_frame(poses_at(centres), points, distances)
    inside = np.abs(frame.to_scene(torch.from_numpy(points)).numpy()).max(1) <= 1
    assert inside.mean() > 0.9
    assert np.abs(frame.to_scene(torch.from_numpy(centres)).numpy()).max() <= 1
    scaled = distances * frame.scene_from_map.scale
    assert 0 < frame.near < np.quantile(scaled, 0.01)
    assert frame.far > np.quantile(scaled, 0.99)


def test_without_points_the_scene_is_guessed_from_the_cameras():
    frame = fit_scene_frame(poses_at(np.eye(3)), np.zeros((0, 3)), np.zeros(0))
    centres = frame.to_scene(torch.eye(3, dtype=torch.float64))
    assert centres.abs().max() < 0.5
    assert 0 < frame.near < frame.far


def test_coinciding_cameras_without_points_are_refused():
    with pytest.raises(DataError, match='no size'):
        fit_scene_frame(poses_at(np.ones((5, 3))), np.zeros((0, 3)), np.zeros(0))
