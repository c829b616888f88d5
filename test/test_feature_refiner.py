"""Feature-metric refinement on a textured plane in closed form."""

from dataclasses import replace
from types import SimpleNamespace

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import perturb, pose_difference, pose_distance
from nerfmatch_ros.localization.feature_refiner import (
    _compare,
    _level,
    FeatureConfig,
    refine_by_features,
)
from nerfmatch_ros.matching.matcher import ImageTokens, MatcherConfig, PointTokens
import numpy as np
import pytest
import torch
from torch.nn import functional

CAMERA = Camera('PINHOLE', 128, 96, 100.0, 100.0, 63.5, 47.5)
MATCHER = SimpleNamespace(config=MatcherConfig())
TRUTH = perturb(torch.eye(4, dtype=torch.float64), torch.tensor(
    [0.3, -0.2, 0.1, 0.2, -0.3, 0.1], dtype=torch.float64))
START = perturb(TRUTH, torch.tensor(
    [0.03, -0.03, 0.025, 0.02, -0.02, 0.02], dtype=torch.float64))
WAVES = torch.tensor(np.random.default_rng(5).uniform(-6, 6, (10, 3)))


def on_plane(pixels):
    """Where the rays of pixels (N, 2) from the true pose meet the plane z = 2 - x / 4."""
    directions = CAMERA.rays(pixels) @ TRUTH[:3, :3].T
    normal = torch.tensor([0.25, 0, 1], dtype=torch.float64)
    distance = (2 - TRUTH[:3, 3] @ normal) / (directions @ normal)
    return TRUTH[:3, 3] + distance[:, None] * directions


def features_at(points):
    return torch.cat(((points @ WAVES.T).sin(), (points @ WAVES.T).cos()), -1)


def scene(noise=0.0, generator=None):
    """Tokens of the image, points, tokens of the points."""
    fine = features_at(on_plane(CAMERA.pixel_grid(2, dtype=torch.float64)))
    if noise:
        fine = functional.normalize(fine, dim=-1)
        fine = fine + noise * torch.randn(fine.shape, generator=generator, dtype=torch.float64)
    fine = fine.T.reshape(1, -1, CAMERA.height // 2, CAMERA.width // 2)
    points = on_plane(CAMERA.pixel_grid(4, dtype=torch.float64))
    return (ImageTokens(torch.zeros(1, 1), fine.float(), 12, 16), points,
            PointTokens(torch.zeros(len(points), 1), features_at(points).float()))


def refine(tokens, points, point_tokens, start=START, config=None, matcher=MATCHER):
    return refine_by_features(matcher, tokens, points, point_tokens, CAMERA, start.numpy(),
                              config)


def distance(alignment):
    assert alignment.reason == ''
    metres, radians = pose_distance(torch.from_numpy(alignment.map_from_camera), TRUTH)
    return metres.item(), radians.item()


def test_the_pose_is_recovered_from_5_cm_and_2_degrees():
    alignment = refine(*scene())
    metres, radians = distance(alignment)
    assert metres < 0.003 and radians < 0.002
    assert alignment.residual_after < 0.1 * alignment.residual_before
    assert alignment.correlation > 0.98 and alignment.overlap > 0.8
    assert 0.04 < alignment.moved[0] < 0.06 and alignment.iterations >= 2
    assert alignment.points > 600 and alignment.gain == ()


def test_the_derivative_agrees_with_differences():
    tokens, points, point_tokens = scene()
    features = functional.normalize(point_tokens.fine.double(), dim=-1)
    level = _level(tokens.fine[0], 0.0, points, features, CAMERA)
    inner = _compare(level, START).inside
    pull, numeric = _compare(level, START).pull[inner].sum(0), []
    for delta in 1e-3 * torch.eye(6, dtype=torch.float64):
        values = [_compare(level, perturb(START, sign * delta)) for sign in (1, -1)]
        both = values[0].inside & values[1].inside & inner
        numeric.append((values[0].squared - values[1].squared)[both].sum() / 4e-3)
    torch.testing.assert_close(pull, torch.stack(numeric), rtol=0.05, atol=0.02 * pull.norm())


def test_occluders_hardly_move_the_pose(generator):
    tokens, points, point_tokens = scene()
    fine = tokens.fine.clone()
    # 20 % of the image, in patches
    for row, column in ((4, 6), (4, 40), (30, 8), (28, 44)):
        patch = fine[0, :, row:row + 12, column:column + 13]
        patch.copy_(torch.randn(patch.shape, generator=generator))
    metres, radians = distance(refine(replace(tokens, fine=fine), points, point_tokens))
    assert metres < 0.01 and radians < 0.006


def test_the_length_of_features_does_not_matter():
    tokens, points, point_tokens = scene()
    longer = refine(replace(tokens, fine=8 * tokens.fine), points,
                    replace(point_tokens, fine=0.5 * point_tokens.fine))
    np.testing.assert_allclose(longer.map_from_camera,
                               refine(tokens, points, point_tokens).map_from_camera, atol=1e-5)


def test_the_covariance_is_that_of_the_errors(generator):
    exact = torch.from_numpy(refine(*scene()).map_from_camera)
    config, squares = FeatureConfig(levels=(0.0,), loss_scale=5.0), []
    for _ in range(12):
        alignment = refine(*scene(0.1, generator), start=exact, config=config)
        error = pose_difference(exact, torch.from_numpy(alignment.map_from_camera)).numpy()
        squares.append(error @ np.linalg.solve(alignment.covariance, error))
        np.testing.assert_array_equal(alignment.covariance, alignment.covariance.T)
    assert 2 < np.mean(squares) < 14  # 6 are expected; interpolation averages some noise away


def test_points_that_leave_the_image_do_not_draw_the_pose_along():
    tokens, points, point_tokens = scene()
    beside = on_plane(CAMERA.pixel_grid(4, dtype=torch.float64) + torch.tensor([60.0, 0.0]))
    points = torch.cat((points, beside))
    point_tokens = replace(point_tokens, fine=features_at(points).float())
    alignment = refine(tokens, points, point_tokens)
    assert distance(alignment)[0] < 0.003 and 0.5 < alignment.overlap < 0.8


def test_what_fixes_no_pose_has_a_reason():
    tokens, points, point_tokens = scene()
    without = SimpleNamespace(config=MatcherConfig(fine=False))
    away = TRUTH.clone()
    away[:3, :3] = away[:3, :3] @ torch.diag(torch.tensor([-1.0, 1, -1], dtype=torch.float64))
    flat = replace(tokens, fine=torch.ones_like(tokens.fine))
    unlike = replace(point_tokens, fine=-point_tokens.fine)
    shifted = perturb(TRUTH, torch.tensor([1.5, 0, 0, 0, 0, 0], dtype=torch.float64))
    for alignment, words in (
            (refine(tokens, points, point_tokens, matcher=without), 'no fine stage'),
            (refine(tokens, points[:50], PointTokens(None, point_tokens.fine[:50])), '50 points'),
            (refine(tokens, points, point_tokens, start=away), '0 points lie inside'),
            (refine(tokens, points, point_tokens, start=shifted,
                    config=FeatureConfig(iterations=1, min_overlap=0.9)), 'lie inside the image'),
            (refine(flat, points, point_tokens), 'do not fix the pose'),
            (refine(tokens, points, unlike, config=FeatureConfig(iterations=1)), 'cosine')):
        assert alignment.map_from_camera is None and alignment.covariance is None
        assert words in alignment.reason


@pytest.mark.parametrize('values, words', [
    ({'iterations': 0}, 'iterations is 0'), ({'min_points': 3}, 'min_points is 3'),
    ({'loss_scale': 0.0}, 'loss_scale is 0'), ({'min_overlap': 1.5}, 'min_overlap is 1.5'),
    ({'levels': ()}, 'levels are'), ({'levels': (-1.0,)}, 'levels are'),
])
def test_values_that_no_alignment_can_work_with_are_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        FeatureConfig(**values)
