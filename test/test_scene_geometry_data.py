"""Batches for scene geometry: what cells look at stays true however a picture is turned."""

from dataclasses import replace

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import inverse, transform_points
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.scene_geometry_data import GeometryData
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
import numpy as np
import pytest
import torch

STEADY = AugmentationConfig(exposure=0.0, tint=0.0, blur=0.0, noise=0.0)


@pytest.fixture(scope='module')
def images(room):
    return synthetic_images('train', 6, default_camera(160, 120), room=room, supersample=1,
                            depth=True)


@pytest.fixture(scope='module')
def data(images):
    return GeometryData(images, 96, augmentation=STEADY, with_depth=True)


def test_a_batch_has_one_size_and_depends_on_its_seed_alone(data):
    batch, again, other = data.draw(3, [0, 1]), data.draw(3, [0, 1]), data.draw(3, [0, 2])
    assert batch.pictures.shape == (3, 3, 64, 96)
    assert batch.rays.shape == (3, 8, 12, 3) and batch.seen.shape == (3, 96)
    torch.testing.assert_close(batch.pictures, again.pictures)
    assert not torch.allclose(batch.pictures, other.pictures)


def points_of(batch):
    """Points (B, N, 3) in the map frame that the cells show, by the known depth."""
    return transform_points(batch.map_from_camera,
                            batch.depth[..., None] * batch.rays.flatten(1, 2))


def test_turned_pictures_show_the_same_points_of_the_room(data, images, room):
    batch = data.draw(6, [3])
    points, known = points_of(batch), batch.seen & (batch.depth > 0)
    assert known.float().mean() > 0.5
    # Seen from each photograph's own pose, those points lie at the depth that it has there.
    errors = []
    for k in range(6):
        index = next(i for i, image in enumerate(images) if np.allclose(
            image.map_from_camera[:3, 3], batch.map_from_camera[k, :3, 3]))
        camera = images[index].camera
        own = transform_points(inverse(torch.from_numpy(
            images[index].map_from_camera).float()), points[k][known[k]])
        column, row = camera.project(own).round().long().unbind(-1)
        expected = images[index].depth_map()[row, column]
        errors += (own[:, 2] - torch.from_numpy(expected)).abs().tolist()
    assert np.median(errors) < 1e-3 and np.percentile(errors, 90) < 0.05


@pytest.mark.parametrize('height', [120, 90, 160])  # of pixels that are square, low, or high
def test_colours_stay_with_the_directions_that_they_came_from(images, height):
    # A picture whose colours are directions: red across, green down.
    camera = images[0].camera.scaled_to(160, height)
    rays = camera.rays(camera.pixel_grid()).reshape(camera.height, camera.width, 3).numpy()
    pixels = (255 * (rays * 0.8 + 1) / 2).clip(0, 255).astype(np.uint8)
    image = PosedImage('directions', camera, images[0].map_from_camera, pixels=pixels)
    data = GeometryData([image], 96, augmentation=STEADY)
    batch = data.draw(1, [7])
    turn = torch.from_numpy(image.map_from_camera[:3, :3]).float().T \
        @ batch.map_from_camera[0, :3, :3]
    directions = batch.rays[0].reshape(-1, 3) @ turn.T
    directions = directions / directions.norm(dim=-1, keepdim=True)
    cells = torch.nn.functional.avg_pool2d(batch.pictures, 8)[0].flatten(1).T
    # At its border a cell shows only half of the photograph.
    inside = batch.seen[0] & (directions[:, :2].abs() < 0.25).all(-1)
    assert inside.sum() > 10
    assert batch.pictures.shape == (1, 3, 64, 96)  # whatever the shape of the photograph's pixels
    network = SceneGeometry(SceneGeometryConfig(
        channels=16, width=16, longest_side=96, working_focal=data.focal))
    assert data.camera == network.working_view(camera).camera  # as it will be seen
    torch.testing.assert_close(
        2 * cells[inside][:, :2] - 1, 0.8 * directions[inside][:, :2], atol=0.02, rtol=0)


def test_plain_pictures_are_seen_whole_with_their_own_poses(data, images):
    batch = data.plain([0, 4])
    assert batch.seen.all()
    for k, index in enumerate((0, 4)):
        np.testing.assert_allclose(batch.map_from_camera[k].numpy(),
                                   images[index].map_from_camera, atol=1e-6)


def test_pictures_of_several_cameras_come_in_one_size(images):
    wide = Camera('PINHOLE', 200, 100, 150.0, 150.0, 99.5, 49.5)
    other = PosedImage('wide', wide, images[1].map_from_camera,
                       pixels=np.zeros((100, 200, 3), np.uint8))
    data = GeometryData([*images, other], 96, augmentation=STEADY)
    batch = data.plain([0, 6])
    assert batch.pictures.shape == (2, 3, 64, 96)
    assert not batch.seen[1].all() and batch.seen[1].any()  # above and below it shows nothing


def test_sky_and_what_is_masked_has_no_place(images, tmp_path):
    camera = images[0].camera
    sky, mask = (np.full((camera.height, camera.width), value, np.uint8) for value in (0, 255))
    sky[:camera.height // 2] = 255
    mask[:, camera.width // 2:] = 0
    for name, picture in (('sky.png', sky), ('mask.png', mask)):
        assert cv2.imwrite(str(tmp_path / name), picture)
    masked = replace(images[0], sky_path=tmp_path / 'sky.png', mask_path=tmp_path / 'mask.png')
    batch = GeometryData([masked, images[1]], 96, augmentation=STEADY).plain([0, 1])
    still = batch.still.view(2, 8, 12)
    assert batch.seen.all() and still[1].all()
    assert still[0, 5:, :5].all() and not still[0, :4].any() and not still[0, :, 7:].any()


def test_photographs_without_poses_are_refused(images):
    unposed = PosedImage('one', images[0].camera, pixels=images[0].rgb())
    with pytest.raises(DataError, match='one has no pose'):
        GeometryData([unposed], 96, augmentation=STEADY)
    with pytest.raises(DataError, match='no photographs'):
        GeometryData([], 96, augmentation=STEADY)
