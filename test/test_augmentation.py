"""Augmentation: matches stay exact under it, and light does what it says."""

from dataclasses import replace

from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.augmentation import AugmentationConfig, change_light, turn_and_zoom
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

CAMERA = Camera('PINHOLE', 128, 96, 110.0, 112.0, 62.0, 49.0)
NO_LIGHT = AugmentationConfig(exposure=0, tint=0, blur=0, noise=0)


def some_pose():
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec([0.5, -1.0, 0.3]).as_matrix()
    pose[:3, 3] = 1.0, -2.0, 0.5
    return pose


def pixel_of(point, camera, pose):
    in_camera = pose[:3, :3].T @ (point - pose[:3, 3])
    return camera.project(torch.from_numpy(in_camera)).numpy()


@pytest.mark.parametrize('seed', range(8))
def test_a_point_stays_on_its_texture(seed):
    random = np.random.default_rng(seed)
    place = np.array([66.0, 44.0]) + random.uniform(-12, 12, 2)
    v, u = np.mgrid[:96, :128]
    blob = 255 * np.exp(-((u - place[0]) ** 2 + (v - place[1]) ** 2) / (2 * 2.0 ** 2))
    picture = np.repeat(blob[..., None], 3, 2).round().astype(np.uint8)
    ray = CAMERA.rays(torch.from_numpy(place)).numpy()
    pose = some_pose()
    point = pose[:3, 3] + 3.0 * pose[:3, :3] @ ray
    np.testing.assert_allclose(pixel_of(point, CAMERA, pose), place)

    warped, camera, turned = turn_and_zoom(
        picture, CAMERA, pose, AugmentationConfig(rotation=(0.08, 0.08, 0.3)), random)
    expected = pixel_of(point, camera, turned)
    near = (u - expected[0]) ** 2 + (v - expected[1]) ** 2 < 12 ** 2
    weight = warped[..., 0] * near
    found = np.array([(weight * u).sum(), (weight * v).sum()]) / weight.sum()
    np.testing.assert_allclose(found, expected, atol=0.3)
    assert not np.allclose(expected, place, atol=0.3)


def test_the_camera_turns_about_its_centre_and_zooms_within_its_range():
    random = np.random.default_rng(0)
    for _ in range(30):
        _, camera, pose = turn_and_zoom(
            np.zeros((96, 128, 3), np.uint8), CAMERA, some_pose(), AugmentationConfig(), random)
        np.testing.assert_array_equal(pose[:3, 3], some_pose()[:3, 3])
        np.testing.assert_allclose(pose[:3, :3] @ pose[:3, :3].T, np.eye(3), atol=1e-12)
        assert -0.15 <= np.log(camera.fx / CAMERA.fx) <= 0.25
        assert camera.fx / camera.fy == pytest.approx(CAMERA.fx / CAMERA.fy)
        assert (camera.cx, camera.cy, camera.width) == (CAMERA.cx, CAMERA.cy, CAMERA.width)


def test_nothing_changes_at_strength_zero():
    still = AugmentationConfig(rotation=(0, 0, 0), zoom=(0, 0), exposure=0, tint=0, blur=0,
                               noise=0)
    random = np.random.default_rng(0)
    picture = random.integers(0, 256, (96, 128, 3), dtype=np.uint8)
    warped, camera, pose = turn_and_zoom(picture, CAMERA, some_pose(), still, random)
    np.testing.assert_array_equal(warped, picture)
    assert camera == CAMERA
    np.testing.assert_allclose(pose, some_pose())
    np.testing.assert_allclose(change_light(picture, still, random), picture / 255, atol=1e-6)


def test_exposure_is_a_monotonic_curve_per_channel():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, 2)
    for seed in range(10):
        lit = change_light(ramp, replace(NO_LIGHT, exposure=0.3, tint=0.1),
                           np.random.default_rng(seed))
        assert lit.dtype == np.float32
        assert (np.diff(lit, axis=1) >= 0).all() and lit.min() >= 0 and lit.max() <= 1


def test_noise_and_blur_keep_the_mean():
    random = np.random.default_rng(2)
    picture = random.integers(60, 190, (96, 128, 3), dtype=np.uint8)
    for _ in range(10):
        shaken = change_light(picture, replace(NO_LIGHT, blur=1.0, noise=0.05), random)
        assert abs(shaken.mean() - picture.mean() / 255) < 0.01
        assert shaken.std() < picture.std() / 255 + 0.05


def test_the_same_random_numbers_give_the_same_picture():
    picture = np.random.default_rng(2).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    first, second = (change_light(turn_and_zoom(
        picture, CAMERA, some_pose(), AugmentationConfig(), random)[0], AugmentationConfig(),
        random) for random in (np.random.default_rng(9), np.random.default_rng(9)))
    np.testing.assert_array_equal(first, second)
