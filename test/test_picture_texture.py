"""Blur, slopes and samples of a picture, and the choice of its steepest pixels."""

import cv2
from nerfmatch_ros.localization.picture_texture import (
    blurred,
    choose_pixels,
    slopes_of,
    texture_of,
)
import numpy as np
import pytest
import torch


def noise(generator, height=48, width=64):
    return torch.rand(3, height, width, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize('sigma', [0.7, 2.0, 5.0])
def test_blur_is_the_gaussian_of_opencv(generator, sigma):
    picture = noise(generator)
    size = 2 * int(np.ceil(3 * sigma)) + 1
    expected = cv2.GaussianBlur(picture.permute(1, 2, 0).numpy(), (size, size), sigma,
                                borderType=cv2.BORDER_REPLICATE)
    np.testing.assert_allclose(blurred(picture, sigma).permute(1, 2, 0), expected, atol=1e-9)
    assert blurred(picture, 0.0) is picture


def test_slopes_are_those_of_opencv(generator):
    picture = noise(generator)
    for axis in range(2):
        expected = cv2.Scharr(picture.permute(1, 2, 0).numpy(), cv2.CV_64F, 1 - axis, axis,
                              scale=1 / 32, borderType=cv2.BORDER_REPLICATE)
        np.testing.assert_allclose(slopes_of(picture)[:, axis].permute(1, 2, 0), expected,
                                   atol=1e-12)


def test_a_plane_in_colour_is_sampled_exactly(generator):
    v, u = torch.meshgrid(torch.arange(48.).double(), torch.arange(64.).double(), indexing='ij')
    picture = torch.stack((0.1 * u, 0.2 * v, 0.3 * u - 0.1 * v + 1))
    texture = texture_of(picture)
    pixels = torch.rand(7, 5, 2, generator=generator).double() * 40 + 3
    assert texture.holds(pixels).all()
    colours, slopes = texture.at(pixels)
    x, y = pixels.unbind(-1)
    torch.testing.assert_close(colours, torch.stack((.1 * x, .2 * y, .3 * x - .1 * y + 1), -1))
    expected = torch.tensor([[.1, 0, .3], [0, .2, -.1]]).double().expand_as(slopes)
    torch.testing.assert_close(slopes, expected, atol=1e-7, rtol=0)


def test_what_is_not_a_pixel_is_not_held():
    texture = texture_of(torch.zeros(3, 48, 64))
    nan, inf = float('nan'), float('inf')
    pixels = torch.tensor([[nan, 5.], [5., inf], [-1., 5.], [5., 47.], [63., 5.], [60.5, 44.5]])
    assert texture.holds(pixels).tolist() == [False] * 5 + [True]


def test_pixels_are_the_steepest_of_cells_that_cover_the_picture(generator):
    picture = noise(generator)
    pixels = choose_pixels(picture, 48, blur=0.0)  # cells of 8 x 8
    assert pixels.dtype == torch.float64 and len(pixels) == 48
    cells = (pixels // 8).long()
    assert len({tuple(cell) for cell in cells.tolist()}) == 48
    steepness = slopes_of(picture.mean(0, keepdim=True)).square().sum((0, 1))
    for (u, v), (column, row) in zip(pixels.long().tolist(), cells.tolist()):
        cell = steepness[8 * row:8 * row + 8, 8 * column:8 * column + 8]
        assert steepness[v, u] == cell.max()


@pytest.mark.parametrize('count', [1, 7, 100, 1000, 10 ** 6])
def test_never_more_pixels_than_asked(generator, count):
    picture = noise(generator)
    chosen = choose_pixels(picture, count)
    assert min(count, 48 * 64) / 4 <= len(chosen) <= min(count, 48 * 64)


def test_only_usable_pixels_are_chosen(generator):
    usable = torch.zeros(48, 64, dtype=torch.bool)
    usable[10:30, 20:50] = True
    u, v = choose_pixels(noise(generator), 200, usable=usable).long().T
    assert len(u) > 20 and usable[v, u].all()
