"""Pixels in a file: nothing large is held, masks and sky count, sizes are as asked for."""

from dataclasses import replace
from pathlib import Path

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.working_image import working_view
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.sparse_points import SparsePoints
from nerfmatch_ros.mapping.training_pixels import (
    map_pixels,
    pixel_camera,
    PixelSize,
    reduced_rgb,
    write_pixels,
)
from nerfmatch_ros.radiance_field.scene_frame import frustum_frame
import numpy as np
import pytest
from sphere_scene import FRAME
import torch

NO_POINTS = SparsePoints(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, int),
                         np.zeros((0, 2)), np.zeros(0, int))
CAMERA = Camera('PINHOLE', 48, 32, 40.0, 40.0, 23.5, 15.5)
LENS = Camera('OPENCV', 48, 32, 40.0, 40.0, 23.5, 15.5, (-0.1, 0.02, 0.001, 0.0))


def photographs(count, camera=CAMERA):
    """Take pictures of noise, each with a focal length of its own."""
    random = np.random.default_rng(0)
    return [PosedImage(f'{k}', replace(camera, fx=40.0 + k, fy=40.0 + k), np.eye(4),
                       pixels=random.integers(1, 200, (32, 48, 3), np.uint8))
            for k in range(count)]


def white_left_half(path):
    mask = np.zeros((32, 48), np.uint8)
    mask[:, :24] = 255
    cv2.imwrite(str(path), mask)
    return path


def is_mapped(tensor, path):
    """Tell whether a tensor lies in a file and not in memory of its own."""
    maps = Path('/proc/self/maps')
    if not maps.exists():
        pytest.skip('this system does not say what is mapped')
    ranges = [line.split()[0].split('-') for line in maps.read_text().splitlines()
              if line.endswith(str(path))]
    return any(int(start, 16) <= tensor.data_ptr() < int(end, 16) for start, end in ranges)


def test_pixels_stay_in_their_file_and_directions_are_computed(tmp_path):
    images = photographs(30)
    dataset = RayDataset(images, FRAME, NO_POINTS, how=PixelSize(48), file=tmp_path / 'pixels')
    assert is_mapped(dataset.colours, tmp_path / 'pixels')
    held = [value for value in vars(dataset).values()
            if torch.is_tensor(value) and value is not dataset.colours]
    assert sum(value.nbytes for value in held) < 30 * 300  # bytes: poses, cameras, sizes
    assert dataset.colours.nbytes == 30 * 48 * 32 * 3


def test_a_file_that_is_there_is_not_written_again(tmp_path, generator):
    images = photographs(2)
    write_pixels(tmp_path / 'pixels', images, PixelSize(48))
    unreadable = [replace(image, pixels=None, path=tmp_path / 'none.png') for image in images]
    dataset = RayDataset(unreadable, FRAME, NO_POINTS, how=PixelSize(48),
                         file=tmp_path / 'pixels')
    assert dataset.draw(20, 0, generator).colour.max() > 0


def test_a_killed_writing_leaves_no_file(tmp_path):
    images = [*photographs(1), replace(photographs(2)[1], pixels=None, path=tmp_path / 'none')]
    with pytest.raises(DataError, match='does not exist'):
        write_pixels(tmp_path / 'pixels', images, PixelSize(48))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('how', [PixelSize(48), PixelSize(24), PixelSize(48, (32, 32))])
def test_masks_and_sky_count_at_every_size(tmp_path, generator, how):
    mask = white_left_half(tmp_path / 'mask.png')
    images = [replace(photographs(1)[0], sky_path=mask),
              replace(photographs(2)[1], transient_path=mask)]
    painted = RayDataset(images, FRAME, NO_POINTS, how=replace(how, white_sky=True))
    batch = painted.draw(600, 0, generator)
    left = batch.rays.directions[:, 0] < 0
    first = batch.rays.image_index == 0
    assert (batch.colour[first & left] == 1).all() and (batch.colour[first & ~left] < 1).all()
    assert not (left & ~first).any() and (~left & ~first).any()
    plain = RayDataset(images, FRAME, NO_POINTS, how=how).draw(600, 0, generator)
    assert (plain.colour < 1).all() and (plain.rays.image_index == 0).any()
    assert not (plain.rays.directions[:, 0] < 0).any()  # neither sky nor what moves
    sky_alone = RayDataset(images[:1], FRAME, NO_POINTS, how=how).draw(600, 0, generator)
    assert not (sky_alone.rays.directions[:, 0] < 0).any()


def test_masks_that_leave_nothing_are_refused(tmp_path):
    cv2.imwrite(str(tmp_path / 'black.png'), np.zeros((32, 48), np.uint8))
    image = replace(photographs(1)[0], mask_path=tmp_path / 'black.png')
    with pytest.raises(DataError, match='inverted'):
        RayDataset([image], FRAME, NO_POINTS, how=PixelSize(48))


@pytest.mark.parametrize('camera', [CAMERA, LENS])
def test_squeezed_photographs_are_the_working_pictures_of_the_matcher(
        camera, generator, tmp_path):
    image = photographs(1, camera)[0]
    how, view = PixelSize(48, (32, 40)), working_view(image.camera, 1.0, 48, (32, 40))
    np.testing.assert_array_equal(reduced_rgb(image, how), view.picture(image.rgb()))
    assert pixel_camera(image.camera, how) == view.camera and view.camera.is_pinhole
    write_pixels(tmp_path / 'pixels', [image], how)
    colours = map_pixels(tmp_path / 'pixels')['colours']
    np.testing.assert_array_equal(colours.numpy().reshape(40, 32, 3), view.picture(image.rgb()))


@pytest.mark.parametrize('camera', [CAMERA, LENS])
def test_cones_in_a_ball_are_as_wide_as_their_own_pixel(camera, generator):
    image = photographs(1, camera)[0]
    frame = frustum_frame([image.camera], np.eye(4)[None], 3.0)
    pixels = image.camera.pixel_grid()
    numbered = torch.arange(len(pixels))
    picture = torch.stack((numbered % 256, numbered // 256, torch.zeros_like(numbered)), -1)
    image = replace(image, pixels=picture.byte().numpy().reshape(32, 48, 3))
    batch = RayDataset([image], frame, NO_POINTS, how=PixelSize(48)).draw(500, 0, generator)
    low, high, _ = (batch.colour * 255).round().long().unbind(-1)
    angles = image.camera.pixel_angles(pixels.double())[low + 256 * high]
    torch.testing.assert_close(batch.rays.radius.double(), angles * 2 / 12 ** 0.5,
                               rtol=1e-3, atol=0)
