"""Training rays: each pixel's ray, colour and distance belong together."""

from dataclasses import replace

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.mapping.depth_map import DepthMap
from nerfmatch_ros.mapping.ray_dataset import RayDataset
from nerfmatch_ros.mapping.sparse_points import SparsePoints
from nerfmatch_ros.mapping.training_pixels import PixelSize, working_camera, working_rgb
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

FRAME = SceneFrame(
    Similarity(0.25, Rotation.from_rotvec([0.1, 0.2, 0.5]).as_matrix(), np.array([0.1, 0.2, 0])),
    0.02, 4.0)
NO_POINTS = SparsePoints(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, int),
                         np.zeros((0, 2)), np.zeros(0, int))
CAMERAS = [Camera('PINHOLE', 40, 30, 35.0, 36.0, 19.0, 15.0),
           Camera('OPENCV', 24, 32, 30.0, 30.0, 12.0, 15.0, (-0.1, 0.02, 0.001, 0.0))]


def numbered_images():
    """Images of two cameras whose pixels hold column, row and number of the image."""
    images = []
    for k, camera in enumerate([CAMERAS[0], CAMERAS[1], CAMERAS[0]]):
        v, u = np.mgrid[:camera.height, :camera.width]
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_rotvec([0.3 * k, -0.2, 0.1]).as_matrix()
        pose[:3, 3] = k, 0.5, -k
        images.append(PosedImage(
            f'{k}.png', camera, pose,
            pixels=np.stack([u, v, np.full_like(u, k)], -1).astype(np.uint8)))
    return images


def test_rays_are_those_of_their_pixels(generator):
    images = numbered_images()
    dataset = RayDataset(images, FRAME, NO_POINTS, how=PixelSize(100))
    batch = dataset.draw(500, 50, generator)
    assert len(batch.rays) == 500 and (batch.distance == 0).all()
    u, v, k = (batch.colour * 255).round().long().unbind(-1)
    assert torch.equal(batch.rays.image_index, k) and set(k.tolist()) == {0, 1, 2}
    for image_index, image in enumerate(images):
        own = k == image_index
        pixels = torch.stack([u[own], v[own]], -1).double()
        rays = FRAME.rays(torch.from_numpy(image.map_from_camera), image.camera.rays(pixels), 0.01)
        torch.testing.assert_close(batch.rays.origins[own].double(), rays.origins,
                                   atol=1e-5, rtol=0)
        torch.testing.assert_close(batch.rays.directions[own].double(), rays.directions,
                                   atol=1e-5, rtol=0)


def test_every_pixel_is_drawn_as_often(generator):
    dataset = RayDataset(numbered_images(), FRAME, NO_POINTS, how=PixelSize(100))
    count = torch.bincount(dataset.draw(60000, 0, generator).rays.image_index)
    pixels = torch.tensor([1200, 768, 1200])
    torch.testing.assert_close(count / 60000, pixels / pixels.sum(), atol=0.01, rtol=0)


def test_depth_images_give_the_distance_to_what_is_seen(room, generator):
    images = synthetic_images('train', 3, default_camera(80, 60), room=room, depth=True)
    images[1] = replace(images[1], depth=None)
    batch = RayDataset(images, FRAME, NO_POINTS, how=PixelSize(80)).draw(400, 0, generator)
    known = batch.distance > 0
    assert torch.equal(known, batch.rays.image_index != 1)
    ends = FRAME.to_map(batch.rays.origins + batch.distance[:, None] * batch.rays.directions)
    for k in (0, 2):
        own = batch.rays.image_index == k
        origin = images[k].map_from_camera[:3, 3]
        away = ends[own].double().numpy() - origin
        length = np.linalg.norm(away, axis=1)
        hit, _ = room.cast(origin, away / length[:, None])
        np.testing.assert_allclose(length, hit, atol=2e-3)
    assert (batch.tolerance > 0).all()


def test_sparse_points_are_drawn_on_their_pixels_with_their_distance(generator):
    images = numbered_images()
    pixel = np.array([[3.2, 4.4], [21.0, 30.0], [38.6, 7.7]])
    image_index, points = np.array([0, 1, 2]), []
    for k, p in zip(image_index, pixel):
        ray = images[k].camera.rays(torch.from_numpy(p)).numpy()
        pose = images[k].map_from_camera
        points.append(pose[:3, 3] + (2.0 + k) * pose[:3, :3] @ ray)
    sparse = SparsePoints(np.array(points), np.zeros(3), np.full(3, 0.3), image_index, pixel,
                          np.arange(3))
    dataset = RayDataset(images, FRAME, sparse, how=PixelSize(100))
    batch = dataset.draw(10, 60, generator)
    assert len(batch.colour) == 70 and (batch.distance[:10] == 0).all()
    k = batch.rays.image_index[10:]
    assert set(k.tolist()) == {0, 1, 2}
    expected = torch.from_numpy(np.round(pixel))[k] / 255
    torch.testing.assert_close(batch.colour[10:, :2].double(), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(batch.distance[10:], 0.25 * (2.0 + k), atol=1e-5, rtol=0)
    ends = batch.rays.origins + batch.distance[:, None] * batch.rays.directions
    wanted = FRAME.to_scene(torch.tensor(np.array(points), dtype=torch.float32))[k]
    # The ray is of the pixel's centre, up to 0.5 pixels from the point.
    assert ((ends[10:] - wanted).norm(dim=-1) < batch.distance[10:] * 0.8 / 30).all()
    assert (batch.tolerance[10:] < 0.2 * batch.distance[10:]).all()


def test_masked_pixels_are_never_drawn(tmp_path, generator):
    images = numbered_images()
    mask = np.zeros((30, 40), np.uint8)
    mask[:, :20] = 255
    cv2.imwrite(str(tmp_path / 'mask.png'), mask)
    images[0] = replace(images[0], mask_path=tmp_path / 'mask.png')
    batch = RayDataset(images, FRAME, NO_POINTS, how=PixelSize(100)).draw(3000, 0, generator)
    u, _, k = (batch.colour * 255).round().long().unbind(-1)
    assert u[k == 0].max() == 19 and u[k == 2].max() > 30


def test_large_photographs_are_reduced_and_small_ones_left():
    camera = Camera('PINHOLE', 640, 480, 500, 500, 319.5, 239.5)
    assert working_camera(camera, 1000) == camera
    small = working_camera(camera, 160)
    assert (small.width, small.height, small.fx) == (160, 120, 125)
    image = PosedImage('a', camera, np.eye(4), pixels=np.full((480, 640, 3), 7, np.uint8))
    assert working_rgb(image, small).shape == (120, 160, 3)


@pytest.mark.parametrize('longest', [20, 33])
def test_reduced_depth_and_sparse_pixels_stay_in_the_picture(longest, generator):
    images = [replace(image, depth=np.ones(image.pixels.shape[:2], np.float32))
              for image in numbered_images()]
    corner = np.array([[-0.5, -0.5], [39.49, 29.49]])
    sparse = SparsePoints(np.ones((2, 3)), np.zeros(2), np.full(2, 0.1), np.zeros(2, int), corner,
                          np.arange(2))
    batch = RayDataset(images, FRAME, sparse, how=PixelSize(longest)).draw(20, 20, generator)
    assert batch.distance.isfinite().all() and (batch.rays.image_index[20:] == 0).all()


def test_depth_maps_fill_in_where_an_image_has_no_depth(room, generator):
    images = synthetic_images('train', 4, default_camera(80, 60), room=room, depth=True)
    maps = [DepthMap(image.depth, image.camera) for image in images]
    shadowed = DepthMap(images[0].depth * 9, images[0].camera)  # of an image with depth
    bare = [images[0], *(replace(image, depth=None) for image in images[1:])]
    dataset = RayDataset(bare, FRAME, NO_POINTS, how=PixelSize(80), depth_tolerance=0.04,
                         depths=[shadowed, maps[1], None, maps[3]])
    batch = dataset.draw(2000, 0, generator)
    k = batch.rays.image_index
    assert torch.equal(batch.distance > 0, k != 2)
    full = RayDataset(images, FRAME, NO_POINTS, how=PixelSize(80))
    generator.manual_seed(generator.initial_seed())
    expected = full.draw(2000, 0, generator)
    assert torch.equal(expected.rays.image_index, k)
    known = k != 2
    torch.testing.assert_close(batch.distance[known], expected.distance[known], rtol=1e-5, atol=0)
    looked_up = (k == 1) | (k == 3)
    torch.testing.assert_close(
        batch.tolerance[looked_up], 0.04 * expected.distance[looked_up] + 1e-3)


def test_sparse_points_count_before_depth_maps(generator):
    images = numbered_images()[:1]
    camera = CAMERAS[0]
    sparse = SparsePoints(np.array([[0, 0.5, 3.0]]), np.zeros(1), np.ones(1), np.zeros(1, int),
                          np.array([[19.0, 15.0]]), np.zeros(1, int))
    flat = DepthMap(np.full((30, 40), 2.0, np.float32), camera)
    batch = RayDataset(images, FRAME, sparse, how=PixelSize(100), depths=[flat]).draw(
        5, 3, generator)
    z = batch.distance / FRAME.scene_from_map.scale
    assert (z[:5] >= 2 - 1e-5).all() and (z[:5] < 2.6).all()
    torch.testing.assert_close(z[5:], torch.full((3,), 3.0), atol=1e-4, rtol=0)
