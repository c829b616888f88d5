"""The working picture: sides, focal length, and the way back to the photograph."""

from dataclasses import replace

import cv2
from nerfmatch_ros.data.working_image import as_tensor, working_focal, working_view
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest
import torch

CAMERAS = {
    'pinhole': Camera('PINHOLE', 403, 301, 330.0, 331.0, 200.0, 148.0),
    'opencv': Camera('OPENCV', 403, 301, 330.0, 331.0, 200.0, 148.0,
                     (-0.25, 0.06, 0.001, -0.002)),
    'no distortion': Camera('OPENCV', 403, 301, 330.0, 331.0, 200.0, 148.0, (0, 0, 0, 0)),
    'fisheye': Camera('OPENCV_FISHEYE', 403, 301, 230.0, 231.0, 200.0, 148.0,
                      (0.02, -0.01, 0.0, 0.0)),
}
camera = pytest.mark.parametrize('camera', CAMERAS.values(), ids=CAMERAS.keys())


@camera
@pytest.mark.parametrize('focal, longest', [(200.0, 240), (330.0, 480), (500.0, 800), (1e4, 320)])
def test_sides_are_multiples_of_16_and_never_too_long(camera, focal, longest):
    view = working_view(camera, focal, longest)
    assert view.camera.model == 'PINHOLE'
    assert view.camera.width % 16 == 0 and view.camera.height % 16 == 0
    assert max(view.camera.width, view.camera.height) <= longest
    # At least what a multiple of 16 leaves of the picture.
    assert view.scaled.width - view.camera.width < 16
    assert view.picture(np.zeros((301, 403, 3), np.uint8)).shape == (
        view.camera.height, view.camera.width, 3)


@camera
@pytest.mark.parametrize('focal', [200.0, 420.0])
def test_a_dot_is_found_where_the_view_says(camera, focal):
    view = working_view(camera, focal, 600)
    for place in ((120.0, 90.0), (290.0, 200.0), (201.0, 150.0)):
        v, u = np.mgrid[:301, :403]
        blob = np.exp(-((u - place[0]) ** 2 + (v - place[1]) ** 2) / (2 * 3.0 ** 2))
        picture = view.picture(np.repeat((255 * blob)[..., None], 3, 2).round().astype(np.uint8))
        weight = picture[..., 0].astype(float)
        rows, columns = np.mgrid[:picture.shape[0], :picture.shape[1]]
        found = torch.tensor([[(weight * columns).sum(), (weight * rows).sum()]]) / weight.sum()
        back = view.pixels_in_source(found)[0]
        np.testing.assert_allclose(back.numpy(), place, atol=0.25)


@camera
def test_a_point_has_one_direction_in_both_pictures(camera):
    view = working_view(camera, 250.0, 400)
    pixels = view.camera.pixel_grid(16, dtype=torch.float64)
    there = view.pixels_in_source(pixels)
    torch.testing.assert_close(camera.rays(there), view.camera.rays(pixels), atol=1e-7, rtol=0)


def test_working_focal_length_is_reached_whatever_the_resolution():
    camera = CAMERAS['pinhole']
    for factor in (0.5, 1.0, 1.7, 3.0):
        other = camera.scaled_to(round(403 * factor), round(301 * factor))
        assert working_view(other, 250.0, 480).camera.fx == pytest.approx(250, rel=0.01)


def test_resolutions_of_one_photograph_give_nearly_the_same_picture():
    random = np.random.default_rng(5)
    small = cv2.GaussianBlur(random.integers(0, 256, (120, 160, 3)).astype(np.float32),
                             (0, 0), 3) * 3 - 255
    large = cv2.resize(small.clip(0, 255).astype(np.uint8), (640, 480),
                       interpolation=cv2.INTER_CUBIC)
    camera = Camera('PINHOLE', 640, 480, 500, 500, 319.5, 239.5)
    pictures = [
        working_view(camera.scaled_to(w, h), 250.0, 480).picture(
            cv2.resize(large, (w, h), interpolation=cv2.INTER_AREA)).astype(float)
        for w, h in ((640, 480), (320, 240), (240, 180))]
    assert pictures[0].shape == pictures[1].shape == pictures[2].shape
    for other in pictures[1:]:
        assert np.abs(pictures[0] - other).mean() < 2


def test_tiny_photographs_are_brought_to_16_pixels():
    view = working_view(Camera('PINHOLE', 6, 5, 4.0, 4.0, 2.5, 2.0), 4.0, 480)
    assert (view.camera.width, view.camera.height) == (16, 16)
    torch.testing.assert_close(
        view.pixels_in_source(torch.tensor([[7.5, 7.5]])),
        torch.tensor([[2.5, 2.0]], dtype=torch.float64))


def test_working_focal_is_of_the_median_camera():
    cameras = [Camera('PINHOLE', w, w // 2, f, f, w / 2, w / 4)
               for w, f in ((960, 800.0), (480, 410.0), (240, 900.0))]
    assert working_focal(cameras, 480) == 410.0


def test_tensors_have_channels_first_and_end_at_one():
    picture = np.array([[[0, 51, 255]]], np.uint8)
    assert as_tensor(picture).tolist() == [[[0.0]], [[pytest.approx(0.2)]], [[1.0]]]


@pytest.mark.parametrize('across, down', [
    (1.0, 0.75), (0.7, 1.0), (1.0, 0.3), (0.3, 1.5), (1.02, 1.0)])
@camera
def test_pixels_that_are_not_square_can_be_made_square(camera, across, down):
    whole = camera.scaled_to(806, 602)
    odd = whole.scaled_to(round(806 * across), round(602 * down))
    view, usual = (working_view(each, 250.0, 800, square=True) for each in (odd, whole))
    assert view.camera.fx == pytest.approx(view.camera.fy, rel=0.01)
    assert view.camera.fx == pytest.approx(250, rel=0.01)
    pixels = view.camera.pixel_grid(16, dtype=torch.float64)
    torch.testing.assert_close(
        odd.rays(view.pixels_in_source(pixels)), view.camera.rays(pixels), atol=1e-7, rtol=0)
    # Both show a thing at the same place.
    v, u = np.mgrid[:602, :806]
    picture = np.stack((u / 4, v / 4, 128 + 0 * u), -1).round().astype(np.uint8)
    seen, expected = (each.picture(cv2.resize(
        picture, (each.source.width, each.source.height), interpolation=cv2.INTER_AREA),
    ).astype(float) for each in (view, usual))
    h, w = np.minimum(seen.shape, expected.shape)[:2]
    assert abs(seen[:h, :w] - expected[:h, :w])[4:-4, 4:-4].max() < 3


@camera
def test_square_pixels_stay_as_they_are(camera):
    for down in (0.991, 1.0, 1.009):
        nearly = replace(camera, fy=camera.fx * down)
        assert working_view(nearly, 200.0, 240, square=True) == working_view(nearly, 200.0, 240)


def test_pixels_that_are_not_square_stay_within_the_longest_side():
    for odd in (Camera('PINHOLE', 640, 480, 600.0, 200.0, 319.5, 239.5),
                Camera('PINHOLE', 640, 480, 200.0, 600.0, 319.5, 239.5)):
        view = working_view(odd, 400.0, 320, square=True).camera
        assert max(view.width, view.height) <= 320
        assert view.fx == pytest.approx(view.fy, rel=0.02)


def test_what_shrinks_along_one_side_alone_is_averaged():
    # Stripes of one pixel, across a picture that is enlarged down.
    odd = Camera('PINHOLE', 600, 100, 500.0, 100.0, 299.5, 49.5)
    for camera, axis in ((odd, 1), (Camera('PINHOLE', 100, 600, 100.0, 500.0, 49.5, 299.5), 0)):
        stripes = np.zeros((camera.height, camera.width, 3), np.uint8)
        stripes[(slice(None), slice(None, None, 2)) if axis else slice(None, None, 2)] = 255
        view = working_view(camera, 125.0, 800, square=True)
        picture = view.picture(stripes)
        assert np.abs(picture.astype(int) - 127).max() < 20


def test_a_view_of_a_given_size_squeezes_and_keeps_rays(tmp_path):
    camera = Camera('OPENCV', 640, 360, 400.0, 410.0, 310.0, 170.0, (-0.1, 0.02, 0.0, 0.0))
    view = working_view(camera, 1.0, 1, size=(96, 64))
    assert (view.camera.width, view.camera.height, view.camera.model) == (96, 64, 'PINHOLE')
    assert view.camera.fx / camera.fx == pytest.approx(96 / 640)
    assert view.camera.fy / camera.fy == pytest.approx(64 / 360)
    pixels = torch.tensor([[48.0, 30.0], [10.0, 50.0]], dtype=torch.float64)
    torch.testing.assert_close(
        camera.rays(view.pixels_in_source(pixels)), view.camera.rays(pixels))
    ramp = np.broadcast_to(np.linspace(0, 255, 640).round().astype(np.uint8)[:, None],
                           (360, 640, 3))
    picture = view.picture(ramp)
    assert picture.shape == (64, 96, 3)
    u = view.pixels_in_source(torch.tensor([[48.0, 32.0]], dtype=torch.float64))[0, 0].item()
    assert abs(picture[32, 48, 0] - 255 * u / 639) < 2


def test_sizes_without_whole_cells_are_refused():
    with pytest.raises(ConfigError, match=r'working_size is \[480, 270\]'):
        working_view(Camera('PINHOLE', 64, 48, 50.0, 50.0, 31.5, 23.5), 1.0, 1, size=(480, 270))
