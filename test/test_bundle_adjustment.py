"""Bundle adjustment against numbers from slow, obvious arithmetic and sampled truths."""

from camera_ring import CAMERA, errors, FISHEYE, ring, roughened, wall_points
from nerfmatch_ros.mapping.bundle_adjustment import (
    adjust,
    angular_errors,
    moved,
    Observations,
    pose_covariances,
)
from nerfmatch_ros.mapping.pose_factors import AbsolutePoses, Motions, Upright
import numpy as np
import pytest
from scipy.optimize import least_squares
import torch


def sightings(poses, points, camera, rng, noise):
    """Let every camera see the points in its picture; noise: radians."""
    image, point, rays = [], [], []
    for k, pose in enumerate(poses):
        inside = (points - pose[:3, 3]) @ pose[:3, :3]
        seen = np.flatnonzero(camera.sees(torch.from_numpy(inside)).numpy())
        ray = inside[seen] / np.linalg.norm(inside[seen], axis=-1, keepdims=True)
        ray += noise * rng.normal(size=ray.shape)
        image.append(np.full(len(seen), k))
        point.append(seen)
        rays.append(ray / np.linalg.norm(ray, axis=-1, keepdims=True))
    image = np.concatenate(image)
    return Observations(image, np.concatenate(point), np.concatenate(rays),
                        np.full(len(image), max(noise, 1e-3)))


def scene(seed, count=8, points=150, camera=CAMERA, noise=1e-3):
    rng = np.random.default_rng(seed)
    poses = ring(count, turns=0.15)
    points = wall_points(points * 8, 6.0, rng)  # most of them out of sight
    observations = sightings(poses, points, camera, rng, noise)
    keep = np.bincount(observations.point, minlength=len(points)) > 1
    number = np.cumsum(keep) - 1
    chosen = observations.chosen(keep[observations.point])
    return rng, poses, points[keep], Observations(
        chosen.image, number[chosen.point], chosen.rays, chosen.sigma)


def anchored(poses, sigma=(1e-4, 1e-4)):
    """Hold the first and the last pose, which fixes scale as well."""
    ends = np.array((0, len(poses) - 1))
    return AbsolutePoses(ends, poses[ends], np.array([sigma] * 2))


@pytest.mark.parametrize('camera', [CAMERA, FISHEYE], ids=['pinhole', 'fisheye'])
@pytest.mark.parametrize('wrong', [0.0, 0.1])
def test_poses_and_points_are_found_from_rough_ones(camera, wrong):
    rng, truth, points, observations = scene(1, camera=camera, noise=1e-4)
    rays = observations.rays.copy()
    astray = rng.random(len(rays)) < wrong
    rays[astray] += 0.3 * rng.normal(size=(astray.sum(), 3))
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    observations = Observations(observations.image, observations.point, rays, observations.sigma)
    rough = roughened(truth, rng, 0.05, 0.03)
    rough[[0, -1]] = truth[[0, -1]]
    result = adjust(rough, points + 0.2 * rng.normal(size=points.shape), observations,
                    [anchored(truth)], loss_scale=5.0)
    metres, radians = errors(result.poses, truth)
    assert errors(rough, truth)[0].mean() > 0.03
    assert result.converged
    assert metres.max() < (0.01 if wrong else 0.003) and radians.max() < 0.003


def test_fixed_rotations_stay_and_positions_are_found():
    rng, truth, points, observations = scene(2, noise=1e-4)
    rough = truth.copy()
    rough[1:-1, :3, 3] += 0.3 * rng.normal(size=(len(truth) - 2, 3))
    result = adjust(rough, points + rng.normal(size=points.shape), observations,
                    [anchored(truth)], loss_scale=20.0, rotations_fixed=True)
    metres, radians = errors(result.poses, truth)
    assert metres.max() < 0.01
    assert radians.max() < 1e-7


def test_elimination_of_the_points_finds_what_dense_least_squares_finds():
    rng, truth, points, observations = scene(3, count=4, points=70)
    factors = [anchored(truth, (0.01, 0.01))]
    poses = roughened(truth, rng, 1e-2, 1e-2)
    rough = points + 0.02 * rng.normal(size=points.shape)

    def residuals(x):
        new = moved(poses, x[:24].reshape(4, 6))
        pose, at = new[observations.image], rough + x[24:].reshape(-1, 3)
        offset = at[observations.point] - pose[:, :3, 3]
        inside = (pose[:, :3, :3].transpose(0, 2, 1) @ offset[..., None])[..., 0]
        inside /= np.linalg.norm(inside, axis=-1, keepdims=True)
        seen = (inside - observations.rays) / observations.sigma[:, None]
        return np.concatenate((seen.ravel(), factors[0].linearise(new).residual.ravel()))

    dense = least_squares(residuals, np.zeros(24 + points.size), xtol=1e-12, ftol=1e-12)
    ours = adjust(poses, rough, observations, factors, loss_scale=np.inf, tolerance=1e-12)
    np.testing.assert_allclose(ours.cost, dense.cost, rtol=1e-6)
    np.testing.assert_allclose(ours.poses, moved(poses, dense.x[:24].reshape(4, 6)), atol=1e-4)
    covariance = np.linalg.inv(dense.jac.T @ dense.jac)
    stated = pose_covariances(ours.poses, ours.points, observations, factors, loss_scale=np.inf)
    for k in range(4):
        block = covariance[6 * k:6 * k + 6, 6 * k:6 * k + 6]
        # The parameters are of the rough pose; a turn by a degree changes little.
        np.testing.assert_allclose(stated[k], block, atol=0.05 * abs(block).max())


def test_turning_everything_costs_nothing_without_a_prior():
    """What sightings alone cannot know must not look known, however badly they fit."""
    rng, truth, points, observations = scene(4, noise=5e-3)
    loose = AbsolutePoses(np.arange(8), truth, np.tile((1.0, 1.0), (8, 1)))
    covariances = pose_covariances(truth, points, observations, [loose], loss_scale=np.inf)
    spread = np.sqrt(((truth[:, :3, 3] - truth[:, :3, 3].mean(0)) ** 2).sum(0))
    # About z, eight rotations of a radian and eight positions of a metre are all there is.
    expected = 1 / np.sqrt(8 + spread[0] ** 2 + spread[1] ** 2)
    assert np.sqrt(covariances[:, 5, 5]).min() > 0.9 * expected


def test_stated_covariances_are_those_of_repeated_measurements():
    drawn = []
    for seed in range(30):
        rng = np.random.default_rng(100 + seed)
        truth = ring(5, turns=0.1)
        points = wall_points(1500, 6.0, np.random.default_rng(5))
        observations = sightings(truth, points, CAMERA, rng, 2e-3)
        count = np.bincount(observations.point, minlength=len(points))
        observations = observations.chosen(count[observations.point] > 1)
        factors = [anchored(truth)]
        result = adjust(truth, points, observations, factors, loss_scale=np.inf, tolerance=1e-8)
        stated = pose_covariances(truth, points, observations, factors, loss_scale=np.inf)
        drawn.append(((result.poses - truth)[2, :3, 3] ** 2) / np.diag(stated[2])[:3])
    assert 0.6 < np.mean(drawn) < 1.6


def test_a_frame_that_sees_nothing_follows_odometry():
    rng, truth, points, observations = scene(6, noise=1e-4)
    observations = observations.chosen(observations.image != 4)
    motions = np.linalg.inv(truth[:-1]) @ truth[1:]
    odometry = Motions(np.arange(7), np.arange(1, 8), motions, np.tile((0.01, 0.01), (7, 1)))
    rough = roughened(truth, rng, 0.1, 0.05)
    rough[[0, -1]] = truth[[0, -1]]
    result = adjust(rough, points, observations, [anchored(truth), odometry], loss_scale=3.0)
    metres, radians = errors(result.poses, truth)
    assert metres[4] < 0.002 and radians[4] < 0.002


@pytest.mark.parametrize('kind', ['absolute', 'motion', 'upright'])
def test_derivatives_of_factors_are_those_of_differences(kind):
    rng = np.random.default_rng(7)
    poses = roughened(ring(4), rng, 0.5, 0.5)
    other = roughened(poses, rng, 0.3, 0.4)
    sigma = np.tile((0.5, 0.2), (3, 1))
    first, second = np.array((0, 1, 3)), np.array((1, 2, 0))
    factor = {
        'absolute': AbsolutePoses(first, other[first], sigma),
        'motion': Motions(first, second, np.linalg.inv(other[first]) @ other[second], sigma),
        'upright': Upright(first, other[first], 0.1)}[kind]
    linear = factor.linearise(poses)
    for index, jacobian in ((linear.first, linear.first_jacobian),
                            (linear.second, linear.second_jacobian)):
        if index is None:
            continue
        for column in range(6):
            for row, k in enumerate(index):
                step = np.zeros((4, 6))
                step[k, column] = 1e-6
                ahead = factor.linearise(moved(poses, step)).residual[row]
                back = factor.linearise(moved(poses, -step)).residual[row]
                np.testing.assert_allclose(jacobian[row, :, column], (ahead - back) / 2e-6,
                                           atol=1e-4)


def test_errors_are_angles_in_sigmas():
    poses, points = np.eye(4)[None], np.array([(0.0, 0.01, 1.0)])
    observations = Observations(np.array([0]), np.array([0]), np.array([(0.0, 0, 1)]),
                                np.array([0.005]))
    np.testing.assert_allclose(angular_errors(poses, points, observations), [2.0], rtol=1e-3)
