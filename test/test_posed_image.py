"""Properties of posed images: what is read is checked, what is wrong is named."""

from dataclasses import replace

import cv2
from nerfmatch_ros.data.posed_image import are_poses, checked_pose, PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

CAMERA = Camera('PINHOLE', 8, 6, 5, 5, 3.5, 2.5)
RED = np.zeros((6, 8, 3), np.uint8) + np.array((255, 0, 0), np.uint8)


def pose(rotation_vector=(.1, -.4, .9), position=(1, 2, 3)):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec(rotation_vector).as_matrix()
    matrix[:3, 3] = position
    return matrix


def test_pixels_in_memory_are_given_as_they_are():
    assert PosedImage('a', CAMERA, pixels=RED).rgb() is RED


def test_files_are_read_as_rgb(tmp_path):
    path = tmp_path / 'red.png'
    cv2.imwrite(str(path), RED[..., ::-1])
    np.testing.assert_array_equal(PosedImage('a', CAMERA, path=path).rgb(), RED)


def test_depth_is_metres_with_zero_for_unknown(tmp_path):
    raw = np.full((6, 8), 1500, np.uint16)
    raw[0, 0] = 0
    cv2.imwrite(str(tmp_path / 'd.png'), raw)
    np.save(tmp_path / 'd.npy', np.where(raw, raw / 1000, np.nan).astype(np.float32))
    for file, scale in (('d.png', 0.001), ('d.npy', 1.0)):
        image = PosedImage(
            'a', CAMERA, pixels=RED, depth_path=tmp_path / file, depth_scale=scale)
        depth = image.depth_map()
        assert depth.dtype == np.float32
        assert depth[0, 0] == 0 and depth[3, 3] == pytest.approx(1.5)


def test_without_depth_or_mask_there_is_none():
    image = PosedImage('a', CAMERA, pixels=RED)
    assert image.depth_map() is None and image.valid_mask() is None


def test_black_pixels_of_the_mask_are_not_valid(tmp_path):
    mask = np.full((6, 8), 255, np.uint8)
    mask[:2] = 0
    cv2.imwrite(str(tmp_path / 'm.png'), mask)
    valid = PosedImage('a', CAMERA, pixels=RED, mask_path=tmp_path / 'm.png').valid_mask()
    np.testing.assert_array_equal(valid, mask > 0)


def test_white_pixels_are_sky_or_move_whatever_size_the_mask_has(tmp_path):
    mask = np.zeros((6, 8), np.uint8)
    mask[:2, 4:] = 255
    for scale, white in ((1, 255), (4, 255), (1, 1), (0.5, 255)):
        stored = cv2.resize(mask, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(tmp_path / 'm.png'), stored // 255 * np.uint8(white))
        image = PosedImage('a', CAMERA, pixels=RED, sky_path=tmp_path / 'm.png')
        np.testing.assert_array_equal(image.sky_mask(), mask > 0)
        assert image.valid_mask() is None  # the sky may be learned, as white
        moving = PosedImage('a', CAMERA, pixels=RED, transient_path=tmp_path / 'm.png')
        np.testing.assert_array_equal(moving.valid_mask(), mask == 0)
        assert moving.sky_mask() is None


def test_a_mask_with_nothing_in_it_masks_nothing(tmp_path):
    cv2.imwrite(str(tmp_path / 'm.png'), np.zeros((6, 8), np.uint8))
    image = PosedImage('a', CAMERA, pixels=RED, sky_path=tmp_path / 'm.png',
                       transient_path=tmp_path / 'm.png')
    assert not image.sky_mask().any() and image.valid_mask().all()


def test_both_masks_take_pixels_away(tmp_path):
    keep, move = np.full((6, 8), 255, np.uint8), np.zeros((6, 8), np.uint8)
    keep[:2] = 0
    move[4:] = 255
    cv2.imwrite(str(tmp_path / 'keep.png'), keep)
    cv2.imwrite(str(tmp_path / 'move.png'), move)
    valid = PosedImage('a', CAMERA, pixels=RED, mask_path=tmp_path / 'keep.png',
                       transient_path=tmp_path / 'move.png').valid_mask()
    assert valid[2:4].all() and valid.sum() == 16


def test_what_is_read_is_not_kept(tmp_path):
    for name in 'pm':
        cv2.imwrite(str(tmp_path / f'{name}.png'), RED)
    image = PosedImage('a', CAMERA, path=tmp_path / 'p.png', mask_path=tmp_path / 'm.png',
                       sky_path=tmp_path / 'm.png', transient_path=tmp_path / 'm.png',
                       depth_path=tmp_path / 'p.png')
    before = dict(vars(image))
    for read in (image.rgb, image.depth_map, image.valid_mask, image.sky_mask):
        assert read() is not read()
    assert vars(image) == before


def test_broken_and_missing_files_are_named(tmp_path):
    (tmp_path / 'broken.jpg').write_bytes(b'not a picture')
    (tmp_path / 'empty.jpg').write_bytes(b'')
    cv2.imwrite(str(tmp_path / 'large.png'), np.zeros((12, 16, 3), np.uint8))
    for file, message in (('broken.jpg', 'cannot be decoded'), ('empty.jpg', '0 bytes'),
                          ('none.jpg', 'does not exist'), ('large.png', '16 x 12.*8 x 6')):
        with pytest.raises(DataError, match=f"'frame 7'.*{file}.*{message}"):
            PosedImage('frame 7', CAMERA, path=tmp_path / file).rgb()


@pytest.mark.parametrize('options, message', [
    ({}, 'neither pixels nor a file'), ({'pixels': RED[..., 0]}, 'RGB uint8'),
    ({'pixels': RED[:3]}, '8 x 3'), ({'pixels': RED.astype(float)}, 'float64'),
    ({'pixels': RED, 'depth': np.zeros((3, 5), np.float32)}, '5 x 3')])
def test_unusable_contents_are_refused(options, message):
    with pytest.raises(DataError, match=f"'a'.*{message}"):
        PosedImage('a', CAMERA, **options)


def test_rounding_of_a_rotation_is_repaired_and_the_input_left_alone():
    rough = np.round(pose(), 4)
    before = rough.copy()
    image = PosedImage('a', CAMERA, rough, pixels=RED)
    rotation = image.map_from_camera[:3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-14)
    np.testing.assert_allclose(image.map_from_camera, rough, atol=1e-4)
    np.testing.assert_array_equal(rough, before)
    assert image.map_from_camera.dtype == np.float64


def test_data_known_to_be_rough_may_be_repaired_further():
    rough = pose()
    rough[:3, :3] *= 1.003
    with pytest.raises(DataError, match='no rotation'):
        checked_pose(rough, 'frame 3')
    np.testing.assert_allclose(checked_pose(rough, 'frame 3', tolerance=0.01), pose(), atol=1e-12)


@pytest.mark.parametrize('matrix, message', [
    (np.eye(3), 'shape'), (np.full((4, 4), np.nan), 'NaN'),
    (np.diag((1., 1, -1, 1)), 'determinant -1'), (np.diag((2., 2, 2, 1)), 'determinant 8'),
    (pose(position=(np.inf, 0, 0)), 'infinity'), (pose().T, 'last row'),
    ([['a'] * 4] * 4, 'not a matrix'), (None, 'not a matrix|shape')])
def test_what_is_no_pose_is_refused_with_its_place(matrix, message):
    with pytest.raises(DataError, match=f'frame 3: .*({message})'):
        checked_pose(matrix, 'frame 3')


def test_many_poses_are_judged_as_each_alone():
    good, mirrored, nan, projective = pose(), pose(), pose(), pose()
    mirrored[:3, 0] *= -1
    nan[1, 3] = np.nan
    projective[3, 0] = 0.1
    sheared, rough, infinite = pose(), pose(), pose()
    sheared[0, 1] += 0.1
    rough[:3, :3] *= 1 + 1e-5
    infinite[0, 0] = np.inf
    matrices = np.stack([good, mirrored, nan, projective, 2 * pose(), sheared, rough, infinite,
                         np.zeros((4, 4))])
    alone = []
    for matrix in matrices:
        try:
            checked_pose(matrix, 'frame')
            alone.append(True)
        except DataError:
            alone.append(False)
    assert are_poses(matrices).tolist() == alone
    assert alone == [True, False, False, False, False, False, True, False, False]
    assert are_poses(matrices[:0]).shape == (0,)


def test_depth_of_cells_holds_for_their_pixels():
    camera = replace(CAMERA, width=9, height=6)
    depth = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    image = PosedImage('a', camera, pixels=np.zeros((6, 9, 3), np.uint8), depth=depth)
    known = image.depth_map()
    assert known.shape == (6, 9)
    assert (known[:, 8] == 0).all()  # of no whole cell
    np.testing.assert_array_equal(known[::2, :8:2], depth)
    np.testing.assert_array_equal(known[1::2, 1:8:2], depth)


def test_cells_of_a_tall_picture_may_leave_more_of_it_over_than_there_are_columns():
    camera = replace(CAMERA, width=47, height=800)
    image = PosedImage('a', camera, pixels=np.zeros((800, 47, 3), np.uint8),
                       depth=np.ones((80, 4), np.float32))
    known = image.depth_map()
    assert known.shape == (800, 47)
    assert known[:, :40].all() and not known[:, 40:].any()
