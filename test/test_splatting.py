"""Splatting: what a camera would see, the same in compiled loops and in torch, at a map's cost."""

import math

from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, transform_points
from nerfmatch_ros.radiance_field import splat_loops
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.radiance_field.splatting import splat, splat_grid
from nerfmatch_ros.radiance_field.surface_cache import sorted_cache
import pytest
from sphere_scene import CAMERA, FRAME, pose_at, POSES, SphereField
import torch

LENSES = {
    'pinhole': Camera('PINHOLE', 164, 123, 120.0, 125.0, 80.3, 60.2),
    'opencv': Camera('OPENCV', 164, 123, 120.0, 125.0, 80.3, 60.2, (-0.3, 0.1, 0.002, -0.001)),
    'rational': Camera('RATIONAL', 164, 123, 120.0, 125.0, 80.3, 60.2,
                       (0.2, 0.05, 0.001, 0.001, 0.01, 0.3, 0.02, 0.001)),
    'fisheye': Camera('OPENCV_FISHEYE', 164, 123, 70.0, 70.0, 80.3, 60.2,
                      (0.02, -0.01, 0.003, 0.0)),
    'beyond 180 degrees': Camera('OPENCV_FISHEYE', 164, 123, 36.0, 36.0, 80.3, 60.2,
                                 (0.01, 0.0, 0.0, 0.0)),
}


def sphere(count, radius=2.0, *, inwards=True):
    """Points evenly on a sphere (Fibonacci), about a voxel apart, with normals."""
    k = torch.arange(count, dtype=torch.float64) + 0.5
    z, angle = 1 - 2 * k / count, math.pi * (1 + math.sqrt(5)) * k
    across = (1 - z * z).sqrt()
    unit = torch.stack((across * angle.cos(), across * angle.sin(), z), dim=-1)
    voxel = radius * math.sqrt(4 * math.pi / count)
    return radius * unit, (-unit if inwards else unit), voxel


def cloud(generator, count=20000):
    """Points all over a cube with normals to all sides, some without any."""
    points = torch.rand(count, 3, generator=generator) * 6 - 3
    normals = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    normals[::7] = 0
    return sorted_cache(points, 0.1, normals=normals)


def board(depth, side, step):
    """A grid of points at `depth` metres ahead, side x side metres, facing the camera."""
    line = torch.arange(-side / 2, side / 2 + 1e-6, step, dtype=torch.float64)
    y, x = torch.meshgrid(line, line, indexing='ij')
    points = torch.stack((x, y, torch.full_like(x, depth)), dim=-1).reshape(-1, 3)
    return points, torch.tensor([[0.0, 0.0, -1.0]], dtype=torch.float64).expand(len(points), 3)


def joined(*surfaces, voxel):
    points, normals = zip(*surfaces)
    return sorted_cache(torch.cat(points), voxel, normals=torch.cat(normals))


@pytest.mark.parametrize('lens', LENSES)
@pytest.mark.parametrize('stride', [8, 5])
def test_compiled_loops_and_torch_choose_the_same_points(lens, stride, generator):
    cache, camera = cloud(generator), LENSES[lens]
    for pose in (*POSES, pose_at(0.3, -2.9, 0.1, 3.0, 0.4)):
        view = splat(cache, camera, torch.from_numpy(pose), stride)
        index, distance = splat_grid(cache, camera, torch.from_numpy(pose), stride)
        covered = (index >= 0).nonzero()[:, 0]
        assert len(covered) > 50
        assert torch.equal(view.cell, covered) and torch.equal(view.index, index[covered])
        assert distance.isfinite().equal(index >= 0)
        assert view.coverage == len(covered) / len(index)
        assert (view.rows, view.columns) == (123 // stride, 164 // stride)


@pytest.mark.parametrize('lens', LENSES)
def test_each_point_lies_in_its_cell_at_its_depth(lens):
    camera, pose = LENSES[lens], torch.from_numpy(POSES[1])
    points, normals, voxel = sphere(40000)
    cache = sorted_cache(points, voxel, normals=normals)
    view = splat(cache, camera, pose)
    assert view.coverage > 0.95
    seen = transform_points(inverse(pose), cache.points[view.index].double())
    assert camera.sees(seen).all()
    cell = ((camera.project(seen) + 0.5) / 8).floor().long()
    assert torch.equal(cell[:, 1] * view.columns + cell[:, 0], view.cell)
    torch.testing.assert_close(view.depth.double(), seen[:, 2], atol=1e-5, rtol=0)


def test_points_are_those_that_rendering_gives_to_a_voxel():
    points, normals, voxel = sphere(60000)
    cache = sorted_cache(points, voxel, normals=normals)
    for pose in map(torch.from_numpy, POSES):
        rendered = render_view(SphereField(), FRAME, CAMERA, pose)
        view = splat(cache, CAMERA, pose)
        assert view.coverage == 1.0
        apart = (cache.points[view.index] - rendered.points[view.cell]).norm(dim=-1)
        assert apart.max() < 2 * voxel and apart.median() < voxel


def test_the_nearest_to_the_centre_of_the_front_points_is_chosen(generator):
    camera = Camera('PINHOLE', 80, 80, 100.0, 100.0, 39.5, 39.5)
    cache = joined(board(2.0, 2.0, 0.021), voxel=0.021)
    view = splat(cache, camera, torch.eye(4))
    pixels = camera.project(cache.points)
    cells = ((pixels + 0.5) / 8).floor().long()
    inside = ((cells >= 0) & (cells < 10)).all(-1)
    for cell, chosen in zip(view.cell.tolist(), view.index.tolist()):
        centre = torch.tensor([cell % 10, cell // 10]) * 8 + 3.5
        own = inside & (cells[:, 1] * 10 + cells[:, 0] == cell)
        offsets = torch.where(own, (pixels - centre).norm(dim=-1), torch.inf)
        assert offsets[chosen] == offsets.min()
    assert view.coverage == 1.0


def test_a_nearer_surface_hides_what_is_behind_it():
    camera = Camera('PINHOLE', 160, 160, 100.0, 100.0, 79.5, 79.5)
    cache = joined(board(3.0, 6.0, 0.03), board(1.0, 0.8, 0.03), voxel=0.03)
    view = splat(cache, camera, torch.eye(4))
    rows, columns = view.cell // 20, view.cell % 20
    centre = torch.stack((columns, rows), -1) * 8 + 3.5 - 79.5
    behind_board = (centre.abs() < 36).all(-1)  # the board spans 40 pixels to each side
    beside_board = (centre.abs() > 44).any(-1)
    assert (view.depth[behind_board] == 1.0).all() and (view.depth[beside_board] == 3.0).all()
    assert behind_board.sum() == 64 and view.coverage == 1.0


def test_a_surface_with_gaps_as_wide_as_a_cell_still_hides():
    # Points 1.2 cells apart: some cells hold no point of the board but lie within its discs.
    camera = Camera('PINHOLE', 160, 160, 100.0, 100.0, 79.5, 79.5)
    cache = joined(board(3.0, 8.0, 0.1), board(1.0, 2.0, 0.096), voxel=0.1)
    view = splat(cache, camera, torch.eye(4))
    assert (view.depth == 1.0).all() and view.coverage > 0.6
    alone = splat(joined(board(3.0, 8.0, 0.1), voxel=0.1), camera, torch.eye(4))
    assert alone.coverage > view.coverage  # so there was something to hide


def test_a_point_that_leaks_between_nearer_ones_is_left_out():
    camera = Camera('PINHOLE', 80, 80, 100.0, 100.0, 39.5, 39.5)
    points, normals = board(1.0, 1.0, 0.01)
    x, y = (100 * points[:, 0] + 40) // 8, (100 * points[:, 1] + 40) // 8
    hole = (x == 4) & (y == 6)
    through = board(2.0, 2.0, 0.02)
    cache = joined((points[~hole], normals[~hole]), through, voxel=0.001)
    view = splat(cache, camera, torch.eye(4))
    assert (view.depth == 1.0).all() and 64 not in view.cell.tolist() and len(view.cell) == 99
    # A gap of two rows is no leak: what is seen through it is seen.
    gap = (y == 6) | (y == 5)
    cache = joined((points[~gap], normals[~gap]), through, voxel=0.001)
    view = splat(cache, camera, torch.eye(4))
    assert (view.depth == 2.0).sum() == 20 and view.coverage == 1.0


def test_points_that_face_away_are_not_seen_and_those_without_a_normal_are():
    points, normals, voxel = sphere(20000)
    pose = torch.from_numpy(POSES[0])
    assert splat(sorted_cache(points, voxel, normals=normals), CAMERA, pose).coverage == 1.0
    assert splat(sorted_cache(points, voxel, normals=-normals), CAMERA, pose).coverage == 0.0
    assert splat(sorted_cache(points, voxel), CAMERA, pose).coverage == 1.0


def test_nothing_is_seen_where_nothing_is():
    points, normals = board(-2.0, 6.0, 0.05)
    behind = joined((points, -normals), voxel=0.05)
    for lens, camera in LENSES.items():
        view = splat(behind, camera, torch.eye(4))
        assert (len(view.index) > 0) == (lens == 'beyond 180 degrees')
        empty = sorted_cache(torch.zeros(0, 3), 0.1)
        view = splat(empty, camera, torch.eye(4))
        assert (len(view.index), view.coverage) == (0, 0.0)
        assert (splat_grid(empty, camera, torch.eye(4))[0] == -1).all()


def test_large_coordinates_cost_no_accuracy_of_the_cells():
    far = torch.tensor([3000.0, -2000.0, 40.0])
    points, normals, voxel = sphere(20000)
    pose = torch.from_numpy(POSES[2]).clone()
    near_view = splat(sorted_cache(points, voxel, normals=normals), CAMERA, pose)
    pose[:3, 3] += far
    view = splat(sorted_cache(points + far, voxel, normals=normals), CAMERA, pose)
    assert torch.equal(view.cell, near_view.cell)
    torch.testing.assert_close(view.depth, near_view.depth, atol=0.1, rtol=0)


def test_the_cost_does_not_grow_with_the_map(monkeypatch):
    points, normals, voxel = sphere(20000)
    looked_at = []
    gather = splat_loops.gather_pinhole

    def counted(points, normals, starts, tiles, *rest):
        looked_at.append(sum((starts[t + 1] - starts[t]) for t in tiles))
        return gather(points, normals, starts, tiles, *rest)

    monkeypatch.setattr(splat_loops, 'gather_pinhole', counted)
    # Rooms side by side, the camera in the first looking along the row's other axis.
    for rooms in (1, 20):
        offsets = [torch.tensor([5.0 * k, 0.0, 0.0]) for k in range(rooms)]
        cache = sorted_cache(torch.cat([points + offset for offset in offsets]), voxel,
                             normals=normals.repeat(rooms, 1))
        view = splat(cache, CAMERA, torch.from_numpy(pose_at(0, 0, -1.5)))
        assert view.coverage == 1.0
    assert looked_at[0] < 0.6 * len(points) and looked_at[1] < 1.2 * looked_at[0]
