"""Distances along rays, looked up in depth maps of known surfaces."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.depth_map import (
    DepthMap,
    DepthTable,
    known_share,
    load_depth_maps,
    save_depth_maps,
)
import numpy as np
import pytest
import torch

CAMERA = Camera('PINHOLE', 40, 30, 30.0, 31.0, 19.0, 15.0)
BARREL = Camera('OPENCV', 64, 48, 48.0, 48.0, 31.0, 24.0, (-0.2, 0.03, 0.001, -0.001))


def plane_map(camera=CAMERA, normal=(0.2, -0.15, 1.0), distance=2.0):
    """Depth of the plane normal . x = distance."""
    rays = camera.rays(camera.pixel_grid().double())
    depth = distance / (rays / rays[:, 2:] @ torch.tensor(normal, dtype=torch.float64))
    return DepthMap(depth.float().numpy().reshape(camera.height, camera.width), camera)


def towards(u, v, camera=CAMERA):
    return camera.rays(torch.tensor([[u, v]], dtype=torch.float64)).float()


def look_up(depth_map, u, v):
    return DepthTable([depth_map]).distances(torch.tensor([0]), towards(u, v)).item()


def test_a_plane_is_interpolated_exactly_along_the_rays_of_any_camera():
    rays = BARREL.rays(BARREL.pixel_grid().double())
    rays = rays[CAMERA.sees(rays)]
    pixels = CAMERA.project(rays)
    inner = ((pixels >= 0) & (pixels <= torch.tensor([39.0, 29.0]))).all(-1)
    rays = rays[inner]
    assert len(rays) > 500
    table = DepthTable([None, plane_map(distance=7.0), plane_map()])
    for index, distance in ((0, None), (1, 7.0), (2, 2.0)):
        found = table.distances(torch.full((len(rays),), index), rays.float())
        if distance is None:
            assert (found == 0).all()
        else:
            expected = distance / (rays @ torch.tensor([0.2, -0.15, 1.0], dtype=torch.float64))
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)


def test_no_distance_lies_between_two_surfaces():
    depth = np.full((30, 40), 2.0, np.float32)
    depth[:, 20:] = 4
    for u, expected in ((19.4, 2), (19.6, 4)):
        z = look_up(DepthMap(depth, CAMERA), u, 7.3) * towards(u, 7.3)[0, 2]
        assert z.item() == pytest.approx(expected, rel=1e-6)


def test_beside_unknown_pixels_the_nearest_counts():
    depth = plane_map().depth.copy()
    depth[10, 10] = 0
    depth_map = DepthMap(depth, CAMERA)
    assert look_up(depth_map, 10.4, 10.4) == 0
    z = look_up(depth_map, 10.6, 10.2) * towards(10.6, 10.2)[0, 2].item()
    assert z == pytest.approx(depth[10, 11], rel=1e-6)


@pytest.mark.parametrize('u, v', [(-0.6, 3), (39.6, 3), (3, -0.6), (3, 29.6)])
def test_nothing_is_known_outside_of_the_map(u, v):
    assert look_up(plane_map(), u, v) == 0
    near = min(max(u, -0.4), 39.4), min(max(v, -0.4), 29.4)
    assert look_up(plane_map(), *near) > 0


def test_rays_to_the_side_and_behind_have_no_distance():
    directions = torch.tensor([[1.0, 0, 0], [0, 0, -1.0], [0.1, 0.1, -0.99]])
    found = DepthTable([plane_map()]).distances(torch.zeros(3, dtype=torch.long), directions)
    assert found.tolist() == [0, 0, 0]


def test_a_map_needs_the_pinhole_camera_of_its_size():
    with pytest.raises(DataError, match='camera of 40 x 30'):
        DepthMap(np.zeros((40, 30), np.float32), CAMERA)
    with pytest.raises(DataError, match='OPENCV; give a PINHOLE'):
        DepthMap(np.zeros((48, 64), np.float32), BARREL)


def test_maps_return_from_a_file_as_they_were(tmp_path):
    maps = [None, plane_map(), None, plane_map(CAMERA.scaled_to(20, 16)), None]
    save_depth_maps(tmp_path / 'depth.npz', maps)
    loaded = load_depth_maps(tmp_path / 'depth.npz')
    assert [m is None for m in loaded] == [m is None for m in maps]
    for k in (1, 3):
        assert loaded[k].camera == maps[k].camera
        np.testing.assert_array_equal(loaded[k].depth, maps[k].depth)


def test_the_known_share_is_the_mean_over_the_maps():
    half = np.zeros((30, 40), np.float32)
    half[:15] = 1
    assert known_share([None, DepthMap(half, CAMERA), DepthMap(half * 0, CAMERA)]) == 0.25
    assert known_share([None]) == known_share([]) == 0
