from nerfmatch_ros.data.tum import (
    format_tum,
    numbers_from_pose,
    parse_pose,
    pose_from_numbers,
    quaternion_from_rotation,
    read_tum,
    rotation_from_quaternion,
)
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import so3_exp
import numpy as np
import pytest
import torch


def rotations():
    vectors = np.random.default_rng(5).normal(size=(50, 3))
    vectors = [*vectors, *(np.pi * np.eye(3)), *(1e-8 * np.eye(3)), np.zeros(3)]
    return [so3_exp(torch.from_numpy(np.asarray(v))).numpy() for v in vectors]


def test_quaternion_round_trip_including_half_turns():
    for rotation in rotations():
        quaternion = quaternion_from_rotation(rotation)
        assert np.linalg.norm(quaternion) == pytest.approx(1)
        assert quaternion[3] >= 0
        np.testing.assert_allclose(rotation_from_quaternion(quaternion), rotation, atol=1e-12)


def test_quarter_turn_about_z_has_the_usual_quaternion():
    turn = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    half = np.sqrt(0.5)
    np.testing.assert_allclose(quaternion_from_rotation(turn), [0, 0, half, half], atol=1e-12)


def test_length_of_a_quaternion_does_not_matter():
    np.testing.assert_allclose(
        pose_from_numbers([1, 2, 3, 0, 0, 4, 4]), pose_from_numbers([1, 2, 3, 0, 0, 0.1, 0.1]))


def test_file_round_trip_to_nanometres(tmp_path):
    rng = np.random.default_rng(6)
    poses = []
    for index, rotation in enumerate(rotations()):
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, rng.normal(size=3)
        poses.append((1.7e9 + index / 10, pose))
    path = tmp_path / 'poses.tum'
    path.write_text('# a comment\n\n' + format_tum(poses))
    for (stamp, pose), (read_stamp, read_pose) in zip(poses, read_tum(path), strict=True):
        assert read_stamp == stamp
        np.testing.assert_allclose(read_pose, pose, atol=1e-8)


def test_whole_numbers_stay_whole_numbers():
    assert format_tum([(7, np.eye(4))]).split()[0] == '7'


@pytest.mark.parametrize(
    'line', ['1 2 3', '0 0 0 0 0 0 0 x', '0 1 2 3 0 0 0 0', '0 nan 0 0 0 0 0 1'])
def test_bad_line_is_named(tmp_path, line):
    path = tmp_path / 'bad.tum'
    path.write_text('0 0 0 0 0 0 0 1\n' + line + '\n')
    with pytest.raises(DataError, match='line 2'):
        read_tum(path)


def test_empty_or_missing_file_is_an_error(tmp_path):
    (tmp_path / 'empty.tum').write_text('# nothing\n')
    with pytest.raises(DataError, match='no pose'):
        read_tum(tmp_path / 'empty.tum')
    with pytest.raises(DataError, match='cannot read'):
        read_tum(tmp_path / 'missing.tum')


def test_pose_of_the_command_line():
    pose = parse_pose('-1, 2 3 0 0 0 1')
    np.testing.assert_allclose(numbers_from_pose(pose), [-1, 2, 3, 0, 0, 0, 1])
    with pytest.raises(DataError, match='seven finite numbers'):
        parse_pose('1 2 3')
    with pytest.raises(DataError, match='one'):
        parse_pose('one two three')
