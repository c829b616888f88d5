"""Poses of pictures about which nothing is known."""

from dataclasses import replace
import math
import sys
from types import SimpleNamespace

from camera_ring import errors
import cv2
from nerfmatch_ros.data.picture_folder import read_pictures, up_in_picture, without_poses
from nerfmatch_ros.data.transforms_json import frame_entry, write
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.mapping import structure_from_motion
from nerfmatch_ros.mapping.motion_frame import KnownDistance
from nerfmatch_ros.mapping.structure_from_motion import poses_from_motion
import numpy as np
from PIL import Image, ImageOps
import pytest
from test_consistent_poses import aligned
from test_sparse_points import CAMERAS, photograph, pose

STEP = 0.35  # metres between the photographs
COUNT = 6


@pytest.fixture
def pycolmap():
    return pytest.importorskip('pycolmap', reason='pycolmap is not installed ([sfm])')


def truth():
    return np.array([pose(k, STEP) for k in range(COUNT)])


def pictures(camera='pinhole', **options):
    return [replace(photograph(k, CAMERAS[camera], step=STEP, **options), map_from_camera=None)
            for k in range(COUNT)]


@pytest.mark.parametrize('camera', CAMERAS)
def test_poses_are_those_that_the_pictures_were_made_with(pycolmap, tmp_path, camera):
    images = pictures(camera)
    apart = float(np.linalg.norm(truth()[0, :3, 3] - truth()[5, :3, 3]))
    result = poses_from_motion(images, tmp_path / 'work', distance=KnownDistance(
        images[0].name, images[5].name, apart))
    assert [image.name for image in result.images] == [image.name for image in images]
    assert result.left_out == ()
    poses = np.array([image.map_from_camera for image in result.images])
    moved = aligned(poses, truth())
    metres, radians = errors(moved, truth())
    assert metres.max() < 0.02 and radians.max() < math.radians(0.5)
    assert np.linalg.norm(poses[0, :3, 3] - poses[5, :3, 3]) == pytest.approx(apart)
    assert all(image.camera == CAMERAS[camera] for image in result.images)
    assert result.numbers['placed'] == COUNT


def test_rough_poses_give_the_frame_and_what_is_finished_is_not_done_again(
        pycolmap, tmp_path, monkeypatch):
    images, rough = pictures(), truth()
    rough[:, :3, 3] += 0.02 * np.random.default_rng(1).normal(size=(COUNT, 3))
    first = poses_from_motion(images, tmp_path / 'work', rough=rough)
    metres, _ = errors(np.array([image.map_from_camera for image in first.images]), truth())
    assert metres.max() < 0.06

    def fails(*arguments):
        raise AssertionError('done again')

    monkeypatch.setattr(structure_from_motion, 'detect_features', fails)
    monkeypatch.setattr(pycolmap, 'incremental_mapping', fails)
    again = poses_from_motion(images, tmp_path / 'work', rough=rough)
    for one, other in zip(first.images, again.images):
        np.testing.assert_array_equal(one.map_from_camera, other.map_from_camera)
    with pytest.raises(AssertionError, match='done again'):  # other pictures
        poses_from_motion(images[:5], tmp_path / 'work', rough=rough[:5])


def test_a_run_killed_after_matching_goes_on_from_there(pycolmap, tmp_path, monkeypatch):
    images = pictures()
    with monkeypatch.context() as patched:
        patched.setattr(pycolmap, 'incremental_mapping', lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            poses_from_motion(images, tmp_path / 'work')
    monkeypatch.setattr(structure_from_motion, 'detect_features', lambda *a: 1 / 0)
    assert len(poses_from_motion(images, tmp_path / 'work').images) == COUNT
    assert not list((tmp_path / 'work').glob('.*'))


def test_pictures_that_show_nothing_else_are_left_out_by_name(pycolmap, tmp_path, caplog):
    images = pictures()
    images.insert(2, replace(images[2], name='blank', pixels=np.full((180, 240, 3), 90, np.uint8)))
    result = poses_from_motion(images, tmp_path / 'work')
    assert result.left_out == ('blank',) and result.numbers['left_out'] == ['blank']
    assert len(result.images) == COUNT
    assert 'blank' in caplog.text and 'scale is a guess' in caplog.text


def test_an_unknown_camera_is_calibrated(pycolmap, tmp_path):
    camera = CAMERAS['pinhole']
    folder = tmp_path / 'pictures'
    folder.mkdir()
    for k, image in enumerate(pictures()):
        cv2.imwrite(str(folder / f'{k}.png'), image.pixels[..., ::-1])
    images, calibrated = without_poses(folder)
    assert not calibrated and [image.name for image in images] == [f'{k}.png' for k in range(6)]
    result = poses_from_motion(images, tmp_path / 'work', calibrated=False)
    assert result.images[0].camera.fx == pytest.approx(camera.fx, rel=0.1)
    assert abs(images[0].camera.fx / camera.fx - 1) > 0.3
    assert len({image.camera for image in result.images}) == 1


def test_pictures_without_texture_are_an_error_that_says_what_to_do(pycolmap, tmp_path):
    with pytest.raises(DataError, match='take more, with much overlap'):
        poses_from_motion(pictures(plain=True), tmp_path / 'work')
    with pytest.raises(DataError, match='too few'):
        poses_from_motion(pictures()[:2], tmp_path / 'work')


def test_without_pycolmap_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pycolmap', None)
    with pytest.raises(ConfigError, match=r'nerfmatch_ros\[sfm\]'):
        poses_from_motion(pictures(), tmp_path / 'work')


def test_what_is_no_folder_of_pictures_of_this_camera_is_refused(tmp_path):
    with pytest.raises(DataError, match='does not exist'):
        read_pictures(tmp_path / 'nowhere')
    with pytest.raises(DataError, match='no pictures'):
        read_pictures(tmp_path)
    (tmp_path / 'a.jpg').write_bytes(b'no picture')
    with pytest.raises(DataError, match='not a readable picture'):
        read_pictures(tmp_path)
    (tmp_path / 'a.jpg').unlink()
    cv2.imwrite(str(tmp_path / 'b.png'), np.zeros((24, 32, 3), np.uint8))
    with pytest.raises(DataError, match='32 x 24 pixels'):
        read_pictures(tmp_path, CAMERAS['pinhole'])
    assert read_pictures(tmp_path)[0].name == 'b.png'


def test_what_maps_and_builds_hold_beside_the_pictures_is_none_of_them(tmp_path):
    for name in ('a.png', 'b.build/frames/images/c.png', 'map/field.png', 'rooms/d.png'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / name), np.zeros((16, 16, 3), np.uint8))
    (tmp_path / 'map' / 'map.yaml').touch()
    assert [image.name for image in read_pictures(tmp_path)] == ['a.png', 'rooms/d.png']


@pytest.mark.parametrize('orientation, up', [
    (None, (0, -1, 0)), (1, (0, -1, 0)), (3, (0, 1, 0)), (6, (-1, 0, 0)), (8, (1, 0, 0)),
    (99, (0, -1, 0))])
def test_a_picture_tells_how_the_camera_was_held(tmp_path, orientation, up):
    scene = np.zeros((20, 30), np.uint8)
    scene[:5] = 255  # the sky
    stored = {3: 2, 6: 1, 8: 3}.get(orientation, 0)  # quarter turns to the left
    picture = Image.fromarray(np.ascontiguousarray(np.rot90(scene, stored)))
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    picture.save(tmp_path / 'a.jpg', exif=exif, quality=95)
    assert up_in_picture(tmp_path / 'a.jpg') == up
    with Image.open(tmp_path / 'a.jpg') as opened:  # another reader of EXIF has the sky on top
        assert np.asarray(ImageOps.exif_transpose(opened))[0].mean() > 200
    sky = np.argwhere(np.asarray(picture) > 128).mean(0) - (np.array(picture.size[::-1]) - 1) / 2
    assert np.dot(sky[::-1], up[:2]) > 1  # and the sky is where up points


def test_a_known_distance_of_no_picture_is_refused_before_any_work(pycolmap, tmp_path):
    with pytest.raises(DataError, match="'x.jpg', which is none of the 6"):
        poses_from_motion(pictures(), tmp_path / 'work', distance=KnownDistance('x.jpg', 'y', 1.0))
    assert not (tmp_path / 'work').exists()


def test_a_disk_that_would_fill_up_is_refused_before_colmap_writes(
        pycolmap, tmp_path, monkeypatch):
    work = tmp_path / 'work'
    work.mkdir()
    (work / '.database.7.db-wal').write_bytes(b'left by a process that was killed')
    monkeypatch.setattr(structure_from_motion.shutil, 'disk_usage',
                        lambda path: SimpleNamespace(free=5 << 20))
    with pytest.raises(DataError, match='5 MB of free space; 38 MB are needed'):
        poses_from_motion(pictures(), work)
    assert not list(work.glob('.database*'))


def test_all_pictures_of_a_folder_are_taken_and_a_data_set_keeps_its_splits(tmp_path):
    for k in range(9):
        cv2.imwrite(str(tmp_path / f'{k}.png'), np.zeros((16, 16, 3), np.uint8))
    assert [len(without_poses(tmp_path, split)[0])
            for split in (None, 'all', 'train', 'test')] == [9, 9, 7, 2]
    write(tmp_path / 'transforms.json', [frame_entry(replace(
        image, map_from_camera=np.eye(4)), tmp_path) for image in read_pictures(tmp_path)])
    assert [len(without_poses(tmp_path, split)[0]) for split in (None, 'all')] == [7, 9]


def test_photographs_without_a_rough_pose_are_placed_with_those_that_have_one(pycolmap, tmp_path):
    images, rough = pictures(), truth()
    rough[[1, 4]] = np.nan
    result = poses_from_motion(images, tmp_path / 'work', rough=rough)
    metres, _ = errors(np.array([image.map_from_camera for image in result.images]), truth())
    assert len(metres) == COUNT and metres.max() < 0.03
    rough[:4] = np.nan
    result = poses_from_motion(images, tmp_path / 'work', rough=rough)
    assert result.numbers['scale_from'].startswith('unknown')
