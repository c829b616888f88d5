"""Rendering: a field in closed form is seen where it is; gradients reach the camera's pose."""

from analytic_field import distance_to_sphere, SphereField
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, se3_exp, transform_points
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.radiance_field.field import Proposal
from nerfmatch_ros.radiance_field.grid_field import GridField, GridFieldConfig
from nerfmatch_ros.radiance_field.renderer import render_rays, render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

CAMERAS = {
    'pinhole': Camera('PINHOLE', 64, 48, 50.0, 52.0, 30.0, 25.0),
    'distorted': Camera('OPENCV', 64, 48, 50.0, 52.0, 30.0, 25.0, (-0.2, 0.05, 0.002, -0.001)),
}
TURN = Rotation.from_rotvec([0.2, 0.4, -0.3]).as_matrix()
FRAME = SceneFrame(Similarity(0.5, TURN, np.array([0.1, 0.0, -0.2])), 0.01, 2.2)
STEP = 2.2 / 400  # scene units, of the field's intervals


def pose_in_map():
    """Pose of a camera near the middle of the scene."""
    pose = se3_exp(torch.tensor([0.1, -0.1, 0.2, 0.5, -0.8, 0.3], dtype=torch.float64))
    pose[:3, 3] = FRAME.to_map(torch.tensor([0.2, -0.1, 0.1], dtype=torch.float64))
    return pose


@pytest.mark.parametrize('camera', CAMERAS.values(), ids=CAMERAS.keys())
@pytest.mark.parametrize('stride', [1, 8])
def test_points_of_a_view_project_onto_their_cells(camera, stride):
    view = render_view(SphereField(), FRAME, camera, pose_in_map(), stride=stride)
    assert (view.rows, view.columns) == (48 // stride, 64 // stride)
    in_camera = transform_points(inverse(pose_in_map()), view.points.double())
    grid = camera.pixel_grid(stride, dtype=torch.float64)
    assert (camera.project(in_camera) - grid).abs().max() < 0.01
    torch.testing.assert_close(view.depth.double(), in_camera[:, 2], atol=1e-4, rtol=1e-4)


def test_a_view_shows_surface_depth_colour_and_features():
    camera = CAMERAS['pinhole']
    view = render_view(SphereField(), FRAME, camera, pose_in_map(), stride=4, colour=True,
                       feature_layer=2, chunk=50)
    scene_points = FRAME.to_scene(view.points)
    assert (scene_points.norm(dim=-1) - 1).abs().max() < 2 * STEP
    assert (view.opacity > 0.99).all()
    rays = FRAME.rays(pose_in_map(), camera.rays(camera.pixel_grid(4, dtype=torch.float64)), 0.02)
    distance = distance_to_sphere(rays.origins, rays.directions, 1.0)
    expected = distance / 0.5 * camera.rays(camera.pixel_grid(4, dtype=torch.float64))[:, 2]
    assert (view.depth - expected).abs().max() < 4 * STEP
    torch.testing.assert_close(view.colour, (scene_points + 2) / 4, atol=0.02, rtol=0)
    torch.testing.assert_close(view.features[:, :3], scene_points, atol=1e-5, rtol=0)
    assert (view.features[:, 3] == 2).all()


def test_chunks_and_repetition_change_nothing():
    camera = CAMERAS['distorted']
    first, second = (render_view(SphereField(), FRAME, camera, pose_in_map(), chunk=chunk)
                     for chunk in (7, 4096))
    torch.testing.assert_close(first.points, second.points, atol=1e-6, rtol=0)


def test_composited_feature_and_mean_distance_are_of_the_wall():
    camera = CAMERAS['pinhole']
    rays = FRAME.rays(pose_in_map(), camera.rays(camera.pixel_grid(8, dtype=torch.float64)), 0.02)
    rendered = render_rays(SphereField(), rays, feature_layer=1)
    torch.testing.assert_close(rendered.feature[:, :3].norm(dim=-1), torch.ones(48).double(),
                               atol=0.02, rtol=0)
    distance = distance_to_sphere(rays.origins, rays.directions, 1.0)
    torch.testing.assert_close(rendered.mean_distance, distance, atol=3 * STEP, rtol=0)
    torch.testing.assert_close(rendered.median_distance, distance, atol=3 * STEP, rtol=0)


class FixedEdges(GridField):
    """Samples at the same distances whatever the pose, so that rendering is smooth in it."""

    def propose(self, rays, generator=None):
        steps = torch.linspace(0.1, 2.5, 11, dtype=rays.origins.dtype)
        return Proposal(steps.expand(len(rays), -1))


def test_rendering_is_differentiable_in_the_pose(generator):
    torch.manual_seed(1)
    field = FixedEdges(GridFieldConfig(levels=2, coarsest=2, finest=5, log2_entries=8, octaves=2,
                                       width=16, depth=2)).double().eval()
    with torch.no_grad():
        field.hash_grid.table.normal_(0, 0.3, generator=generator)
    directions = CAMERAS['pinhole'].rays(CAMERAS['pinhole'].pixel_grid(8, dtype=torch.float64))
    weight = torch.randn(len(directions), 3, generator=generator, dtype=torch.float64)

    def render(twist, dtype=torch.float64):
        rays = FRAME.rays((pose_in_map() @ se3_exp(twist)).to(dtype), directions.to(dtype), 0.02)
        return (render_rays(field, rays).colour * weight).sum()

    twist = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    gradient, = torch.autograd.grad(render(twist), twist)
    step, numeric = 1e-3, torch.zeros(6, dtype=torch.float64)
    with torch.no_grad():
        for k in range(6):
            offset = step * torch.eye(6, dtype=torch.float64)[k]
            numeric[k] = (render(offset) - render(-offset)) / (2 * step)
    assert gradient.norm() > 1e-2
    assert (gradient - numeric).norm() < 0.02 * numeric.norm()
    # The compiled encoding, taken for single precision, gives the same gradient.
    field.float()
    compiled, = torch.autograd.grad(render(twist, torch.float32), twist)
    assert (gradient - compiled).norm() < 0.01 * gradient.norm()
