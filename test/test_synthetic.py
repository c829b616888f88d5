"""Properties of the synthetic room: exact geometry, determinism, and data sets that read back."""

from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.data.synthetic import (
    default_camera,
    map_trajectory,
    query_trajectory,
    synthetic_images,
    SyntheticRoom,
    write_dataset,
)
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest
import torch

SMALL = default_camera(80, 60)


@pytest.fixture(scope='module')
def room():
    return SyntheticRoom(seed=0)


def random_directions(count, seed=0):
    directions = np.random.default_rng(seed).normal(size=(count, 3))
    return directions / np.linalg.norm(directions, axis=1, keepdims=True)


def test_rays_stop_at_the_first_surface_found_by_marching(room):
    origin = np.array((1.6, 0.7, 1.3))
    directions = random_directions(60)
    distance, _ = room.cast(origin, directions)
    for direction, exact in zip(directions, distance):
        # The clearance never exceeds the way to the surface, so steps of it cannot pass one.
        marched = 0.0
        for _ in range(2000):
            step = room.clearance((origin + marched * direction)[None])[0]
            marched += step
            if step < 1e-6:
                break
        assert marched == pytest.approx(exact, abs=1e-3)


def test_depth_points_lie_on_surfaces(room):
    camera = Camera('OPENCV', 80, 60, 60, 60, 40, 30, (-.2, .05, 1e-3, 0))
    pose = map_trajectory(5)[2]
    _, depth = room.render(camera, pose, depth=True)
    rays = camera.rays(camera.pixel_grid(dtype=torch.float64)).numpy()
    points = rays / rays[:, 2:] * depth.reshape(-1, 1)
    in_map = points @ pose[:3, :3].T + pose[:3, 3]
    assert depth.dtype == np.float32 and (depth > 0).all()
    assert np.abs(room.clearance(in_map)).max() < 1e-5


def test_two_views_of_a_surface_show_the_same_colour(room):
    pose = map_trajectory(60)[0]
    moved = pose.copy()
    moved[:3, 3] += 0.1 * pose[:3, 0]
    camera = default_camera(160, 120)
    first, depth = room.render(camera, pose, depth=True)
    second, second_depth = room.render(camera, moved, depth=True)
    grid = camera.pixel_grid(dtype=torch.float64)
    points = camera.rays(grid)
    points = points / points[:, 2:] * torch.from_numpy(depth).double().reshape(-1, 1)
    points[:, 0] -= 0.1
    pixels = camera.project(points).round().long()
    inside = (pixels >= 0) & (pixels < torch.tensor((160, 120)))
    seen = (camera.sees(points) & inside.all(dim=1)).numpy()
    u, v = pixels.numpy()[seen].T
    visible = np.abs(second_depth[v, u] - points[seen, 2].numpy()) < 0.02
    difference = np.abs(first.reshape(-1, 3)[seen].astype(int) - second[v, u]).mean(1)[visible]
    assert visible.mean() > 0.9
    assert np.median(difference) < 6
    u_wrong = np.clip(u + 10, 0, 159)
    wrong = np.abs(first.reshape(-1, 3)[seen].astype(int) - second[v, u_wrong]).mean(1)[visible]
    assert np.median(wrong) > 3 * np.median(difference)


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(room):
    pose = map_trajectory(3)[1]
    picture = room.render(SMALL, pose)
    assert picture.dtype == np.uint8 and picture.shape == (60, 80, 3)
    np.testing.assert_array_equal(picture, SyntheticRoom(seed=0).render(SMALL, pose))
    other = SyntheticRoom(seed=1).render(SMALL, pose)
    assert np.abs(other.astype(int) - picture).mean() > 10


def test_every_view_has_texture(room):
    for pose in map_trajectory(24) + query_trajectory(8):
        grey = room.render(SMALL, pose).mean(axis=2)
        blocks = grey.reshape(3, 20, 4, 20).std(axis=(1, 3))
        assert np.median(blocks) > 8


def test_drives_keep_clear_of_furniture_and_are_smooth(room):
    for drive in (map_trajectory, query_trajectory):
        poses = np.stack(drive(200))
        rotations = poses[:, :3, :3]
        np.testing.assert_allclose(
            rotations.transpose(0, 2, 1) @ rotations, np.tile(np.eye(3), (200, 1, 1)), atol=1e-12)
        np.testing.assert_allclose(np.linalg.det(rotations), 1)
        assert room.clearance(poses[:, :3, 3]).min() > 0.2
        assert np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1).max() < 0.25
        assert 0.75 < poses[:, 2, 3].min() and poses[:, 2, 3].max() < 1.65


def test_queries_are_near_map_views_but_none_of_them():
    mapped, asked = np.stack(map_trajectory(120)), np.stack(query_trajectory(40))
    metres = np.linalg.norm(mapped[None, :, :3, 3] - asked[:, None, :3, 3], axis=-1)
    trace = np.einsum('mij,qij->qm', mapped[:, :3, :3], asked[:, :3, :3])
    degrees = np.degrees(np.arccos(np.clip((trace - 1) / 2, -1, 1)))
    assert ((metres > 0.01) & (degrees > 1)).any(axis=1).all()
    assert not ((metres < 0.01) & (degrees < 1)).any()
    assert ((metres < 0.5) & (degrees < 25)).any(axis=1).all()


def test_the_map_drive_sees_every_wall_the_floor_and_the_ceiling(room):
    seen = np.zeros(6)
    for pose in map_trajectory(30):
        rays = SMALL.rays(SMALL.pixel_grid(8, dtype=torch.float64)).numpy() @ pose[:3, :3].T
        _, face = room.cast(pose[:3, 3], rays)
        seen += np.bincount(face[face < 6], minlength=6)
    assert (seen > 20).all()


def test_a_camera_outside_the_room_is_refused(room):
    pose = np.eye(4)
    pose[:3, 3] = (4, 0, 1)
    with pytest.raises(DataError, match='outside the room'):
        room.render(SMALL, pose)


def test_a_written_data_set_reads_back(room, tmp_path):
    camera = Camera('OPENCV', 80, 60, 60, 61, 40.25, 30, (-.1, .01, 1e-3, 0))
    write_dataset(tmp_path, 3, 2, camera, depth=True, room=room)
    images = read_posed_images(tmp_path)
    assert [image.split for image in images] == ['test'] * 2 + ['train'] * 3
    expected = {image.name: image for split, count in (('train', 3), ('test', 2))
                for image in synthetic_images(split, count, camera, room=room, depth=True)}
    for image in images:
        made = expected[image.name]
        assert image.camera == made.camera
        np.testing.assert_allclose(image.map_from_camera, made.map_from_camera, atol=1e-12)
        # JPEG keeps colour at half resolution, so brightness is compared.
        brightness = [picture @ (0.299, 0.587, 0.114) for picture in (image.rgb(), made.rgb())]
        assert np.abs(brightness[0] - brightness[1]).mean() < 2.5
        np.testing.assert_allclose(image.depth_map(), made.depth_map(), atol=1.1e-4)


def test_an_unknown_split_is_refused():
    with pytest.raises(DataError, match="'val'"):
        synthetic_images('val', 1, SMALL)
