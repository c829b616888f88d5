"""Properties of cameras, against OpenCV and finite differences."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest
import torch

CAMERAS = {
    'pinhole': Camera('PINHOLE', 64, 48, 50, 51, 31.2, 23.9),
    'zero distortion': Camera('OPENCV', 64, 48, 50, 51, 31.2, 23.9, (0, 0, 0, 0)),
    'barrel': Camera('OPENCV', 64, 48, 45, 46, 31.2, 23.9, (-.28, .07, 2e-4, -2e-3)),
    'pincushion': Camera('OPENCV', 64, 48, 45, 46, 31.2, 23.9, (.3, .05, 2e-3, -2e-3)),
    'fisheye': Camera('OPENCV_FISHEYE', 64, 48, 25, 26, 31.2, 23.9, (.02, -.01, .003, -.001)),
    'rational': Camera(
        'RATIONAL', 64, 48, 50, 51, 31.2, 23.9, (.5, .1, 1e-3, 2e-3, .02, .6, .2, .05)),
}
every_camera = pytest.mark.parametrize('camera', CAMERAS.values(), ids=CAMERAS.keys())


def points_ahead(generator, count=40):
    points = torch.randn(count, 3, dtype=torch.float64, generator=generator) * 0.5
    points[:, 2] = 1 + points[:, 2].abs()
    points[0, :2] = 0  # on the optical axis
    points[1, :2] = 1e-7
    return points


@every_camera
@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_rays_are_unit_and_project_to_their_pixels(camera, dtype, tolerance):
    pixels = torch.cat((camera.pixel_grid(dtype=dtype),
                        torch.tensor([[camera.cx, camera.cy], [-.5, -.5]], dtype=dtype)))
    rays = camera.rays(pixels)
    torch.testing.assert_close(rays.norm(dim=-1), torch.ones(len(rays), dtype=dtype))
    torch.testing.assert_close(camera.project(3 * rays), pixels, atol=tolerance, rtol=0)


@every_camera
def test_projection_equals_opencv(camera, generator):
    points = points_ahead(generator).numpy()
    coefficients = np.array(camera.distortion or (0., 0, 0, 0))
    function = cv2.fisheye.projectPoints if 'FISH' in camera.model else cv2.projectPoints
    expected = function(points[:, None], np.zeros(3), np.zeros(3), camera.matrix(), coefficients)
    np.testing.assert_allclose(
        camera.project(torch.from_numpy(points)), expected[0][:, 0], atol=1e-9)


@every_camera
def test_jacobian_equals_finite_differences_and_gradient(camera, generator):
    points = points_ahead(generator)
    pixels, jacobian = camera.project_with_jacobian(points)
    torch.testing.assert_close(pixels, camera.project(points))
    steps = 1e-6 * torch.eye(3, dtype=torch.float64)
    numeric = torch.stack([(camera.project(points + h) - camera.project(points - h)) / 2e-6
                           for h in steps], dim=-1)
    torch.testing.assert_close(jacobian, numeric, atol=1e-5, rtol=1e-6)
    gradient = torch.stack([torch.autograd.functional.jacobian(camera.project, point)
                            for point in points])
    torch.testing.assert_close(jacobian, gradient, atol=1e-8, rtol=1e-8)


@every_camera
def test_gradient_of_rays_equals_finite_differences(camera):
    for pixel in ([camera.cx, camera.cy], [3., 5.], [60., 40.]):
        pixel = torch.tensor(pixel, dtype=torch.float64)
        gradient = torch.autograd.functional.jacobian(camera.rays, pixel)
        steps = 1e-5 * torch.eye(2, dtype=torch.float64)
        numeric = torch.stack([(camera.rays(pixel + h) - camera.rays(pixel - h)) / 2e-5
                               for h in steps], dim=-1)
        torch.testing.assert_close(gradient, numeric, atol=1e-8, rtol=1e-6)


@every_camera
def test_points_in_the_plane_of_the_camera_give_finite_pixels_and_gradients(camera):
    points = torch.tensor([[1., 2, 0], [0, 0, 0], [1, 0, 1e-12]], requires_grad=True)
    pixels = camera.project(points)
    pixels.sum().backward()
    assert pixels.isfinite().all() and points.grad.isfinite().all()
    assert camera.project_with_jacobian(points)[1].isfinite().all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-.3, .5), min_size=4, max_size=4), st.floats(0, 6.28), st.floats(0, 1))
def test_undistortion_converges_wherever_the_lens_is_one_to_one(radial, angle, share):
    camera = Camera('OPENCV_FISHEYE', 64, 48, 25, 25, 31, 23, tuple(radial))
    theta = share * min(camera._limit * 0.99, 3.0)
    ray = torch.tensor([np.sin(theta) * np.cos(angle), np.sin(theta) * np.sin(angle),
                        np.cos(theta)], dtype=torch.float64)
    torch.testing.assert_close(camera.rays(camera.project(ray)), ray, atol=1e-6, rtol=0)


def test_fisheye_sees_behind_itself():
    camera = Camera('OPENCV_FISHEYE', 400, 400, 100, 100, 199.5, 199.5, (0, 0, 0, 0))
    ray = torch.tensor([1., 0, -.1]).double()
    ray = ray / ray.norm()
    torch.testing.assert_close(camera.rays(camera.project(ray)), ray)
    assert camera.sees(ray)


def test_ghosts_beyond_the_fold_of_a_lens_are_not_seen():
    camera = Camera('OPENCV', 64, 48, 45, 46, 31.2, 23.9, (-.3, 0., 0., 0.))
    ghost = torch.tensor([1.8, 0., 1.])  # projects to u = 33: inside
    assert 0 < camera.project(ghost)[0] < 64
    assert not camera.sees(ghost)
    assert camera.sees(torch.tensor([.1, 0., 1.]))
    assert not camera.sees(torch.tensor([.1, 0., -1.]))


def test_pixel_grid_gives_the_centres_of_cells_row_by_row():
    grid = Camera('PINHOLE', 20, 17, 10, 10, 9.5, 8).pixel_grid(stride=8)
    assert grid.tolist() == [[3.5, 3.5], [11.5, 3.5], [3.5, 11.5], [11.5, 11.5]]
    assert Camera('PINHOLE', 3, 2, 1, 1, 1, 1).pixel_grid().tolist() == [
        [0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]


@every_camera
def test_resizing_keeps_the_rays_of_the_corners_and_the_centre(camera):
    large = camera.scaled_to(128, 144)
    corners = torch.tensor([[-.5, -.5], [63.5, 47.5], [31.5, 23.5]], dtype=torch.float64)
    in_large = (corners + 0.5) * torch.tensor([2., 3.], dtype=torch.float64) - 0.5
    torch.testing.assert_close(large.rays(in_large), camera.rays(corners), atol=1e-9, rtol=0)


@every_camera
def test_a_camera_survives_its_dictionary(camera):
    values = camera.to_dict()
    assert Camera.from_dict(values) == camera
    assert type(values['width']) is int and type(values['distortion']) is list


@pytest.mark.parametrize('change, message', [
    ({'model': 'EQUIRECTANGULAR'}, "'EQUIRECTANGULAR'.*PINHOLE"),
    ({'fx': float('nan')}, 'fx is nan'), ({'cy': float('inf')}, 'cy is inf'),
    ({'fy': -3}, 'fy is -3'), ({'width': 0}, 'width is 0'), ({'height': 10.5}, 'height is 10.5'),
    ({'distortion': (.1, .2)}, 'OPENCV has 4.*2 are given'), ({'cx': 'left'}, "cx is 'left'"),
    ({'k1': 3}, "unknown keys.*'k1'")])
def test_impossible_cameras_are_refused_with_the_value(change, message):
    values = {**CAMERAS['barrel'].to_dict(), **change}
    with pytest.raises(DataError, match=message):
        Camera.from_dict(values)


def test_a_missing_key_is_named():
    values = CAMERAS['barrel'].to_dict()
    del values['fx']
    with pytest.raises(DataError, match=r"lacks \['fx'\]"):
        Camera.from_dict(values)
