"""Properties of the reader of transforms.json, and the errors it names."""

from dataclasses import replace
import json
import math

import cv2
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.data.image_size import image_size
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest

SHARED = {'fl_x': 50.0, 'fl_y': 51.0, 'cx': 16.0, 'cy': 12.0, 'w': 32, 'h': 24,
          'k1': 0.1, 'k2': -0.02, 'p1': 0.001, 'p2': 0.002}
IDENTITY = np.eye(4).tolist()


def dataset(folder, frames=3, size=(32, 24), shared=SHARED, change=None, **options):
    """Write a data set; `change` maps a frame's index to keys that it overrides."""
    (folder / 'images').mkdir()
    entries = []
    for index in range(frames):
        cv2.imwrite(str(folder / 'images' / f'{index:03d}.png'),
                    np.full((size[1], size[0], 3), index, np.uint8))
        entry = {'file_path': f'images/{index:03d}.png', 'transform_matrix': IDENTITY}
        entries.append({**entry, **(change or {}).get(index, {})})
    content = {**shared, **options, 'frames': entries}
    (folder / 'transforms.json').write_text(json.dumps(content))
    return folder


def test_opengl_axes_and_corner_pixels_are_converted(tmp_path):
    pose = np.array([[0., -1, 0, 4], [1, 0, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1]])
    image = read_posed_images(dataset(tmp_path, 1, change={0: {
        'transform_matrix': pose.tolist()}}))[0]
    assert image.camera == Camera(
        'OPENCV', 32, 24, 50, 51, 15.5, 11.5, (0.1, -0.02, 0.001, 0.002))
    np.testing.assert_allclose(image.map_from_camera[:3, 3], (4, 5, 6))
    # OpenGL looks along -z with y up: forward is -z of the matrix, down is -y.
    np.testing.assert_allclose(image.map_from_camera[:3, 2], -pose[:3, 2])
    np.testing.assert_allclose(image.map_from_camera[:3, 1], -pose[:3, 1])
    np.testing.assert_allclose(image.map_from_camera[:3, 0], pose[:3, 0])


def test_without_splits_every_eighth_image_by_name_is_for_testing(tmp_path):
    dataset(tmp_path, 17)
    names = [image.name for image in read_posed_images(tmp_path, 'test')]
    assert names == ['images/000.png', 'images/008.png', 'images/016.png']
    assert len(read_posed_images(tmp_path, 'train')) == 14
    assert len(read_posed_images(tmp_path)) == 17


def test_splits_of_the_frames_count_and_val_is_test(tmp_path):
    dataset(tmp_path, 4, change={1: {'split': 'test'}, 2: {'split': 'val'}, 3: {'split': 'train'}})
    assert [i.split for i in read_posed_images(tmp_path)] == ['train', 'test', 'test', 'train']


def test_lists_of_file_names_give_the_splits(tmp_path):
    dataset(tmp_path, 3, train_filenames=['images/000.png', 'images/002.png'],
            test_filenames=['images/001.png'])
    assert [i.split for i in read_posed_images(tmp_path)] == ['train', 'test', 'train']


def test_a_frame_overrides_shared_intrinsics(tmp_path):
    dataset(tmp_path, 2, change={1: {'fl_x': 60.0, 'k1': 0.0}})
    first, second = read_posed_images(tmp_path)
    assert (first.camera.fx, second.camera.fx) == (50, 60)
    assert second.camera.distortion[0] == 0 and second.camera.fy == 51


def test_opening_angle_and_picture_size_are_enough(tmp_path):
    dataset(tmp_path, 1, shared={'camera_angle_x': math.pi / 2})
    camera = read_posed_images(tmp_path)[0].camera
    assert (camera.width, camera.height) == (32, 24)
    assert camera.fx == pytest.approx(16) and camera.fy == pytest.approx(16)
    assert (camera.cx, camera.cy) == (15.5, 11.5)


@pytest.mark.parametrize('keys, expected', [
    ({'camera_model': 'OPENCV_FISHEYE', 'p1': 0, 'p2': 0, 'k3': .3, 'k4': .4},
     ('OPENCV_FISHEYE', (.1, -.02, .3, .4))),
    ({'is_fisheye': True, 'p1': 0, 'p2': 0}, ('OPENCV_FISHEYE', (.1, -.02, 0, 0))),
    ({'camera_model': 'PINHOLE', 'k1': 0, 'k2': 0, 'p1': 0, 'p2': 0}, ('PINHOLE', ())),
    ({'camera_model': 'SIMPLE_PINHOLE', 'k1': 0, 'k2': 0, 'p1': 0, 'p2': 0}, ('PINHOLE', ())),
    ({'camera_model': 'OPENCV', 'k3': .3}, ('RATIONAL', (.1, -.02, .001, .002, .3, 0, 0, 0))),
    ({'camera_model': 'OPENCV', 'k3': 0}, ('OPENCV', (.1, -.02, .001, .002)))])
def test_camera_models_of_the_format(tmp_path, keys, expected):
    camera = read_posed_images(dataset(tmp_path, 1, **keys))[0].camera
    assert (camera.model, camera.distortion) == expected


def test_extensions_may_be_left_out_and_dot_slash_is_no_part_of_the_name(tmp_path):
    dataset(tmp_path, 2, change={0: {'file_path': './images/000'}})
    assert [i.name for i in read_posed_images(tmp_path)] == ['images/000.png', 'images/001.png']


def test_depth_mask_and_stamp_are_taken_over(tmp_path):
    cv2.imwrite(str(tmp_path / 'd.png'), np.full((24, 32), 3000, np.uint16))
    cv2.imwrite(str(tmp_path / 'm.png'), np.full((24, 32), 255, np.uint8))
    dataset(tmp_path, 2, change={0: {
        'depth_file_path': 'd.png', 'mask_path': 'm.png', 'timestamp': 12.5}},
        depth_unit_scale_factor=0.01)
    first, second = read_posed_images(tmp_path)
    assert first.depth_map()[5, 5] == pytest.approx(30)
    assert first.valid_mask().all() and first.stamp == 12.5
    assert second.depth_map() is None and second.stamp is None


def test_depth_defaults_to_millimetres(tmp_path):
    cv2.imwrite(str(tmp_path / 'd.png'), np.full((24, 32), 3000, np.uint16))
    dataset(tmp_path, 1, change={0: {'depth_file_path': 'd.png'}})
    assert read_posed_images(tmp_path)[0].depth_map()[0, 0] == pytest.approx(3)


@pytest.mark.parametrize('camera', [
    Camera('PINHOLE', 32, 24, 50, 51, 15, 12),
    Camera('OPENCV_FISHEYE', 32, 24, 50, 51, 15, 12, (.1, .2, .3, .4)),
    Camera('RATIONAL', 32, 24, 50, 51, 15, 12, (.1, .2, .3, .4, .5, .6, .7, .8))])
def test_what_is_written_reads_back(tmp_path, camera):
    image = read_posed_images(dataset(tmp_path, 1))[0]
    image = replace(image, camera=camera, split='test', stamp=3.25)
    transforms_json.write(
        tmp_path / 'transforms.json', [transforms_json.frame_entry(image, tmp_path)])
    back = read_posed_images(tmp_path, 'test')[0]
    assert back.camera == camera and back.stamp == 3.25 and back.name == image.name
    np.testing.assert_array_equal(back.map_from_camera, image.map_from_camera)


nan_pose = [[float('nan')] * 4] * 3 + [[0, 0, 0, 1]]


@pytest.mark.parametrize('change, message', [
    ({'transform_matrix': nan_pose}, 'frame 1.*001.png.*NaN.*take it out'),
    ({'transform_matrix': np.diag((1., 1, 1.1, 1)).tolist()}, 'frame 1.*determinant 1.1'),
    ({'transform_matrix': np.diag((1., 1, -1, 1)).tolist()}, 'frame 1.*determinant -1'),
    ({'file_path': 'images/gone.png'}, 'frame 1.*gone.png does not exist'),
    ({'file_path': 3}, 'frame 1.*file_path 3'),
    ({'file_path': 'images/000.png'}, "'images/000.png' more than once"),
    ({'w': 64, 'h': 48}, "'images/001.png' has 32 x 24.*64 x 48"),
    ({'k4': 0.25}, 'frame 1.*k4 = 0.25.*OPENCV'),
    ({'camera_model': 'PINHOLE'}, 'frame 1.*k1 = 0.1.*PINHOLE'),
    ({'camera_model': 'EQUIRECTANGULAR'}, "frame 1.*'EQUIRECTANGULAR'"),
    ({'fl_x': -4.0}, 'frame 1.*fx is -4'), ({'fl_x': '50'}, "frame 1.*fl_x '50'"),
    ({'cx': float('nan')}, 'frame 1.*cx nan'),
    ({'split': 'training'}, "frame 1.*'training'.*'train'"),
    ({'depth_file_path': 'no.png'}, "'images/001.png'.*depth file.*no.png does not exist"),
    ({'mask_path': 'no.png'}, 'mask.*no.png does not exist')])
def test_errors_name_the_file_the_frame_the_value_and_the_remedy(tmp_path, change, message):
    dataset(tmp_path, 3, change={1: change})
    with pytest.raises(DataError, match=message) as caught:
        read_posed_images(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_a_frame_without_a_pose_or_focal_length_is_named(tmp_path):
    dataset(tmp_path, 1, shared={'w': 32, 'h': 24})
    with pytest.raises(DataError, match="frame 0.*'fl_x' or 'camera_angle_x'"):
        read_posed_images(tmp_path)
    (tmp_path / 'transforms.json').write_text(
        json.dumps({**SHARED, 'frames': [{'file_path': 'images/000.png'}]}))
    with pytest.raises(DataError, match="frame 0.*'transform_matrix'"):
        read_posed_images(tmp_path)


def test_mixed_sizes_need_intrinsics_of_each_frame(tmp_path):
    dataset(tmp_path, 3)
    cv2.imwrite(str(tmp_path / 'images' / '002.png'), np.zeros((48, 64, 3), np.uint8))
    with pytest.raises(DataError, match="'images/002.png' has 64 x 48.*its own intrinsics"):
        read_posed_images(tmp_path)


@pytest.mark.parametrize('content, message', [
    ('{', 'not valid JSON'), ('[]', "no list 'frames'"), ('{"frames": 3}', "no list 'frames'"),
    ('{"frames": []}', 'lists no frames')])
def test_broken_files_are_refused(tmp_path, content, message):
    (tmp_path / 'transforms.json').write_text(content)
    with pytest.raises(DataError, match=message):
        read_posed_images(tmp_path)


@pytest.mark.parametrize('content', [b'', b'hello', b'\xff\xd8\xff\xe0', b'\x89PNG\r\n\x1a\n12'])
def test_an_unreadable_picture_is_named(tmp_path, content):
    dataset(tmp_path, 3)
    (tmp_path / 'images' / '001.png').write_bytes(content)
    with pytest.raises(DataError, match="'images/001.png'.*not a readable picture"):
        read_posed_images(tmp_path)


def test_folders_without_images_and_unknown_splits_are_refused(tmp_path):
    with pytest.raises(DataError, match='does not exist'):
        read_posed_images(tmp_path / 'nowhere')
    with pytest.raises(DataError, match='transforms.json, a COLMAP model'):
        read_posed_images(tmp_path)
    dataset(tmp_path, 2, change={0: {'split': 'train'}})
    with pytest.raises(DataError, match="none of split 'test'"):
        read_posed_images(tmp_path, 'test')
    with pytest.raises(DataError, match="'val' is unknown"):
        read_posed_images(tmp_path, 'val')


@pytest.mark.parametrize('extension', ['png', 'jpg', 'bmp', 'webp'])
def test_the_size_in_the_header_is_that_of_the_picture(tmp_path, extension):
    path = tmp_path / f'picture.{extension}'
    cv2.imwrite(str(path), np.zeros((11, 17, 3), np.uint8))
    assert image_size(path) == (17, 11)


@pytest.mark.parametrize('scene, counts', [
    ('redkitchen', (150, 50)), ('herzjesu', (20, 5)), ('euroc_v101', (158, 21))])
def test_real_data_sets_are_read(shared_data, scene, counts):
    train = read_posed_images(shared_data / scene, 'train')
    test = read_posed_images(shared_data / scene, 'test')
    assert (len(train), len(test)) == counts
    assert train[0].rgb().shape == (train[0].camera.height, train[0].camera.width, 3)


def test_positions_stand_in_place_of_poses_only_where_that_is_asked_for(tmp_path):
    dataset(tmp_path, 3)
    content = json.loads((tmp_path / 'transforms.json').read_text())
    for number, frame in enumerate(content['frames'][:2]):
        del frame['transform_matrix']
        frame['position'] = [1, 2.5, number]
    (tmp_path / 'transforms.json').write_text(json.dumps(content))
    images = read_posed_images(tmp_path, positions=True)
    np.testing.assert_array_equal(images[1].map_from_camera[:3, 3], (1, 2.5, 1))
    np.testing.assert_array_equal(images[2].map_from_camera[:3, :3], np.diag((1, -1, -1)))
    with pytest.raises(DataError, match='frame 0.*positions alone serve --labels position'):
        read_posed_images(tmp_path)


@pytest.mark.parametrize('position', [[1, 2], 'here', [1, 2, None], [1, 2, math.nan]])
def test_what_is_no_position_is_refused(tmp_path, position):
    dataset(tmp_path, 2)
    content = json.loads((tmp_path / 'transforms.json').read_text())
    del content['frames'][1]['transform_matrix']
    content['frames'][1]['position'] = position
    (tmp_path / 'transforms.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=r'frame 1.*give \[x, y, z\]'):
        read_posed_images(tmp_path, positions=True)


def test_a_frame_without_pose_or_position_is_refused(tmp_path):
    dataset(tmp_path, 2)
    content = json.loads((tmp_path / 'transforms.json').read_text())
    del content['frames'][1]['transform_matrix']
    (tmp_path / 'transforms.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match="no 'transform_matrix' and no position"):
        read_posed_images(tmp_path, positions=True)
