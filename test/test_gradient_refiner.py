"""Descent through a field in closed form: a textured sphere with a soft wall, from inside."""

from analytic_field import SphereField
from nerfmatch_ros.data.working_image import as_tensor
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import perturb, pose_distance
from nerfmatch_ros.localization.gradient_refiner import (
    _even_pixels,
    _Scene,
    _slopes,
    GradientConfig,
    refine_by_gradient,
)
from nerfmatch_ros.radiance_field.field import FieldSamples
from nerfmatch_ros.radiance_field.volume_rendering import midpoints
import numpy as np
import pytest
from sphere_scene import FRAME, pose_at, sphere_images
import torch

# Wide, as a narrow view of a sphere looks the same from places that differ.
CAMERA = Camera('PINHOLE', 80, 64, 34.0, 34.0, 39.5, 31.5)
QUICK = GradientConfig(steps=60, rays=128, learning_rate=1e-2, judged_rays=300)


class SoftSphere(SphereField):
    """A wall whose density has a slope, which a gradient can feel, in three waves of colour."""

    def __init__(self):
        super().__init__(samples=64)

    def evaluate(self, rays, edges, *, colour=True, feature_layer=None, generator=None):
        points = rays.origins[:, None] + midpoints(edges)[..., None] * rays.directions[:, None]
        density = 60 * torch.sigmoid(40 * (points.norm(dim=-1) - 1))
        x, y, z = points.unbind(-1)
        waves = torch.stack((9 * x + 4 * y, 9 * y - 5 * z, 9 * z + 6 * x), -1)
        return FieldSamples(density, 0.5 + 0.4 * waves.sin(), None)


FIELD = SoftSphere()
TRUTH = pose_at(0.5, -0.4, 0.6, 0.2, 0.1)
START = perturb(torch.from_numpy(TRUTH), torch.tensor(
    [0.03, -0.03, 0.025, 0.02, -0.02, 0.02], dtype=torch.float64)).numpy()


@pytest.fixture(scope='module')
def picture():
    return as_tensor(sphere_images(FIELD, [TRUTH], CAMERA)[0].pixels)


def refine(picture, start=START, config=QUICK, field=FIELD, **options):
    return refine_by_gradient(field, FRAME, CAMERA, picture, start, config, **options)


def distance(alignment):
    assert alignment.reason == ''
    metres, radians = pose_distance(torch.from_numpy(alignment.map_from_camera),
                                    torch.from_numpy(TRUTH))
    return metres.item(), radians.item()


def test_the_pose_is_recovered_from_5_cm_and_2_degrees(picture):
    alignment = refine(picture)
    metres, radians = distance(alignment)
    assert metres < 0.01 and radians < 0.006
    assert alignment.residual_after < 0.3 * alignment.residual_before
    assert alignment.correlation > 0.98 and alignment.overlap == 1
    assert 0.035 < alignment.moved[0] < 0.065 and alignment.iterations == 60
    np.testing.assert_allclose(alignment.gain, 1, atol=0.1)
    values = np.linalg.eigvalsh(alignment.covariance)
    assert 0 < values[0] and np.sqrt(values[-1]) < 0.05


def test_parts_of_the_rays_lead_to_the_same_place(picture):
    assert distance(refine(picture, chunk=64))[0] < 0.01


def test_exposure_is_solved_for(picture):
    alignment = refine(0.6 * picture + 0.1)
    assert distance(alignment)[0] < 0.01
    np.testing.assert_allclose(alignment.gain, 0.6, atol=0.06)


def test_a_call_repeats_itself_and_leaves_the_field_alone(picture):
    with torch.inference_mode():  # as the localizer does, whose picture is made there
        first = refine(picture.clone())
    np.testing.assert_array_equal(first.map_from_camera, refine(picture).map_from_camera)
    assert FIELD.unused.grad is None and FIELD.unused.requires_grad
    other = refine(picture, generator=torch.Generator().manual_seed(1))
    assert not np.array_equal(first.map_from_camera, other.map_from_camera)


def test_the_derivative_agrees_with_differences(picture):
    scene, pixels = _Scene(FIELD, FRAME, CAMERA, picture, QUICK), _even_pixels(CAMERA, 40)
    pose = torch.from_numpy(TRUTH)
    linear = torch.cat(list(_slopes(scene, pose, pixels, chunk=100)))
    torch.testing.assert_close(linear[..., 0], scene.shown(pose, pixels)[0].double())
    for k, delta in enumerate(4e-3 * torch.eye(6, dtype=torch.float64)):
        after, before = (scene.shown(perturb(pose, sign * delta), pixels)[0].double()
                         for sign in (1, -1))
        torch.testing.assert_close(linear[..., 1 + k], (after - before) / 8e-3,
                                   rtol=0.02, atol=0.003)


def test_what_fixes_no_pose_has_a_reason(picture):
    class Empty(SoftSphere):
        def evaluate(self, *arguments, **options):
            samples = super().evaluate(*arguments, **options)
            return FieldSamples(0 * samples.density, samples.colour, None)

    class Plain(SoftSphere):
        def evaluate(self, *arguments, **options):
            samples = super().evaluate(*arguments, **options)
            return FieldSamples(samples.density, 0 * samples.colour + 0.5, None)

    short = GradientConfig(steps=1, rays=8, judged_rays=300, learning_rate=1e-9)
    noise = torch.rand(picture.shape, generator=torch.Generator().manual_seed(0))
    for alignment, words in (
            (refine(picture, field=Empty(), config=short), '0 of 320 rays meet a surface'),
            (refine(picture, field=Plain(), config=short), 'do not fix the pose'),
            (refine(noise, config=short), 'correlate by')):
        assert alignment.map_from_camera is None and alignment.covariance is None
        assert words in alignment.reason


def test_a_descent_that_goes_astray_is_not_believed(picture):
    wild = GradientConfig(steps=2, rays=128, learning_rate=0.1, judged_rays=300,
                          min_correlation=0.0)
    alignment = refine(picture, TRUTH, wild)
    assert alignment.map_from_camera is None and 'after the descent' in alignment.reason
    assert alignment.moved[1] > 0.05


def test_a_lens_must_be_undone_before(picture):
    lens = Camera('OPENCV', 80, 64, 64.0, 64.0, 39.5, 31.5, (-0.2, 0.04, 0.0, 0.0))
    with pytest.raises(DataError, match='OPENCV'):
        refine_by_gradient(FIELD, FRAME, lens, picture, TRUTH)
    with pytest.raises(DataError, match='64'):
        refine(picture[:, :32])


@pytest.mark.parametrize('values, words', [
    ({'steps': 0}, 'steps is 0'), ({'learning_rate': 0.0}, 'learning_rate is 0'),
    ({'min_points': 5}, 'min_points is 5'), ({'min_correlation': -0.1}, 'min_correlation'),
])
def test_values_that_no_descent_can_work_with_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        GradientConfig(**values)
