"""Photometric refinement through a field in closed form: a painted sphere seen from inside."""

from dataclasses import replace
import math

from analytic_field import SphereField
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import perturb, pose_distance
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.localization.photometric_refiner import (
    PhotometricConfig,
    refine_photometrically,
)
from nerfmatch_ros.radiance_field.field import FieldSamples
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

CAMERA = Camera('PINHOLE', 96, 80, 70.0, 70.0, 47.0, 40.0)
# The map lies far from its origin: 2 m to a scene unit.
FRAME = SceneFrame(Similarity(0.5, Rotation.from_rotvec([0.2, 0.4, -0.3]).as_matrix(),
                              np.array([100.1, -50.0, -0.2])), 0.05, 1.7)
CONFIG = PhotometricConfig(rays=1000, levels=(3.0, 1.0), min_points=100)


class PaintedSphere(SphereField):
    """The sphere with waves of colour; samples are few, so that tests are quick."""

    def __init__(self, **options):
        super().__init__(samples=100, density=300.0, **options)

    def evaluate(self, rays, edges, *, colour=True, feature_layer=None, generator=None):
        found = super().evaluate(rays, edges, colour=colour)
        if not colour:
            return found
        points = rays.origins[:, None] + edges[:, :-1, None] * rays.directions[:, None]
        points = points / points.norm(dim=-1, keepdim=True)
        waves = torch.tensor([[9., 4., -5.], [-6., 10., 3.], [4., -5., 11.]]).to(points)
        return FieldSamples(found.density, 0.5 + 0.4 * (points @ waves.T).sin(), None)


class Fog(PaintedSphere):
    """Nothing anywhere."""

    def evaluate(self, rays, edges, **options):
        found = super().evaluate(rays, edges, **options)
        return FieldSamples(0 * found.density, found.colour, None)


@pytest.fixture(scope='module')
def scene():
    """A pose (4, 4) off the middle of the sphere, and what is seen from it (3, h, w)."""
    pose = perturb(torch.eye(4, dtype=torch.float64),
                   torch.tensor([0., 0., 0., 0.5, -0.8, 0.3], dtype=torch.float64))
    pose[:3, 3] = FRAME.to_map(torch.tensor([0.3, -0.2, 0.2], dtype=torch.float64))
    view = render_view(PaintedSphere(), FRAME, CAMERA, pose, stride=1, colour=True)
    return pose, view.colour.T.reshape(3, CAMERA.height, CAMERA.width)


@pytest.mark.parametrize('stride', [0, 2])
def test_a_start_nearby_ends_at_the_true_pose(scene, stride):
    pose, picture = scene
    start = perturb(pose, torch.tensor([.03, -.03, .03, .02, -.02, .02], dtype=torch.float64))
    given = start.numpy().copy()
    config = replace(CONFIG, stride=stride, renders=3)
    result = refine_photometrically(PaintedSphere(), FRAME, CAMERA, 0.8 * picture, given, config)
    metres, radians = pose_distance(torch.from_numpy(result.map_from_camera), pose)
    assert metres < 0.01 and radians < math.radians(0.3)
    np.testing.assert_array_equal(given, start.numpy())
    moved = pose_distance(torch.from_numpy(result.map_from_camera), start)
    assert result.moved == pytest.approx([float(value) for value in moved], abs=1e-9)
    assert result.residual_after < 0.3 * result.residual_before
    assert result.gain == pytest.approx((0.8,) * 3, abs=0.05)


def test_chunks_and_repetition_change_nothing(scene):
    pose, picture = scene
    start = perturb(pose, torch.tensor([.01, 0., 0., 0., .01, 0.], dtype=torch.float64)).numpy()
    first, second = (
        refine_photometrically(PaintedSphere(), FRAME, CAMERA, picture, start, CONFIG, chunk)
        for chunk in (100, 4096))
    np.testing.assert_allclose(first.map_from_camera, second.map_from_camera, atol=1e-5)


def test_renderings_end_when_the_pose_rests(scene):
    """From the true pose the first alignment stays, so that the second rendering is not made."""
    pose, picture = scene
    rendered = []

    class Counting(PaintedSphere):
        def propose(self, rays, generator=None):
            rendered.append(len(rays))
            return super().propose(rays, generator)

    config = replace(CONFIG, levels=(0.0,))
    result = refine_photometrically(Counting(), FRAME, CAMERA, picture, pose.numpy(), config)
    assert result.moved[0] < 1e-3 and result.moved[1] < 1e-3
    assert len(rendered) == 1


def test_a_map_without_surface_gives_a_reason(scene):
    pose, picture = scene
    result = refine_photometrically(Fog(), FRAME, CAMERA, picture, pose.numpy(), CONFIG)
    assert result.map_from_camera is None
    assert result.reason.startswith('0 points have a colour')


def test_a_lens_is_refused(scene):
    pose, picture = scene
    lens = Camera('OPENCV', 96, 80, 70.0, 70.0, 47.0, 40.0, (-0.2, 0.05, 0.0, 0.0))
    with pytest.raises(DataError, match='pinhole'):
        refine_photometrically(PaintedSphere(), FRAME, lens, picture, pose.numpy(), CONFIG)
