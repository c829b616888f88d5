"""Absolute pose from synthetic matches: accuracy, covariance, and refusal of what cannot work."""

import math

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import perturb, pose_difference, pose_distance, so3_exp
from nerfmatch_ros.localization import absolute_pose
from nerfmatch_ros.localization.absolute_pose import (
    AbsolutePoseOptions,
    floored,
    log10_false_alarms,
    MAX_CONDITION,
    pose_covariance,
    PoseEstimate,
    POSITION_FLOOR,
    ROTATION_FLOOR,
    SIGMA_FLOOR,
    solve_absolute_pose,
)
import numpy as np
import pytest
import torch

CAMERAS = {
    'pinhole': Camera('PINHOLE', 640, 480, 500, 510, 312, 239),
    'barrel': Camera('OPENCV', 640, 480, 450, 460, 312, 239, (-.28, .07, 2e-4, -2e-3)),
    'fisheye': Camera('OPENCV_FISHEYE', 640, 480, 220, 225, 312, 239, (.02, -.01, .003, -.001)),
    'rational': Camera(
        'RATIONAL', 640, 480, 500, 510, 312, 239, (.5, .1, 1e-3, 2e-3, .02, .6, .2, .05)),
}
every_camera = pytest.mark.parametrize('camera', CAMERAS.values(), ids=CAMERAS.keys())
POSE = np.eye(4)
POSE[:3, :3] = so3_exp(torch.tensor([0.3, -1.0, 0.2], dtype=torch.float64))
POSE[:3, 3] = 1, 2, -0.5


@pytest.fixture
def rng(generator):
    return np.random.default_rng(generator.initial_seed())


def scene(camera, count, rng, *, noise=0.0, outliers=0.0, nearest=2.0, farthest=6.0):
    """Draw matches seen from POSE; the first `outliers` share of them is wrong."""
    pixels = rng.uniform((0, 0), (camera.width - 1, camera.height - 1), (count, 2))
    rays = camera.rays(torch.from_numpy(pixels)).numpy()
    points = rays * rng.uniform(nearest, farthest, (count, 1)) @ POSE[:3, :3].T + POSE[:3, 3]
    pixels = pixels + noise * rng.normal(size=pixels.shape)
    wrong = int(outliers * count)
    pixels[:wrong] = rng.uniform((0, 0), (camera.width, camera.height), (wrong, 2))
    return pixels, points


def error(estimate, pose=POSE):
    assert estimate.map_from_camera is not None, estimate.reason
    return pose_distance(torch.from_numpy(estimate.map_from_camera), torch.from_numpy(pose))


def nees(pose, covariance):
    delta = pose_difference(torch.from_numpy(POSE), torch.from_numpy(pose)).numpy()
    return delta @ np.linalg.solve(covariance, delta)


def assert_refused(estimate, message):
    assert estimate.map_from_camera is None and estimate.covariance is None
    assert math.isnan(estimate.reprojection_error) and math.isnan(estimate.position_std)
    assert message in estimate.reason, estimate.reason


@every_camera
def test_exact_matches_give_the_exact_pose(camera, rng):
    estimate = solve_absolute_pose(*scene(camera, 60, rng), camera)
    metres, radians = error(estimate)
    assert metres < 1e-7 and radians < 1e-7
    assert estimate.inliers == estimate.matches == 60 and estimate.inlier_mask.all()
    assert estimate.reprojection_error < 1e-4 and estimate.reason == ''
    # Even then the covariance is that of matches good to the floor of sigma.
    assert estimate.position_std >= POSITION_FLOOR


@every_camera
def test_outliers_of_seventy_per_cent_are_found_out(camera, rng):
    pixels, points = scene(camera, 200, rng, noise=1.0, outliers=0.7)
    estimate = solve_absolute_pose(pixels, points, camera)
    metres, radians = error(estimate)
    assert metres < 0.02 and radians < math.radians(0.3)
    assert estimate.inlier_mask[140:].sum() >= 58
    assert estimate.inlier_mask[:140].sum() <= 4
    assert estimate.inliers == estimate.inlier_mask.sum() and estimate.matches == 200
    assert 1.0 < estimate.reprojection_error < 2.0


def test_the_edge_of_a_fisheye_counts_as_much_as_its_middle(rng):
    camera = CAMERAS['fisheye']
    pixels, points = scene(camera, 300, rng, noise=1.0)
    estimate = solve_absolute_pose(pixels, points, camera)
    edge = camera.rays(torch.from_numpy(pixels))[:, 2].numpy() < math.cos(math.radians(75))
    assert edge.sum() > 20 and estimate.inlier_mask[edge].mean() > 0.95


def test_the_same_matches_give_the_same_pose_bit_for_bit(rng):
    camera = CAMERAS['barrel']
    matches = scene(camera, 300, rng, noise=1.0, outliers=0.6)
    first, second = (solve_absolute_pose(*matches, camera) for _ in range(2))
    np.testing.assert_array_equal(first.map_from_camera, second.map_from_camera)
    np.testing.assert_array_equal(first.covariance, second.covariance)
    other = solve_absolute_pose(*matches, camera, options=AbsolutePoseOptions(seed=7))
    metres, _ = error(other, first.map_from_camera)
    assert metres < 1e-4


def test_a_map_far_from_its_origin_loses_no_digits(rng):
    camera = CAMERAS['pinhole']
    pixels, points = scene(camera, 100, rng, noise=1.0)
    near = solve_absolute_pose(pixels, points, camera)
    far = solve_absolute_pose(pixels, points + (5e5, -4e6, 100), camera)
    moved = far.map_from_camera.copy()
    moved[:3, 3] -= (5e5, -4e6, 100)
    np.testing.assert_allclose(moved, near.map_from_camera, atol=1e-6)
    np.testing.assert_allclose(far.covariance, near.covariance, rtol=1e-4, atol=1e-12)


def test_weights_move_the_pose_towards_trusted_matches(rng):
    camera = CAMERAS['pinhole']
    pixels, points = scene(camera, 100, rng)
    pixels[50:] += rng.normal(size=(50, 2))
    weights = np.r_[np.full(50, 1e6), np.ones(50)]
    options = AbsolutePoseOptions(robust=False)
    equal = solve_absolute_pose(pixels, points, camera, options=options)
    trusted = solve_absolute_pose(pixels, points, camera, weights=weights, options=options)
    assert error(trusted)[0] < 1e-4 < error(equal)[0]
    scaled = solve_absolute_pose(pixels, points, camera, weights=7 * weights, options=options)
    np.testing.assert_allclose(scaled.covariance, trusted.covariance, rtol=1e-9)


def slow_covariance(pixels, points, camera, pose, weights, point_covariances):
    """Sum over the matches one by one, with derivatives by finite differences."""
    def project(delta, point):
        moved = perturb(torch.from_numpy(pose), torch.from_numpy(delta)).numpy()
        return camera.project(torch.from_numpy(moved[:3, :3].T @ (point - moved[:3, 3]))).numpy()

    residuals = [pixel - project(np.zeros(6), point) for pixel, point in zip(pixels, points)]
    variance = sum(w * r @ r for w, r in zip(weights, residuals)) / (2 * len(pixels) - 6)
    variance = max(variance, SIGMA_FLOOR ** 2)
    normal = np.zeros((6, 6))
    for point, weight, spread in zip(points, weights, point_covariances):
        jacobian = np.stack([(project(h, point) - project(-h, point)) / 2e-6
                             for h in 1e-6 * np.eye(6)], axis=-1)
        by_point = np.stack([(project(np.zeros(6), point + h)
                              - project(np.zeros(6), point - h)) / 2e-6
                             for h in 1e-6 * np.eye(3)], axis=-1)
        noise = variance * np.eye(2) + by_point @ spread @ by_point.T
        normal += weight * jacobian.T @ np.linalg.inv(noise) @ jacobian
    return np.linalg.inv(normal)


@every_camera
@pytest.mark.parametrize('noise', [0.1, 2.0], ids=['below floor', 'above floor'])
def test_covariance_equals_a_slow_sum_with_finite_differences(camera, noise, rng):
    pixels, points = scene(camera, 12, rng, noise=noise)
    weights = rng.uniform(0.2, 1.8, 12)
    spreads = rng.normal(size=(12, 3, 3)) * 0.02
    spreads = spreads @ spreads.transpose(0, 2, 1)
    expected = slow_covariance(pixels, points, camera, POSE, weights, spreads)
    covariance, condition = pose_covariance(
        pixels, points, camera, POSE, weights=weights, point_covariances=spreads)
    assert 1 < condition < MAX_CONDITION
    np.testing.assert_allclose(covariance, expected, rtol=1e-4, atol=1e-10)


@pytest.mark.parametrize('name, count, robust', [
    ('pinhole', 40, False), ('barrel', 150, True), ('fisheye', 40, False), ('rational', 80, True)])
def test_covariance_is_calibrated(name, count, robust, rng):
    camera = CAMERAS[name]
    options = AbsolutePoseOptions(max_reprojection_error=8.0, robust=robust, min_iterations=50)
    values = []
    for _ in range(200):
        pixels, points = scene(camera, count, rng, noise=1.5)
        pose = solve_absolute_pose(pixels, points, camera, options=options).map_from_camera
        covariance, _ = pose_covariance(pixels, points, camera, pose, robust=robust)
        values.append(nees(pose, covariance))
    # Chi^2 with 6 degrees has mean 6; that of 200 solves scatters by 0.25. The sandwich of a
    # robust fit is itself estimated, which adds some.
    assert 5.2 < np.mean(values) < (7.4 if robust else 6.8)


def test_uncertain_points_widen_the_covariance_as_they_should(rng):
    camera, count = CAMERAS['pinhole'], 60
    values = []
    for _ in range(70):
        pixels, points = scene(camera, count, rng, noise=0.7)
        away = points - POSE[:3, 3]
        along = away / np.linalg.norm(away, axis=-1, keepdims=True)
        # Depth errors, as of a radiance field's surface seen from a place 1 m aside.
        along = along + (0.3, 0.1, -0.2)
        deviation = np.where(np.arange(count) % 2, 0.06, 0.005)[:, None] * along
        spreads = deviation[:, :, None] * deviation[:, None, :]
        points = points + rng.normal(size=(count, 1)) * deviation
        estimate = solve_absolute_pose(
            pixels, points, camera, point_covariances=spreads,
            options=AbsolutePoseOptions(max_reprojection_error=12.0, robust=False,
                                        min_iterations=50))
        values.append(nees(estimate.map_from_camera, estimate.covariance))
    # The residuals' variance holds the points' part too, so it errs on the safe side.
    assert 1.5 < np.mean(values) < 6.5


def test_covariance_of_the_solve_is_scaled_and_never_below_its_floors(rng):
    camera = CAMERAS['pinhole']
    matches = scene(camera, 300, rng, noise=0.2)
    one = solve_absolute_pose(*matches, camera)
    four = solve_absolute_pose(*matches, camera, options=AbsolutePoseOptions(covariance_scale=4.))
    np.testing.assert_allclose(four.covariance, 4 * one.covariance)
    assert four.position_std == pytest.approx(2 * one.position_std)
    floor = np.diag(np.repeat([POSITION_FLOOR, ROTATION_FLOOR], 3) ** 2)
    assert np.linalg.eigvalsh(one.covariance - floor).min() > -1e-12
    np.testing.assert_allclose(floored(np.zeros((6, 6))), floor, atol=1e-18)
    large = np.diag(np.arange(1., 7.))
    np.testing.assert_allclose(floored(large), large)


def test_position_std_is_along_the_least_certain_axis():
    covariance = np.diag([1e-4, 9e-4, 4e-4, 1., 1., 1.])
    estimate = PoseEstimate(np.eye(4), '', covariance, 10, 10, 1.0)
    assert estimate.position_std == pytest.approx(0.03)


def test_wrong_matches_alone_give_no_pose(rng):
    for count, limit in ((30, 4.0), (300, 16.0), (1000, 8.0)):
        estimate = solve_absolute_pose(
            *scene(CAMERAS['pinhole'], count, rng, outliers=1.0), CAMERAS['pinhole'],
            options=AbsolutePoseOptions(max_reprojection_error=limit, min_inliers=4,
                                        max_iterations=2000))
        assert_refused(estimate, 'may be chance')
        assert estimate.inliers == estimate.inlier_mask.sum() >= 4


def test_chance_explains_few_inliers_of_many_but_not_most_of_few():
    assert log10_false_alarms(1000, 12, 0.003) > 0 > log10_false_alarms(30, 12, 0.003)
    assert log10_false_alarms(1000, 60, 0.003) < -20


def test_chance_is_counted_as_the_binomial_distribution_counts_it():
    from scipy.special import gammaln
    from scipy.stats import binom
    for matches, inliers, chance in ((8, 4, 0.2), (30, 12, 0.003), (500, 500, 0.3),
                                     (1000, 60, 0.003), (4000, 4000, 1e-6), (50, 20, 1.0)):
        poses = np.log(4) + gammaln(matches + 1) - gammaln(matches - 2) - np.log(6)
        expected = (poses + binom.logsf(inliers - 4, matches - 3, chance)) / np.log(10)
        assert log10_false_alarms(matches, inliers, chance) == pytest.approx(expected, rel=1e-12)


def line(rng):
    return np.linspace((-1, 0.2, 3), (1, 0.4, 5), 50)


def nearly_a_line(rng):
    return line(rng) + 1e-7 * rng.normal(size=(50, 3))


def one_place(rng):
    return np.full((50, 3), (0.1, 0.2, 3.0))


def small_and_far(rng):
    return rng.uniform(-.01, .01, (50, 3)) + (0, 0, 100)


@pytest.mark.parametrize('make', [line, nearly_a_line, one_place, small_and_far])
@pytest.mark.parametrize('noise', [0.0, 0.3])
def test_points_that_do_not_fix_the_pose_are_refused(make, noise, rng):
    camera, in_camera = CAMERAS['pinhole'], make(rng)
    pixels = camera.project(torch.from_numpy(in_camera)).numpy()
    pixels = pixels + noise * rng.normal(size=pixels.shape)
    estimate = solve_absolute_pose(pixels, in_camera @ POSE[:3, :3].T + POSE[:3, 3], camera)
    assert_refused(estimate, '50')


def test_points_behind_the_camera_are_refused(rng):
    pixels, points = scene(CAMERAS['pinhole'], 100, rng)
    estimate = solve_absolute_pose(pixels, 2 * POSE[:3, 3] - points, CAMERAS['pinhole'])
    assert_refused(estimate, '100 matches')


def moved(metres, radians):
    delta = torch.tensor([metres, -metres, metres, radians, radians, -radians]).double()
    return perturb(torch.from_numpy(POSE), delta).numpy()


@every_camera
def test_a_guess_that_most_matches_agree_with_needs_no_search(camera, rng, monkeypatch):
    pixels, points = scene(camera, 200, rng, noise=0.5, outliers=0.3)
    searched = solve_absolute_pose(pixels, points, camera)
    monkeypatch.setattr(absolute_pose, '_ransac', None)
    found = solve_absolute_pose(pixels, points, camera, guess=moved(0.02, 0.005))
    assert error(found, searched.map_from_camera)[0] < 1e-4
    assert abs(found.inliers - searched.inliers) <= 1
    np.testing.assert_allclose(np.diag(found.covariance), np.diag(searched.covariance), rtol=0.2)


@pytest.mark.parametrize('outliers, guess', [
    (0.3, moved(1.0, 0.5)), (0.7, moved(0.0, 0.0)), (0.3, np.full((4, 4), np.nan))],
    ids=['far off', 'minority', 'not finite'])
def test_another_guess_changes_nothing(outliers, guess, rng):
    camera = CAMERAS['pinhole']
    pixels, points = scene(camera, 200, rng, noise=0.5, outliers=outliers)
    alone = solve_absolute_pose(pixels, points, camera)
    guessed = solve_absolute_pose(pixels, points, camera, guess=guess)
    np.testing.assert_array_equal(guessed.map_from_camera, alone.map_from_camera)


def test_the_budget_of_the_search_follows_the_inlier_ratio_that_is_asked_for():
    budget = [absolute_pose._iterations(ratio, 20000) for ratio in (0, 0.02, 0.1, 0.5, 1)]
    assert budget == [20000, 20000, 9206, 1000, 1000]
    assert absolute_pose._iterations(0.5, 300) == 300


def test_too_few_inliers_are_refused_with_the_numbers(rng):
    camera = CAMERAS['pinhole']
    pixels, points = scene(camera, 100, rng, outliers=0.7)
    few = solve_absolute_pose(pixels, points, camera, options=AbsolutePoseOptions(min_inliers=40))
    assert_refused(few, 'inliers of 100 matches within 4 px; 40 are needed')
    ratio = AbsolutePoseOptions(min_inlier_ratio=0.5)
    low = solve_absolute_pose(pixels, points, camera, options=ratio)
    assert_refused(low, 'inliers of 100 matches are 3')
    assert '50.0 % are needed' in low.reason and low.inliers >= 30


@pytest.mark.parametrize('count', [0, 1, 3, 11])
def test_too_few_matches_are_refused(count, rng):
    estimate = solve_absolute_pose(*scene(CAMERAS['pinhole'], count, rng), CAMERAS['pinhole'])
    assert_refused(estimate, f'{count} matches; 12 inliers are needed')
    assert estimate.matches == count and estimate.inliers == 0


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf, 1e300])
def test_numbers_that_are_none_are_left_out(bad, rng):
    camera = CAMERAS['barrel']
    pixels, points = scene(camera, 60, rng, noise=0.5)
    pixels[:10, 1], points[10:20, 2] = bad, bad
    weights = np.ones(60)
    weights[20:25], weights[25:30] = (bad if bad != 1e300 else 0), -1
    estimate = solve_absolute_pose(pixels, points, camera, weights=weights)
    assert error(estimate)[0] < 0.02
    assert not estimate.inlier_mask[:30].any() and estimate.inlier_mask[30:].all()
    assert np.isfinite(estimate.covariance).all()
    points[:] = bad
    refused = solve_absolute_pose(pixels, points, camera)
    assert_refused(refused, '60 matches, 60 of them not finite')


def test_arguments_stay_as_they_were(rng):
    matches = scene(CAMERAS['fisheye'], 40, rng)
    copies = [array.copy() for array in matches]
    solve_absolute_pose(*matches, CAMERAS['fisheye'])
    for array, copy in zip(matches, copies):
        np.testing.assert_array_equal(array, copy)


def test_wrong_shapes_and_options_are_errors_with_the_value():
    camera = CAMERAS['pinhole']
    with pytest.raises(DataError, match=r'points have shape \(4, 3\); for 5 matches'):
        solve_absolute_pose(np.zeros((5, 2)), np.zeros((4, 3)), camera)
    with pytest.raises(DataError, match=r'pixels have shape \(5, 3\)'):
        solve_absolute_pose(np.zeros((5, 3)), np.zeros((5, 3)), camera)
    with pytest.raises(DataError, match='1 of 5 inliers'):
        pose_covariance(np.zeros((5, 2)), np.ones((5, 3)), camera, POSE,
                        weights=np.array([1, 1, 0, 1, 1]))
    for change, message in (
            ({'max_reprojection_error': 0}, 'max_reprojection_error is 0'),
            ({'covariance_scale': math.nan}, 'covariance_scale is nan'),
            ({'min_inliers': 3}, 'min_inliers is 3'), ({'seed': -1}, 'seed is -1'),
            ({'min_inlier_ratio': 1.5}, 'min_inlier_ratio is 1.5'),
            ({'min_iterations': 9, 'max_iterations': 5}, 'max_iterations 5')):
        with pytest.raises(ConfigError, match=message):
            AbsolutePoseOptions(**change)
