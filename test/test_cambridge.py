"""Cambridge Landmarks as distributed: lists, NVM file, sizes, and what is left out."""

import logging

import cv2
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

TURN = Rotation.from_rotvec((0.3, -1.2, 0.4))  # camera_from_map
W, X, Y, Z = np.roll(TURN.as_quat(), 1)
CENTRE = (3.5, -2.0, 1.25)
HEADING = 'Visual Landmark Dataset V1\nImageFile, Camera Position [X Y Z W P Q R]\n\n'


def dataset(folder, cameras, train=('seq1/a.png', 'seq1/b.png'), test=('seq2/c.png',),
            size=(32, 18)):
    """Write lists, pictures and a reconstruction of camera lines."""
    for split, names in (('train', train), ('test', test)):
        lines = ''.join(f'{name} 0 0 0 1 0 0 0\n' for name in names)
        (folder / f'dataset_{split}.txt').write_text(HEADING + lines)
    for name in (*train, *test):
        (folder / name).parent.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / name), np.zeros((*size[::-1], 3), np.uint8))
    (folder / 'reconstruction.nvm').write_text(
        f'NVM_V3 \n\n{len(cameras)}\n' + ''.join(cameras) + '\n1\n0 0 0 9 9 9 0\n')
    return folder


def camera_line(name, focal=1600.0, quaternion=(W, X, Y, Z), centre=CENTRE):
    return f'{name}\t{focal} ' + ' '.join(map(str, (*quaternion, *centre))) + ' -0.07 0 \n'


CAMERAS = [camera_line('seq2/c.jpg', 1800.0), camera_line('seq1/other.jpg'),
           camera_line('seq1/b.jpg'), camera_line('seq1/a.jpg')]


def test_lists_give_the_split_and_the_reconstruction_the_rest(tmp_path):
    images = read_posed_images(dataset(tmp_path, CAMERAS))
    assert [image.name for image in images] == ['seq1/a.png', 'seq1/b.png', 'seq2/c.png']
    assert [image.split for image in images] == ['train', 'train', 'test']
    assert [image.camera.fx for image in images] == pytest.approx([1600 / 60, 1600 / 60, 30])
    assert [i.name for i in read_posed_images(tmp_path, 'test')] == ['seq2/c.png']
    for image in images:
        np.testing.assert_allclose(image.map_from_camera[:3, 3], CENTRE)
        # The file's quaternion is of camera_from_map.
        point = image.map_from_camera @ (0.5, 0.25, 2, 1)
        np.testing.assert_allclose(
            TURN.apply(point[:3] - np.array(CENTRE)), (0.5, 0.25, 2), atol=1e-12)


def test_the_principal_point_is_the_middle_and_the_lens_a_pinhole(tmp_path):
    camera = read_posed_images(dataset(tmp_path, CAMERAS))[0].camera
    assert camera == Camera('PINHOLE', 32, 18, 1600 / 60, 1600 / 60, 15.5, 8.5)
    pixel = camera.project(torch.tensor([[0.0, 0.0, 1.0]]))
    assert (pixel + 0.5).tolist() == [[16, 9]]


def test_frames_without_a_sensible_pose_are_left_out_and_said(tmp_path, caplog):
    wild = camera_line('seq1/a.jpg', centre=(0, -2e5, 0))
    folder = dataset(tmp_path, [wild, CAMERAS[0]])  # and none for seq1/b
    with caplog.at_level(logging.WARNING, logger='nerfmatch_ros'):
        assert [image.name for image in read_posed_images(folder)] == ['seq2/c.png']
    assert '2 frames' in caplog.text and 'seq1/a.png' in caplog.text


def test_cropped_pictures_are_refused(tmp_path):
    with pytest.raises(DataError, match='seq./..png has 32 x 24 pixels.*resized but not cropped'):
        read_posed_images(dataset(tmp_path, CAMERAS, size=(32, 24)))


@pytest.mark.parametrize('cameras, message', [
    (['seq1/a.jpg 1600 1 0 0\n'], 'reconstruction.nvm, line 4: expected name, focal length'),
    ([camera_line('seq1/a.jpg', quaternion=(0, 0, 0, 0))], 'line 4: .*quaternion')])
def test_wrong_lines_are_named(tmp_path, cameras, message):
    with pytest.raises(DataError, match=message):
        read_posed_images(dataset(tmp_path, cameras))


def test_cut_and_other_files_are_named(tmp_path):
    folder = dataset(tmp_path, CAMERAS)
    text = (folder / 'reconstruction.nvm').read_text()
    for other in (text[:60], 'NVM_V3\n', '', 'BUNDLE\n' + text[8:]):
        (folder / 'reconstruction.nvm').write_text(other)
        with pytest.raises(DataError, match='no whole NVM file'):
            read_posed_images(folder)


def test_missing_pictures_are_named(tmp_path):
    (dataset(tmp_path, CAMERAS) / 'seq1/b.png').unlink()
    with pytest.raises(DataError, match="frame 'seq1/b.png': picture .* does not exist"):
        read_posed_images(tmp_path)


def test_masks_are_needed_for_the_split_that_is_read_only(tmp_path):
    folder = dataset(tmp_path, CAMERAS, size=(64, 36))
    for name in ('a', 'b'):
        path = tmp_path / 'masks/masks_bg' / folder.name / 'seq1' / f'{name}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((18, 32), 255, np.uint8))
    images = read_posed_images(folder, 'train', masks=tmp_path / 'masks')
    assert all(image.sky_mask().all() for image in images)
    assert images[0].sky_mask().shape == (36, 64)
    with pytest.raises(DataError, match="'seq2/c.png': mask"):
        read_posed_images(folder, masks=tmp_path / 'masks')
