"""Pixels that are drawn by frame: they show what the photograph shows where they look."""

from dataclasses import replace

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping import registration_pixels
from nerfmatch_ros.mapping.registration_pixels import RegistrationPixels
from nerfmatch_ros.mapping.training_pixels import PixelSize
import numpy as np
import pytest
import torch

CAMERAS = [Camera('PINHOLE', 40, 30, 35.0, 35.0, 19.5, 14.5),
           Camera('PINHOLE', 24, 32, 30.0, 31.0, 11.0, 16.0)]
HOW = PixelSize(40)


def photographs():
    """Give pictures that hold the place of each pixel: red its column, green its row."""
    images = []
    for k, camera in enumerate(CAMERAS):
        y, x = np.mgrid[:camera.height, :camera.width]
        pixels = np.stack([6 * x, 6 * y, np.full_like(x, 100 * k)], -1).astype(np.uint8)
        images.append(PosedImage(str(k), camera, pixels=pixels))
    return images


def projected(camera, directions):
    return camera.project(directions.double())


def test_rays_look_where_the_colour_was_taken(generator):
    drawn = RegistrationPixels(photographs(), HOW, 'cpu').draw(2, 50, generator)
    for row, frame in enumerate(drawn.frames.tolist()):
        places = projected(CAMERAS[frame], drawn.directions[row])
        colours = (255 * drawn.colour[row]).round().double()
        torch.testing.assert_close(6 * places, colours[:, :2], atol=1e-3, rtol=0)
        assert (colours[:, 2] == 100 * frame).all()


def test_the_plane_runs_from_edge_to_edge_of_the_longer_side():
    plane, directions = RegistrationPixels(photographs(), HOW, 'cpu').grid(30, 40)
    assert plane.shape == (2, 1200, 2) and directions.shape == (2, 1200, 3)
    torch.testing.assert_close(plane[0].amax(0), torch.tensor([39 / 40, 29 / 40]))
    torch.testing.assert_close(plane[1].amax(0), torch.tensor([23 / 32, 31 / 32]))
    torch.testing.assert_close(plane[0].amin(0), -plane[0].amax(0))


def test_fewer_frames_than_there_are_are_drawn_without_repetition(generator):
    images = [replace(photographs()[0], name=str(k)) for k in range(6)]
    drawn = RegistrationPixels(images, HOW, 'cpu').draw(4, 3, generator)
    assert drawn.colour.shape == (4, 3, 3) and len(set(drawn.frames.tolist())) == 4


def test_smoothed_colours_are_drawn_only_where_nothing_unseen_counts(generator, monkeypatch):
    images = photographs()
    mask = np.ones((30, 40), bool)
    mask[:, 30:] = False
    monkeypatch.setattr(registration_pixels, 'usable_pixels', lambda image, how: (
        mask if image.name == '0' else np.ones((32, 24), bool)).reshape(-1).astype(np.uint8))
    drawn = RegistrationPixels(images, HOW, 'cpu').draw(2, 400, generator, blur=2.0)
    # A ramp stays a ramp when it is smoothed, except where it was cut off.
    for row, right in ((0, 30), (1, 24)):
        places = projected(CAMERAS[row], drawn.directions[row])
        assert places[:, 0].min() >= 3.9 and places[:, 0].max() <= right - 4.9
        colours = 255 * drawn.colour[row, :, :2].double()
        torch.testing.assert_close(6 * places, colours, atol=1.5, rtol=0)


def test_a_photograph_that_is_masked_out_is_named(tmp_path):
    cv2.imwrite(str(tmp_path / 'mask.png'), np.zeros((30, 40), np.uint8))
    images = [replace(photographs()[0], mask_path=tmp_path / 'mask.png'), photographs()[1]]
    with pytest.raises(DataError, match="'0'"):
        RegistrationPixels(images, HOW, 'cpu')
