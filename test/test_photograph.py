from dataclasses import replace

import cv2
from fake_localizer import CAMERA, queries
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.data.photograph import camera_of_size, read_camera, read_photograph
from nerfmatch_ros.errors import DataError, NerfmatchError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest
import yaml

OTHER = Camera('OPENCV', 32, 24, 33.0, 34.0, 15.0, 12.0, (0.1, 0.0, 0.0, 0.0))


def write_image(path, width=32, height=24):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((height, width, 3), 77, np.uint8))
    return path


def write_transforms(folder, names):
    frames = []
    for image, name in zip(queries(len(names)), names):
        write_image(folder / name)
        frames.append(transforms_json.frame_entry(replace(image, name=name), folder))
    transforms_json.write(folder / 'transforms.json', frames)


def test_given_camera_comes_first(tmp_path):
    write_transforms(tmp_path, ['images/a.png'])
    image = read_photograph(tmp_path / 'images/a.png', OTHER, [CAMERA])
    assert image.camera == OTHER and image.map_from_camera is None
    assert image.rgb().shape == (24, 32, 3)


def test_camera_of_a_transforms_file_above_or_beside(tmp_path):
    write_transforms(tmp_path, ['images/a.png', 'b.png'])
    for name in ('images/a.png', 'b.png'):
        assert read_photograph(tmp_path / name, None, [OTHER]).camera == CAMERA


def test_transforms_file_that_does_not_name_the_image_is_passed_over(tmp_path):
    write_transforms(tmp_path / 'set', ['a.png'])
    stranger = write_image(tmp_path / 'set' / 'stranger.png')
    assert read_photograph(stranger, None, [OTHER]).camera == OTHER


def test_camera_of_the_map_needs_the_same_size(tmp_path):
    path = write_image(tmp_path / 'large.png', 64, 48)
    with pytest.raises(DataError, match=r'64 x 48.*made with 32 x 24.*--camera'):
        read_photograph(path, None, [CAMERA, CAMERA])
    with pytest.raises(DataError, match='64 x 48 pixels but its camera makes 32 x 24'):
        read_photograph(path, CAMERA)


def test_two_fitting_cameras_of_the_map_are_not_guessed_between(tmp_path):
    with pytest.raises(DataError, match='2 different cameras'):
        camera_of_size([CAMERA, OTHER, CAMERA], (32, 24), tmp_path / 'a.png')
    assert camera_of_size([CAMERA, CAMERA], (32, 24), tmp_path / 'a.png') == CAMERA


def test_missing_file_and_file_that_is_no_picture(tmp_path):
    with pytest.raises(DataError, match=r'none\.png does not exist'):
        read_photograph(tmp_path / 'none.png', CAMERA)
    (tmp_path / 'text.png').write_text('hello')
    with pytest.raises(DataError, match=r'text\.png is not a readable picture'):
        read_photograph(tmp_path / 'text.png', CAMERA)


def test_camera_file_round_trip(tmp_path):
    path = tmp_path / 'camera.yaml'
    path.write_text(yaml.safe_dump(OTHER.to_dict()))
    assert read_camera(path) == OTHER


@pytest.mark.parametrize('text', ['', '- 1', 'model: [', 'model: PINHOLE\nwidth: -3'])
def test_bad_camera_file_is_named(tmp_path, text):
    path = tmp_path / 'camera.yaml'
    path.write_text(text)
    with pytest.raises(NerfmatchError, match=r'camera\.yaml'):
        read_camera(path)
    with pytest.raises(NerfmatchError, match='cannot read'):
        read_camera(tmp_path / 'none.yaml')
