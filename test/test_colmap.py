"""Properties of the reader of COLMAP models."""

import sys

import cv2
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

TURN = Rotation.from_rotvec((.3, -.2, .5))


@pytest.fixture
def pycolmap():
    return pytest.importorskip('pycolmap', reason='pycolmap is not installed ([sfm])')


def dataset(folder, model='OPENCV 32 24 50 51 16 12 0.1 0.01 0.001 0.002', inside='sparse/0'):
    """Write a text model of two images; `model` is the line of its camera."""
    (folder / 'images').mkdir()
    (folder / inside).mkdir(parents=True, exist_ok=True)
    x, y, z, w = TURN.as_quat()
    lines = []
    for number, name in ((1, 'b.png'), (2, 'a.png')):
        cv2.imwrite(str(folder / 'images' / name), np.zeros((24, 32, 3), np.uint8))
        lines.append(f'{number} {w} {x} {y} {z} 1 2 {number} 1 {name}\n\n')
    (folder / inside / 'cameras.txt').write_text(f'1 {model}\n')
    (folder / inside / 'images.txt').write_text(''.join(lines))
    (folder / inside / 'points3D.txt').write_text('')
    return folder


@pytest.mark.parametrize('inside', ['sparse/0', 'sparse', '.'])
@pytest.mark.parametrize('binary', [False, True])
def test_text_and_binary_models_are_found_and_converted(pycolmap, tmp_path, inside, binary):
    dataset(tmp_path, inside=inside)
    if binary:
        pycolmap.Reconstruction(str(tmp_path / inside)).write_binary(str(tmp_path / inside))
        for file in (tmp_path / inside).glob('*.txt'):
            file.unlink()
    images = read_posed_images(tmp_path)
    assert [image.name for image in images] == ['a.png', 'b.png']
    assert [image.split for image in images] == ['test', 'train']
    camera_from_map = np.eye(4)
    camera_from_map[:3, :3] = TURN.as_matrix()
    camera_from_map[:3, 3] = (1, 2, 2)
    np.testing.assert_allclose(
        images[0].map_from_camera @ camera_from_map, np.eye(4), atol=1e-12)
    camera = images[0].camera
    assert (camera.cx, camera.cy) == (15.5, 11.5)  # COLMAP counts from the corner
    assert images[0].rgb().shape == (24, 32, 3)


@pytest.mark.parametrize('line, model, focal, distortion', [
    ('SIMPLE_PINHOLE 32 24 50 16 12', 'PINHOLE', (50, 50), ()),
    ('PINHOLE 32 24 50 51 16 12', 'PINHOLE', (50, 51), ()),
    ('SIMPLE_RADIAL 32 24 50 16 12 .1', 'OPENCV', (50, 50), (.1, 0, 0, 0)),
    ('RADIAL 32 24 50 16 12 .1 .2', 'OPENCV', (50, 50), (.1, .2, 0, 0)),
    ('OPENCV 32 24 50 51 16 12 .1 .2 .3 .4', 'OPENCV', (50, 51), (.1, .2, .3, .4)),
    ('OPENCV_FISHEYE 32 24 50 51 16 12 .1 .2 .3 .4', 'OPENCV_FISHEYE', (50, 51),
     (.1, .2, .3, .4)),
    ('FULL_OPENCV 32 24 50 51 16 12 .1 .2 .3 .4 .5 .6 .7 .8', 'RATIONAL', (50, 51),
     (.1, .2, .3, .4, .5, .6, .7, .8))])
def test_projection_equals_colmap(pycolmap, tmp_path, line, model, focal, distortion):
    camera = read_posed_images(dataset(tmp_path, line))[0].camera
    assert (camera.model, (camera.fx, camera.fy)) == (model, focal)
    assert camera.distortion == pytest.approx(distortion)
    theirs = pycolmap.Reconstruction(str(tmp_path / 'sparse/0')).cameras[1]
    point = np.array((.13, -.09, 1.0))
    expected = np.asarray(theirs.img_from_cam(point)).ravel() - 0.5
    np.testing.assert_allclose(camera.project(torch.from_numpy(point)), expected, atol=1e-9)


def test_unsupported_models_and_missing_pictures_are_named(pycolmap, tmp_path):
    dataset(tmp_path, 'FOV 32 24 50 51 16 12 0.9')
    with pytest.raises(DataError, match='camera 1 has model FOV.*image_undistorter'):
        read_posed_images(tmp_path)
    other = tmp_path / 'other'
    other.mkdir()
    dataset(other)
    (other / 'images' / 'a.png').unlink()
    with pytest.raises(DataError, match="'a.png'.*does not exist"):
        read_posed_images(other)
    (other / 'images' / 'b.png').unlink()
    (other / 'images').rmdir()
    with pytest.raises(DataError, match="no folder 'images'"):
        read_posed_images(other)


def test_a_broken_model_is_named(pycolmap, tmp_path):
    dataset(tmp_path)
    (tmp_path / 'sparse/0/images.txt').write_text('1 nan 0 0 0 1 2 3 1 a.png\n\n')
    with pytest.raises(DataError, match='sparse/0 cannot be read'):
        read_posed_images(tmp_path)


def test_without_pycolmap_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycolmap', None)
    with pytest.raises(DataError, match=r'pip install nerfmatch_ros\[sfm\]'):
        read_posed_images(dataset(tmp_path))
