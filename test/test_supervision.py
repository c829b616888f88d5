"""True matches on scenes in closed form: hidden, displaced and unseen points are refused."""

from nerfmatch_ros.data.synthetic import default_camera, query_trajectory
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import transform_points
from nerfmatch_ros.matching.supervision import cells_of_pixels, overlap_matrix, visible_points
import numpy as np
import pytest
import torch

CAMERA = Camera('PINHOLE', 64, 48, 50.0, 50.0, 31.5, 23.5)
HERE = torch.eye(4, dtype=torch.float64)


def wall_depth(z=2.0, rows=12, columns=16):
    return torch.full((rows, columns), z, dtype=torch.float64)


def seen(points, depth=None, camera=CAMERA):
    points = torch.tensor(points, dtype=torch.float64).reshape(-1, 3)
    depth = wall_depth() if depth is None else depth
    return visible_points(points, camera, HERE, depth).tolist()


def test_points_on_the_wall_are_seen_and_others_are_not():
    on_wall, hidden, before, behind_camera, aside = (
        (0.1, -0.2, 2.0), (0.1, -0.2, 3.0), (0.1, -0.2, 1.5), (0.1, -0.2, -2.0), (5.0, 0.0, 2.0))
    assert seen([on_wall, hidden, before, behind_camera, aside]) == [
        True, False, False, False, False]


def test_the_tolerance_is_relative():
    assert seen([0, 0, 2.05]) == [True]
    assert seen([0, 0, 2.10]) == [False]
    assert seen([0, 0, 20.5], wall_depth(20.0)) == [True]


def test_at_a_depth_edge_both_surfaces_are_seen_and_none_between():
    depth = wall_depth()
    depth[:, 8:] = 4.0
    assert seen([[-0.01, 0, 2], [0.02, 0, 4], [0.01, 0, 3]], depth) == [True, True, False]
    # Two cells, 8 pixels, away from the edge the other surface is hidden or missing.
    assert seen([[-0.8, 0, 4], [0.5, 0, 2]], depth) == [False, False]


def test_points_that_are_no_numbers_are_not_seen():
    assert seen([[np.nan] * 3, [0, 0, 0]]) == [False, False]


@pytest.mark.parametrize('rows, columns', [(120, 160), (30, 40)])
def test_the_room_is_seen_as_its_exact_depth_says(room, rows, columns):
    camera, poses = default_camera(160, 120), query_trajectory(6)
    small = camera.scaled_to(columns, rows)
    depths = [torch.from_numpy(room.render(small, pose, depth=True)[1]).double()
              for pose in poses]
    directions = small.rays(small.pixel_grid(dtype=torch.float64))
    points = torch.cat([
        transform_points(torch.from_numpy(pose),
                         directions / directions[:, 2:] * depth.reshape(-1, 1))
        for pose, depth in zip(poses, depths)])[::7]
    for pose, depth in zip(poses[:3], depths[:3]):
        found = visible_points(points, camera, torch.from_numpy(pose), depth)
        towards = points.numpy() - pose[:3, 3]
        away = np.linalg.norm(towards, axis=1)
        hit, _ = room.cast(pose[:3, 3], towards / away[:, None])
        in_camera = transform_points(torch.from_numpy(np.linalg.inv(pose)), points)
        free = torch.from_numpy(hit > 0.999 * away) & camera.sees(in_camera)
        hidden = torch.from_numpy(hit < 0.9 * away) | ~camera.sees(in_camera)
        assert free.sum() > 100 and hidden.sum() > 100
        assert found[free].double().mean() > 0.95
        assert found[hidden].double().mean() < 0.03


def test_pixels_lie_in_the_cells_given():
    camera = Camera('PINHOLE', 64, 48, 50, 50, 31, 23)
    pixels = camera.pixel_grid()
    cell = cells_of_pixels(pixels, 6, 8, 8)
    expected = (pixels[:, 1] // 8 * 8 + pixels[:, 0] // 8).long()
    assert torch.equal(cell, expected)
    border = torch.tensor([[-0.5, -0.5], [63.49, 47.49], [7.49, 0.0], [7.51, 0.0]])
    assert cells_of_pixels(border, 6, 8, 8).tolist() == [0, 47, 0, 1]


def test_overlap_is_the_share_of_points_seen(generator):
    # Two cameras side by side before a wall; the third looks the other way.
    shifted, turned = HERE.clone(), HERE.clone()
    shifted[0, 3] = 1.28  # half of the wall's 2.56 m that one camera sees
    turned[0, 0] = turned[2, 2] = -1
    poses = torch.stack([HERE, shifted, turned])
    directions = CAMERA.rays(CAMERA.pixel_grid(4, dtype=torch.float64))
    own = directions / directions[:, 2:] * 2
    points = [transform_points(pose, own) for pose in poses] + [torch.zeros(0, 3).double()]
    poses = torch.cat([poses, HERE[None]])
    overlap = overlap_matrix(points, [CAMERA] * 4, poses, [wall_depth()] * 4, 2000, generator)
    half, eye = overlap[0, 1].item(), overlap.diag()[:3]
    assert (eye > 0.99).all()
    assert half == pytest.approx(0.5, abs=0.05)
    assert overlap[2, :2].sum() == 0 and overlap[:2, 2].sum() == 0
    assert overlap[:, 3].sum() == 0  # a view that shows nothing is no partner of any
