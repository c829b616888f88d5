"""Multi-view depth of a textured corner seen from an arc, whose depth is known exactly."""

from dataclasses import replace
import functools
import math

import cv2
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.multi_view_depth import multi_view_depth, MultiViewDepthConfig
from nerfmatch_ros.mapping.neighbour_views import neighbour_views
from nerfmatch_ros.mapping.sparse_points import SparsePoints, triangulate
import numpy as np
import pytest
from test_sparse_points import arc, CAMERAS, pose, WALLS
import torch

CONFIG = MultiViewDepthConfig(longest_side=120, neighbours=4, depths=48)
NO_POINTS = SparsePoints(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, int),
                         np.zeros((0, 2)), np.zeros(0, int))
RANGE = (1.0, 5.0)


@functools.cache
def corner(camera='pinhole'):
    images = arc(CAMERAS[camera])
    return images, triangulate(images)


def true_depth(camera, map_from_camera):
    """Depth (H, W) of the corner along z, metres."""
    rays = camera.rays(camera.pixel_grid(dtype=torch.float64)).numpy()
    rays = rays / rays[:, 2:] @ map_from_camera[:3, :3].T
    depths = []
    for normal, distance in WALLS:
        along = rays @ normal
        depth = (distance - map_from_camera[:3, 3] @ normal) / np.where(along == 0, 1e-9, along)
        depths.append(np.where(depth > 0, depth, np.inf))
    return np.min(depths, axis=0).reshape(camera.height, camera.width)


def errors(image, depth_map):
    """Relative errors of the known pixels."""
    true = true_depth(depth_map.camera, image.map_from_camera)
    known = depth_map.depth > 0
    return np.abs(depth_map.depth[known] / true[known] - 1)


def share(depth_map):
    return (depth_map.depth > 0).mean()


@pytest.mark.parametrize('camera', CAMERAS)
def test_most_pixels_have_their_depth_whatever_the_lens(camera):
    images, sparse = corner(camera)
    maps = multi_view_depth(images, sparse, CONFIG)
    for image, depth_map in zip(images, maps):
        assert depth_map.camera.model == 'PINHOLE' and depth_map.depth.dtype == np.float32
        assert max(depth_map.depth.shape) == 120
        assert share(depth_map) > 0.5
        error = errors(image, depth_map)
        assert np.median(error) < 0.006 and np.quantile(error, 0.95) < 0.03
    assert np.mean([share(depth_map) for depth_map in maps]) > 0.65


def test_without_sparse_points_neighbours_come_from_poses_and_depths_from_the_range():
    images, _ = corner()
    maps = multi_view_depth(images, NO_POINTS, CONFIG, depth_range=RANGE)
    for image, depth_map in zip(images, maps):
        assert share(depth_map) > 0.5
        assert np.median(errors(image, depth_map)) < 0.006
    assert multi_view_depth(images, NO_POINTS, CONFIG) == [None] * 6


def test_pictures_without_texture_give_empty_maps():
    maps = multi_view_depth(arc(count=4, plain=True), NO_POINTS, CONFIG, depth_range=RANGE)
    assert [share(depth_map) for depth_map in maps] == [0] * 4


@pytest.mark.parametrize('count', [0, 1])
def test_what_has_no_neighbours_has_no_depth(count):
    assert multi_view_depth(arc(count=count), NO_POINTS, CONFIG, depth_range=RANGE) == [
        None] * count


def test_two_photographs_confirm_each_other():
    images = arc(count=2)
    maps = multi_view_depth(images, NO_POINTS, CONFIG, depth_range=RANGE)
    for image, depth_map in zip(images, maps):
        assert share(depth_map) > 0.3
        assert np.quantile(errors(image, depth_map), 0.9) < 0.03


def test_a_photograph_with_depth_is_left_alone_and_confirms_the_others():
    images, sparse = corner()
    own = [replace(image, depth=true_depth(image.camera, image.map_from_camera).astype(np.float32))
           for image in images]
    # The only one without depth can be confirmed by the photographs' own depths alone.
    maps = multi_view_depth([images[0], *own[1:]], sparse, CONFIG)
    assert maps[1:] == [None] * 5
    assert share(maps[0]) > 0.5 and np.median(errors(images[0], maps[0])) < 0.004
    false = [replace(image, depth=1.1 * image.depth) for image in own]
    maps = multi_view_depth([images[0], *false[1:]], sparse, CONFIG)
    assert share(maps[0]) < 0.02


def test_masked_pixels_have_no_depth_and_serve_no_neighbour(tmp_path):
    images, sparse = corner()
    mask = np.full((180, 240), 255, np.uint8)
    mask[:, 120:] = 0
    cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    plain = multi_view_depth(images, sparse, CONFIG)[2]
    masked = [replace(images[2], mask_path=tmp_path / 'mask.png')]
    own = multi_view_depth(images[:2] + masked + images[3:], sparse, CONFIG)[2]
    assert (own.depth[:, 60:] == 0).all() and (own.depth[:, :56] > 0).mean() > 0.5
    (tmp_path / 'nothing.png').write_bytes(cv2.imencode('.png', 0 * mask)[1].tobytes())
    others = [replace(image, mask_path=tmp_path / 'nothing.png') for image in images]
    others[2] = images[2]
    alone = multi_view_depth(others, sparse, CONFIG)[2]
    assert share(plain) > 0.5 and share(alone) == 0


def test_a_wrong_pose_spoils_little():
    images, sparse = corner()
    moved = images[3].map_from_camera.copy()
    moved[:3, 3] += (0.05, 0.15, 0)
    images = [*images[:3], replace(images[3], map_from_camera=moved), *images[4:]]
    maps = multi_view_depth(images, sparse, CONFIG)
    assert share(maps[3]) < 0.5 * share(maps[2])
    for k in (0, 1, 2, 4, 5):
        assert np.quantile(errors(images[k], maps[k]), 0.9) < 0.02


def test_of_many_photographs_evenly_chosen_ones_get_depth_and_progress_is_told():
    images, sparse = corner()
    told = []
    maps = multi_view_depth(images, sparse, replace(CONFIG, images=3, agreeing=1),
                            report=lambda *given: told.append(given))
    assert [depth_map is not None for depth_map in maps] == [True, False, True, False, False, True]
    assert share(maps[2]) > 0.3
    progress = [done for done, _ in told]
    assert progress == sorted(progress) and progress[-1] == 1
    assert told[-1][1]['known'] == pytest.approx(np.mean([share(maps[k]) for k in (0, 2, 5)]))
    assert multi_view_depth(images, sparse, replace(CONFIG, images=0)) == [None] * 6


def test_neighbours_see_the_same_points_under_a_fair_angle():
    # Ten cameras in a row, half a degree to 30 degrees apart as seen from the points.
    poses = np.array([np.eye(4)] * 8)
    poses[:, 0, 3] = 4 * np.tan(np.radians([0, 0.5, 1, 4, 8, 12, 20, 30]))
    points = np.array([[0.1 * k, 0, 4] for k in range(-5, 5)], float)
    seen = np.repeat(np.arange(8), 10)
    sparse = SparsePoints(points, np.zeros(10), np.ones(10), seen, np.zeros((80, 2)),
                          np.tile(np.arange(10), 8))
    assert neighbour_views(poses, sparse, 1)[0] == [4]
    assert set(neighbour_views(poses, sparse, 3)[0]) == {4, 5, 6}
    # A camera that saw none of the points gets its neighbours by pose.
    hidden = seen != 0
    rest = replace(sparse, image_index=seen[hidden], pixel=sparse.pixel[hidden],
                   point_index=sparse.point_index[hidden])
    assert neighbour_views(poses, rest, 2)[0][0] == 1
    assert len(neighbour_views(np.array([pose(k, 0.1) for k in range(3)]), NO_POINTS, 6)[0]) == 2


@pytest.mark.parametrize('options', [
    {'images': -1}, {'longest_side': 0}, {'neighbours': 0}, {'depths': 2}, {'window': 4},
    {'window': 1}, {'agreeing': 0}, {'agreement': 0.0}, {'jump_cost': math.nan}])
def test_senseless_options_are_refused_by_name(options):
    with pytest.raises(ConfigError, match=f'depth.{next(iter(options))} is'):
        MultiViewDepthConfig(**options)
