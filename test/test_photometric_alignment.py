"""Photometric alignment on a textured room in closed form: exactness, invariance, refusals."""

from dataclasses import replace
import math

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, perturb, pose_distance, transform_points
from nerfmatch_ros.localization import photometric_alignment
from nerfmatch_ros.localization.photometric_alignment import align, PhotometricConfig
from nerfmatch_ros.localization.picture_texture import (
    blurred,
    choose_pixels,
    slopes_of,
    texture_of,
)
import numpy as np
import pytest
import torch

CAMERA = Camera('PINHOLE', 160, 128, 120.0, 118.0, 78.0, 65.0)
HALVES = torch.tensor([2.0, 1.5, 2.5], dtype=torch.float64)  # of the room, metres
TRUE = perturb(torch.eye(4, dtype=torch.float64), torch.tensor(
    [0.2, -0.1, 0.3, 0.1, 0.3, -0.05], dtype=torch.float64))
NEAR = torch.tensor([0.003, -0.002, 0.003, 0.002, -0.002, 0.001], dtype=torch.float64)
# 5 cm and 2 degrees.
FAR = torch.tensor([0.03, -0.03, 0.0265, 0.02, -0.02, 0.0204], dtype=torch.float64)
CONFIG = PhotometricConfig(levels=(4.0, 1.5, 0.0), rays=1500, iterations=20)
DEVICES = ['cpu'] + ['cuda'] * torch.cuda.is_available()


def walls(pose):
    """Points (h * w, 3) of the room that the pixels of the camera see from a pose, metres."""
    directions = CAMERA.rays(CAMERA.pixel_grid(dtype=torch.float64)) @ pose[:3, :3].T
    reach = ((directions.sign() * HALVES - pose[:3, 3]) / directions).amin(-1)
    return pose[:3, 3] + reach[:, None] * directions


def paint(points):
    """Colours (N, 3) of points of the walls: waves of 0.5 to 1.5 metres in all directions."""
    waves = torch.tensor([[7., 3., -4.], [-5., 8., 2.], [3., -4., 9.], [10., 5., 6.]]).double()
    phase = points @ waves.T
    return 0.5 + 0.2 * torch.stack((
        phase[:, 0].sin() + phase[:, 3].cos(), phase[:, 1].sin() - phase[:, 2].cos(),
        phase[:, 2].sin() + phase[:, 0].cos() * phase[:, 1].sin()), dim=-1)


def photograph(pose=TRUE):
    return paint(walls(pose)).T.reshape(3, CAMERA.height, CAMERA.width).float()


def reference(pose, count=1500):
    """Points and their colours at the steepest pixels as seen from a pose."""
    pixels = choose_pixels(photograph(pose), count).long()
    points = walls(pose)[pixels[:, 1] * CAMERA.width + pixels[:, 0]]
    return points, paint(points)


def distance(alignment, pose=TRUE):
    assert alignment.map_from_camera is not None, alignment.reason
    metres, radians = pose_distance(torch.from_numpy(alignment.map_from_camera), pose)
    return float(metres), math.degrees(radians)


def test_the_jacobian_is_that_of_the_residual(monkeypatch):
    """On a picture that is a plane in colour, slopes and interpolation are exact."""
    monkeypatch.setattr(photometric_alignment, '_REWEIGHTINGS', 1)  # least squares: gain is exact
    # Slanted differently in every channel; the points have colours that gain cannot follow.
    grid = CAMERA.pixel_grid(dtype=torch.float64)
    slants = torch.tensor([[1., 2.], [-2., 1.], [1.5, -1.]]).double() / 400
    picture = (0.5 + grid @ slants.T).T.reshape(3, CAMERA.height, CAMERA.width)
    points, colours = reference(TRUE)
    seen = CAMERA.project(transform_points(inverse(TRUE), points))
    kept = texture_of(picture).holds(seen) & ((seen - 70).abs() < 50).all(-1)
    level = photometric_alignment._Level(
        points[kept], colours[kept], None, texture_of(picture), CAMERA)
    config = PhotometricConfig(loss_scale=1e6, least_loss_scale=1e6)  # all weights are 1

    def squares(delta):
        compared = photometric_alignment._compare(level, perturb(TRUE, delta)[None], config)
        assert compared.inside.all()
        # The small ridge on the gain is part of what is minimised.
        return float(compared.squared.sum() + len(level.points) * photometric_alignment.
                     _GAIN_RIDGE * ((compared.gain - 1) ** 2).sum()) / 2

    compared = photometric_alignment._compare(level, TRUE[None], config)
    _, gradient = photometric_alignment._normal_equations(level, compared, TRUE[None])
    step = 1e-5
    numeric = torch.tensor([(squares(step * unit) - squares(-step * unit)) / (2 * step)
                            for unit in torch.eye(6, dtype=torch.float64)]).double()
    torch.testing.assert_close(gradient[0], numeric, rtol=0, atol=1e-4 * float(numeric.norm()))
    assert (gradient.abs() > 1e-3).all()


def test_the_normal_matrix_predicts_the_cost():
    """Around a perfect fit the cost is half delta^T H delta, with gain and bias free."""
    points, colours = reference(TRUE)
    picture = photograph().double()
    level = photometric_alignment._Level(points, colours, None, texture_of(picture), CAMERA)
    config = PhotometricConfig(loss_scale=1e6, least_loss_scale=1e6)
    compared = photometric_alignment._compare(level, TRUE[None], config)
    normal, _ = photometric_alignment._normal_equations(level, compared, TRUE[None])
    for delta in 1e-3 * torch.eye(6, dtype=torch.float64):
        moved = photometric_alignment._compare(level, perturb(TRUE, delta)[None], config)
        both = compared.inside & moved.inside
        rise = float(((moved.squared - compared.squared) * both).sum())
        assert rise == pytest.approx(float(delta @ normal[0] @ delta), rel=0.1)


@pytest.mark.parametrize('device', DEVICES)
def test_the_pose_is_recovered_exactly(device):
    start = perturb(TRUE, FAR)
    points, colours = reference(start)
    result = align(points.to(device), colours.to(device), photograph().to(device), CAMERA,
                   start.numpy(), CONFIG)
    metres, degrees = distance(result)
    assert metres < 1e-3 and degrees < 0.03
    assert result.moved == pytest.approx(
        (float(FAR[:3].norm()), float(FAR[3:].norm())), rel=0.05)
    assert result.residual_after < 0.1 * result.residual_before
    assert result.correlation > 0.99 and result.gain == pytest.approx((1, 1, 1), abs=0.02)
    assert result.points == pytest.approx(result.overlap * len(points))


def test_poses_together_end_where_each_ends_alone():
    points, colours = reference(TRUE)
    starts = perturb(TRUE, torch.stack((NEAR, FAR, -FAR)))
    together = align(points, colours, photograph(), CAMERA, starts, CONFIG)
    for start, result in zip(starts, together):
        alone = align(points, colours, photograph(), CAMERA, start, CONFIG)
        assert alone.iterations == result.iterations
        np.testing.assert_allclose(result.map_from_camera, alone.map_from_camera, atol=1e-9)
        np.testing.assert_allclose(result.covariance, alone.covariance, rtol=1e-6)
        assert distance(result)[0] < 1e-3


def test_exposure_and_tint_change_nothing_but_the_gain():
    start = perturb(TRUE, FAR)
    points, colours = reference(start)
    tint, haze = torch.tensor([0.5, 0.7, 1.4]), torch.tensor([0.2, 0.05, -0.1])
    result = align(points, colours, photograph() * tint[:, None, None] + haze[:, None, None],
                   CAMERA, start, CONFIG)
    assert distance(result)[0] < 1e-3
    assert result.gain == pytest.approx(tint.tolist(), rel=0.02)


def test_occluders_do_not_pull(generator):
    picture = photograph()
    for k in range(8):  # 20 % of the pixels
        top, left = 16 * k % 100, 19 * k
        picture[:, top:top + 27, left:left + 19] = torch.rand(3, 1, 1, generator=generator)
    assert 0.15 < (picture != photograph()).any(0).float().mean() < 0.25
    start = perturb(TRUE, FAR)
    points, colours = reference(start)
    result = align(points, colours, picture, CAMERA, start, CONFIG)
    metres, degrees = distance(result)
    assert metres < 5e-3 and degrees < 0.15
    pulled = align(points, colours, picture, CAMERA, start, replace(CONFIG, least_loss_scale=10.))
    assert distance(pulled)[0] > 3 * metres


def test_the_covariance_is_that_of_the_scatter(generator):
    points, colours = reference(TRUE)
    noisy = [align(points, colours + 0.03 * torch.randn(colours.shape, generator=generator),
                   photograph(), CAMERA, TRUE, replace(CONFIG, levels=(0.0,)))
             for _ in range(40)]
    truth = TRUE.numpy()
    moved = np.array([result.map_from_camera[:3, 3] - truth[:3, 3] for result in noisy])
    expected = np.mean([np.diag(result.covariance)[:3] for result in noisy], axis=0)
    ratio = (moved ** 2).mean(0) / expected
    assert (ratio > 0.4).all() and (ratio < 2.5).all()


def test_slopes_of_the_points_lead_to_the_same_place():
    start = perturb(TRUE, FAR)
    pixels = choose_pixels(photograph(start), 1500).long()
    index = pixels[:, 1] * CAMERA.width + pixels[:, 0]
    levels = [blurred(photograph(start), sigma) for sigma in CONFIG.levels]
    result = align(
        walls(start)[index], torch.stack([level.flatten(1)[:, index].T for level in levels]),
        photograph(), CAMERA, start, CONFIG,
        slopes=torch.stack([slopes_of(level).flatten(2)[..., index].permute(2, 1, 0)
                            for level in levels]))
    assert distance(result)[0] < 1e-3


def test_what_leaves_the_picture_costs_what_it_cost_before():
    points, colours = reference(TRUE)
    level = photometric_alignment._Level(
        points, colours + 0.1 * colours.roll(1, 0), None, texture_of(photograph()), CAMERA)
    compared = photometric_alignment._compare(level, TRUE[None], CONFIG)
    charge = photometric_alignment._charge(compared)
    away = perturb(TRUE, torch.tensor([0., 0., 0., 0., math.pi, 0.]).double())
    gone = photometric_alignment._compare(level, away[None], CONFIG, compared.scale)
    assert not gone.inside.any()
    cost, left = (photometric_alignment._cost(at, charge) for at in (compared, gone))
    torch.testing.assert_close(left, cost)


@pytest.mark.parametrize('picture, words', [
    (torch.full((3, 128, 160), 0.5), 'do not fix the pose'),
    (torch.linspace(0, 1, 160).expand(3, 128, 160), 'do not fix the pose'),
    (1 - photograph(), 'correlate'),
])
def test_a_picture_that_says_nothing_is_refused(picture, words):
    points, colours = reference(TRUE)
    result = align(points, colours, picture, CAMERA, TRUE, CONFIG)
    assert result.map_from_camera is None and result.covariance is None
    assert words in result.reason


def test_too_few_points_and_too_little_overlap_are_refused():
    points, colours = reference(TRUE)
    few = align(points[:50], colours[:50], photograph(), CAMERA, TRUE, CONFIG)
    assert few.map_from_camera is None and '50 points' in few.reason
    aside = perturb(TRUE, torch.tensor([0., 0., 0., 0., 0.6, 0.]).double())
    beside, behind = align(points, colours, photograph(), CAMERA, torch.stack((
        aside, perturb(TRUE, torch.tensor([0., 0., 0., 0., math.pi, 0.]).double()))),
        replace(CONFIG, min_overlap=0.9))
    assert '90 % are needed' in beside.reason
    assert behind.reason.startswith('0 points lie inside')


def test_wrong_use_is_named():
    points, colours = reference(TRUE)
    with pytest.raises(DataError, match='working picture'):
        align(points, colours, photograph()[:, 1:], CAMERA, TRUE)
    lens = Camera('OPENCV', 160, 128, 120.0, 118.0, 78.0, 65.0, (-0.2, 0.05, 0.0, 0.0))
    with pytest.raises(DataError, match='OPENCV'):
        align(points, colours, photograph(), lens, TRUE)
    for wrong in ({'levels': ()}, {'rays': 0}, {'loss_scale': math.nan}, {'min_overlap': 1.5}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            PhotometricConfig(**wrong)
