"""Annotations of the published NeRFMatch, with their masks."""

import json

import cv2
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.data.release_annotations import read_annotations, scene_and_split
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest

FRAME = {'intrinsics': [[50., 0, 16], [0, 51, 12], [0, 0, 1]], 'width': 32, 'height': 24,
         'transform_matrix': [[0, -1, 0, 4], [1, 0, 0, 5], [0, 0, 1, 6], [0, 0, 0, 1]]}
NAMES = ('seq2/b.png', 'seq1/c.png', 'seq1/a.png')


def dataset(folder, name='transforms_Shop_train.json', **changes):
    """Write pictures below `images` and the annotations beside it; give both."""
    for index, file in enumerate(NAMES):
        picture = folder / 'images' / file
        picture.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(picture), np.full((24, 32, 3), index, np.uint8))
    frames = [{'file_path': file, **FRAME, **changes} for file in NAMES]
    (folder / name).write_text(json.dumps({'frames': frames}))
    return folder / name, folder / 'images'


def write_masks(folder, kinds=('masks_bg', 'masks_trnz_cars'), scene='Shop'):
    """Write masks for all pictures but one: white columns, the more the later the kind."""
    for columns, kind in enumerate(kinds, start=1):
        for file in NAMES[:2]:
            path = folder / kind / scene / file
            path.parent.mkdir(parents=True, exist_ok=True)
            mask = np.zeros((24, 32), np.uint8)
            mask[:, :columns] = 255
            cv2.imwrite(str(path), mask)
    return folder


def test_frames_are_sorted_and_their_axes_stay(tmp_path):
    file, pictures = dataset(tmp_path)
    images = read_annotations(file, pictures)
    assert [image.name for image in images] == sorted(NAMES)
    for image in images:
        assert image.camera == Camera('PINHOLE', 32, 24, 50, 51, 15.5, 11.5)
        np.testing.assert_allclose(image.map_from_camera, FRAME['transform_matrix'])
        assert image.split == 'train' and image.path == pictures / image.name
        assert image.sky_mask() is None and image.valid_mask() is None
    assert images[0].rgb()[0, 0, 0] == 2  # the picture of its own name


@pytest.mark.parametrize('name, scene, split', [
    ('transforms_Great_Court_test.json', 'Great_Court', 'test'), ('fire_train.json', 'fire',
                                                                  'train'),
    ('transforms_train.json', 'train', None), ('room.json', 'room', None)])
def test_scene_and_split_are_in_the_name_of_the_file(tmp_path, name, scene, split):
    assert scene_and_split(tmp_path / name) == (scene, split)


def test_the_reader_of_folders_takes_annotations(tmp_path):
    file, pictures = dataset(tmp_path)
    assert len(read_posed_images(pictures, 'train', annotations=file)) == 3
    with pytest.raises(DataError, match="Shop_train.json.* none of split 'test'"):
        read_posed_images(pictures, 'test', annotations=file)
    file, pictures = dataset(tmp_path, 'all.json')
    assert len(read_posed_images(pictures, 'test', annotations=file)) == 1
    (pictures / NAMES[0]).unlink()
    with pytest.raises(DataError, match=r"all.json: frame 'seq2/b.png': picture"):
        read_posed_images(pictures, annotations=file)


@pytest.mark.parametrize('scene', ['', 'Shop', 'images'])
def test_masks_lie_below_the_scene_or_not(tmp_path, scene):
    file, pictures = dataset(tmp_path)
    (pictures / NAMES[2]).unlink()
    frames = json.loads(file.read_text())['frames'][:2]
    file.write_text(json.dumps({'frames': frames}))
    masks = write_masks(tmp_path / 'masks', scene=scene)
    for images in (read_annotations(file, pictures, masks=masks),
                   read_posed_images(pictures, annotations=file, masks=masks)):
        for image in images:
            assert image.sky_mask().sum() == 24 and image.sky_mask()[:, 0].all()
            assert (~image.valid_mask()).sum() == 48 and not image.valid_mask()[:, :2].any()


def test_one_kind_of_mask_is_enough_and_none_is_an_error(tmp_path):
    file, pictures = dataset(tmp_path)
    write_masks(tmp_path / 'sky', kinds=('masks_bg',))
    with pytest.raises(DataError, match="'seq1/a.png': mask .*masks_bg/Shop/seq1/a.png does not"):
        read_annotations(file, pictures, masks=tmp_path / 'sky')
    cv2.imwrite(str(tmp_path / 'sky/masks_bg/Shop/seq1/a.png'), np.zeros((24, 32), np.uint8))
    for image in read_annotations(file, pictures, masks=tmp_path / 'sky'):
        assert image.sky_mask() is not None and image.valid_mask() is None
    with pytest.raises(DataError, match='holds no masks.*masks_bg'):
        read_annotations(file, pictures, masks=tmp_path / 'images')


@pytest.mark.parametrize('change, message', [
    ({'file_path': 3}, 'frame 0 has file_path 3'),
    ({'intrinsics': [50, 51, 16, 12]}, "frame 0 'seq2/b.png' has intrinsics"),
    ({'intrinsics': [[50, 1, 16], [0, 51, 12], [0, 0, 1]]}, 'intrinsics'),
    ({'intrinsics': 'K'}, "intrinsics 'K'"),
    ({'intrinsics': [[-50, 0, 16], [0, 51, 12], [0, 0, 1]]}, 'camera fx is -50'),
    ({'width': None}, 'camera width'), ({'transform_matrix': [[1]]}, 'pose has shape')])
def test_wrong_frames_are_named(tmp_path, change, message):
    file, pictures = dataset(tmp_path, **change)
    with pytest.raises(DataError, match=f'Shop_train.json: .*{message}'):
        read_annotations(file, pictures)


def test_other_files_are_named(tmp_path):
    file, pictures = dataset(tmp_path)
    nerfstudio = {'file_path': 'a.png', 'transform_matrix': FRAME['transform_matrix']}
    for text, message in (('{', 'not valid JSON'), ('[' * 100000, 'not valid JSON'),
                          ('{}', "no list 'frames'"),
                          (json.dumps({'frames': [nerfstudio]}), 'without --annotations')):
        file.write_text(text)
        with pytest.raises(DataError, match=message):
            read_annotations(file, pictures)
    with pytest.raises(DataError, match='cannot read the annotations'):
        read_annotations(tmp_path / 'none.json', pictures)
