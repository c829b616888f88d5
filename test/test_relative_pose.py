"""Relative poses of two cameras from rays, and rotations of many from turns between pairs."""

import math

from camera_ring import CAMERA, FISHEYE, look, turned
from nerfmatch_ros.mapping.relative_pose import relative_pose
from nerfmatch_ros.mapping.rotation_averaging import average_rotations
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

FIRST = look((0, 0, 0), (1, 0, 0))
SECOND = look((0.3, 0.5, 0.1), (1, -0.2, 0.1))


def rays_of(pose, points, camera, rng, noise=0.3):
    """Give the rays (N, 3) of points with noise in pixels, and what a pixel spans (N,)."""
    inside = torch.from_numpy((points - pose[:3, 3]) @ pose[:3, :3])
    pixels = camera.project(inside) + noise * torch.from_numpy(rng.normal(size=(len(points), 2)))
    rays, beside = camera.rays(pixels).numpy(), camera.rays(pixels + 0.5).numpy()
    return rays, np.linalg.norm(rays - beside, axis=-1) * math.sqrt(2)


def angle(rotation, other):
    return Rotation.from_matrix(rotation.T @ other).magnitude()


@pytest.mark.parametrize('camera', [CAMERA, FISHEYE], ids=['pinhole', 'fisheye'])
def test_the_pose_is_found_among_wrong_matches(camera):
    rng = np.random.default_rng(1)
    points = np.array((5.0, 0, 0)) + rng.uniform(-2, 2, (200, 3))
    (a, a_pixel), (b, b_pixel) = (rays_of(p, points, camera, rng) for p in (FIRST, SECOND))
    b[:80] = b[rng.permutation(80)]
    found = relative_pose(a, b, a_pixel, b_pixel)
    truth = np.linalg.inv(FIRST) @ SECOND
    assert angle(found.rotation, truth[:3, :3]) < math.radians(0.5)
    assert found.direction @ truth[:3, 3] / np.linalg.norm(truth[:3, 3]) > math.cos(0.05)
    assert found.inliers[80:].mean() > 0.95
    assert found.inliers[:80].mean() < 0.2


def test_matches_by_chance_give_no_pose():
    rng = np.random.default_rng(2)
    for _ in range(10):
        points, others = (np.array((5.0, 0, 0)) + rng.uniform(-2, 2, (300, 3)) for _ in range(2))
        (a, a_pixel), (b, b_pixel) = (
            rays_of(FIRST, points, CAMERA, rng), rays_of(SECOND, others, CAMERA, rng))
        assert relative_pose(a, b, a_pixel, b_pixel) is None


def test_cameras_in_one_place_give_their_rotation():
    rng = np.random.default_rng(3)
    points = np.array((5.0, 0, 0)) + rng.uniform(-2, 2, (200, 3))
    here = SECOND.copy()
    here[:3, 3] = FIRST[:3, 3]
    (a, a_pixel), (b, b_pixel) = (rays_of(p, points, CAMERA, rng) for p in (FIRST, here))
    found = relative_pose(a, b, a_pixel, b_pixel)
    assert angle(found.rotation, (np.linalg.inv(FIRST) @ here)[:3, :3]) < math.radians(0.5)
    assert found.inliers.mean() > 0.9


@pytest.mark.parametrize('count', [0, 5, 14])
def test_few_matches_give_no_pose(count):
    rays = np.tile((0.0, 0, 1), (count, 1))
    assert relative_pose(rays, rays, np.full(count, .002), np.full(count, .002)) is None


def test_rotations_are_averaged_over_wrong_pairs():
    rng = np.random.default_rng(4)
    truth = turned(rng, 1.0, 30)
    pairs = np.array([(i, j) for i in range(30) for j in range(i + 1, 30) if rng.random() < 0.3])
    noise = turned(rng, math.radians(0.5), len(pairs))
    turns = truth[pairs[:, 0]].transpose(0, 2, 1) @ truth[pairs[:, 1]] @ noise
    wrong = rng.random(len(pairs)) < 0.2
    turns[wrong] = turned(rng, 1.0, wrong.sum())
    rough = turned(rng, math.radians(10), 30) @ truth
    found = average_rotations(rough, pairs, turns, np.full(len(pairs), math.radians(0.5)),
                              prior_sigma=np.full(30, math.radians(10)))
    # All together may be turned by what the mean of the rough ones is wrong.
    common = Rotation.from_matrix(found @ truth.transpose(0, 2, 1)).mean()
    left = (common.inv() * Rotation.from_matrix(found @ truth.transpose(0, 2, 1))).magnitude()
    assert np.degrees(left).max() < 2 and np.degrees(left).mean() < 0.6
    assert np.degrees(common.magnitude()) < 6


def test_rotations_without_pairs_stay():
    rough = turned(np.random.default_rng(5), 1.0, 4)
    found = average_rotations(rough, np.zeros((0, 2), np.int64), np.zeros((0, 3, 3)), np.zeros(0),
                              prior_sigma=np.full(4, 0.1))
    np.testing.assert_allclose(found, rough, atol=1e-9)
