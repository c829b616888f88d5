"""Sparse points of a textured corner seen from a short arc, and of real photographs."""

import functools
import math

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.sparse_points import neighbour_pairs, triangulate
import numpy as np
import pytest
import torch

CAMERAS = {
    'pinhole': Camera('PINHOLE', 240, 180, 200, 205, 121, 88),
    'barrel': Camera('OPENCV', 240, 180, 180, 180, 121, 88, (-.28, .07, 2e-4, -2e-3)),
    'fisheye': Camera('OPENCV_FISHEYE', 240, 180, 120, 120, 121, 88, (.02, -.01, .003, -.001)),
}
# Two walls of a corner: n . x = d, metres.
WALLS = ((np.array([0.6, 0., 0.8]), 2.4), (np.array([-0.6, 0., 0.8]), 2.4))


@functools.cache
def texture(seed):
    """Make a smooth random picture that covers 8 x 8 metres."""
    noise = np.random.default_rng(seed).normal(size=(800, 800)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return np.clip(128 + 90 * smooth / smooth.std(), 0, 255).astype(np.float32)


def pose(k, step):
    """Look at the corner from place k of an arc; `step` metres apart."""
    x, angle = step * (k - 2.5), -0.3 * step * (k - 2.5)
    map_from_camera = np.eye(4)
    map_from_camera[:3, 0] = math.cos(angle), 0, -math.sin(angle)
    map_from_camera[:3, 2] = math.sin(angle), 0, math.cos(angle)
    map_from_camera[:3, 3] = x, 0.3 * step * math.sin(k), 0.1 * abs(x)
    return map_from_camera


def photograph(k, camera, *, plain=False, step=0.15, **fields):
    """Render the corner exactly, one ray through each pixel's centre."""
    map_from_camera = pose(k, step)
    rays = camera.rays(camera.pixel_grid(dtype=torch.float64)).numpy()
    rays = rays @ map_from_camera[:3, :3].T
    centre = map_from_camera[:3, 3]
    nearest = np.full(len(rays), np.inf)
    grey = np.full(len(rays), 128, np.float32)
    for seed, (normal, distance) in enumerate(WALLS):
        with np.errstate(divide='ignore'):
            depth = (distance - centre @ normal) / (rays @ normal)
        hit = (depth > 0) & (depth < nearest)
        points = centre + np.where(hit, depth, 0)[:, None] * rays
        along = points @ np.cross(normal, (0, 1, 0))
        place = np.stack((along, points[:, 1]), -1).astype(np.float32) * 100 + 400
        place = place.reshape(camera.height, camera.width, 2)
        grey[hit] = cv2.remap(texture(seed), place, None, cv2.INTER_LINEAR).reshape(-1)[hit]
        nearest[hit] = depth[hit]
    if plain:
        grey[:] = 128
    pixels = np.repeat(grey.round().astype(np.uint8)[:, None], 3, -1)
    return PosedImage(f'{k}', camera, map_from_camera,
                      pixels=pixels.reshape(camera.height, camera.width, 3), **fields)


def arc(camera=CAMERAS['pinhole'], count=6, **fields):
    return [photograph(k, camera, **fields) for k in range(count)]


def distance_to_walls(points):
    return np.min([np.abs(points @ normal - distance) for normal, distance in WALLS], axis=0)


@pytest.mark.parametrize('camera', CAMERAS.values(), ids=CAMERAS.keys())
def test_points_lie_on_the_surface_and_project_to_their_pixels(camera):
    images = arc(camera)
    sparse = triangulate(images)
    assert len(sparse.points) > 60
    assert np.median(distance_to_walls(sparse.points)) < 0.004
    assert np.quantile(distance_to_walls(sparse.points), 0.95) < 0.03
    offsets = []
    for k, image in enumerate(images):
        seen = sparse.image_index == k
        assert seen.sum() > 20
        in_camera = (sparse.points[sparse.point_index[seen]] - image.map_from_camera[:3, 3]) \
            @ image.map_from_camera[:3, :3]
        offsets.append(camera.project(torch.from_numpy(in_camera)).numpy() - sparse.pixel[seen])
    error = np.linalg.norm(np.concatenate(offsets), axis=-1)
    assert error.max() < 2.2  # the limit of 2 px is taken on rays
    assert np.median(sparse.reprojection_error) < 0.3
    # Errors of single rays average out, an offset of the pixel convention would not.
    true = np.concatenate([true_pixels(sparse, k, image) for k, image in enumerate(images)])
    assert np.abs(np.median(true, axis=0)).max() < 0.05


def true_pixels(sparse, k, image):
    """Give how far the pixels are from the wall point nearest to the triangulated one."""
    seen = sparse.image_index == k
    points = sparse.points[sparse.point_index[seen]]
    gaps = np.stack([distance - points @ normal for normal, distance in WALLS])
    wall = np.abs(gaps).argmin(0)
    points = points + gaps[wall, np.arange(len(points))][:, None] * \
        np.stack([normal for normal, _ in WALLS])[wall]
    in_camera = (points - image.map_from_camera[:3, 3]) @ image.map_from_camera[:3, :3]
    return image.camera.project(torch.from_numpy(in_camera)).numpy() - sparse.pixel[seen]


def test_observations_are_sorted_and_of_different_images():
    sparse = triangulate(arc(), min_observations=4)
    count = len(sparse.points)
    assert sparse.point_index.tolist() == sorted(sparse.point_index)
    assert set(sparse.point_index) == set(range(count))
    pairs = set(zip(sparse.point_index, sparse.image_index))
    assert len(pairs) == len(sparse.pixel)
    assert np.bincount(sparse.point_index).min() >= 4
    assert (sparse.angle > math.radians(1.5)).all()
    assert sparse.reprojection_error.shape == sparse.angle.shape == (count,)


def test_the_same_images_give_the_same_points():
    images = arc(count=4)
    first, second = triangulate(images), triangulate(images)
    for name, values in vars(first).items():
        np.testing.assert_array_equal(values, getattr(second, name))


def test_large_images_are_searched_small_but_pixels_stay_of_the_full_size():
    small, large = CAMERAS['pinhole'], CAMERAS['pinhole'].scaled_to(480, 360)
    sparse = triangulate(arc(large), detection_side=240)
    assert sparse.pixel[:, 0].max() > small.width
    assert np.median(distance_to_walls(sparse.points)) < 0.005
    true = np.concatenate([true_pixels(sparse, k, image) for k, image in enumerate(arc(large))])
    assert np.abs(np.median(true, axis=0)).max() < 0.1


def test_one_outlier_pose_spoils_no_points():
    images = arc()
    moved = images[3].map_from_camera.copy()
    moved[:3, 3] += (0.1, 0.3, 0)
    images[3] = PosedImage('moved', images[3].camera, moved, pixels=images[3].pixels)
    sparse = triangulate(images)
    assert len(sparse.points) > 40
    assert np.quantile(distance_to_walls(sparse.points), 0.95) < 0.05


@pytest.mark.parametrize('options', [
    {'count': 0}, {'count': 1}, {'count': 3, 'plain': True}, {'count': 3, 'step': 0.}],
    ids=['none', 'single', 'textureless', 'nearly one place'])
def test_nothing_to_triangulate_gives_empty_arrays(options):
    sparse = triangulate(arc(**options))
    assert sparse.points.shape == (0, 3) and sparse.points.dtype == np.float64
    assert sparse.pixel.shape == (0, 2)
    assert sparse.reprojection_error.shape == sparse.angle.shape == (0,)
    assert sparse.image_index.shape == sparse.point_index.shape == (0,)
    assert sparse.image_index.dtype == sparse.point_index.dtype == np.int64


def test_masked_pixels_are_not_used(tmp_path):
    mask = np.full((180, 240), 255, np.uint8)
    mask[:, 120:] = 0
    cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    sparse = triangulate(arc(mask_path=tmp_path / 'mask.png'))
    assert len(sparse.points) and sparse.pixel[:, 0].max() < 120


def test_an_image_without_pose_is_named():
    image = PosedImage('lost', CAMERAS['pinhole'], pixels=np.zeros((180, 240, 3), np.uint8))
    with pytest.raises(DataError, match="'lost' has no pose"):
        triangulate([image])


def test_neighbours_of_a_video_have_narrow_and_wide_baselines():
    pairs = neighbour_pairs(np.array([pose(k, 0.01) for k in range(120)]), 8, math.radians(50))
    steps = np.array([j - i for i, j in pairs])
    assert (steps == 1).sum() == 119
    assert steps.max() > 15
    assert len(pairs) <= 8 * 120


def test_neighbours_in_a_ring_look_the_same_way():
    angles = np.arange(24) / 24 * 2 * np.pi
    poses = np.tile(np.eye(4), (24, 1, 1))
    poses[:, :3, 2] = np.stack((-np.cos(angles), np.sin(angles) * 0, -np.sin(angles)), -1)
    poses[:, :3, 3] = -5 * poses[:, :3, 2]
    pairs = neighbour_pairs(poses, 6, math.radians(50))
    assert {(i, i + 1) for i in range(23)} <= set(pairs)
    assert max(min(j - i, 24 - j + i) for i, j in pairs) <= 3


def test_real_photographs_give_many_precise_points(shared_data):
    images = read_posed_images(shared_data / 'herzjesu', 'train')[:6]
    sparse = triangulate(images, max_features=800)
    assert len(sparse.points) > 150
    assert np.median(sparse.reprojection_error) < 0.5
