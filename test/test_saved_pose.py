"""A saved pose is given back as it was, or there is a reason why not."""

from dataclasses import fields, replace
import errno
import json
import os

from hypothesis import given, HealthCheck, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.localization.rigid_motion import perturb
from nerfmatch_ros.localization.saved_pose import load_pose, save_pose, SavedPose
import numpy as np
import pytest

SHA = 'ab' * 32
SAVED = SavedPose(
    SHA, 'map', 'base_link', 1000.0,
    perturb(np.eye(4), np.array((1.0, -2.0, 0.1, 0.1, 0.2, 2.5))),
    np.diag((0.01, 0.02, 0.03, 1e-4, 2e-4, 3e-4)))


def load(path, map_sha256=SHA, max_age=60.0, now=1030.0):
    return load_pose(path, map_sha256=map_sha256, max_age=max_age, now=now)


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / 'state' / 'pose.json'
    save_pose(path, SAVED)
    return path


def test_pose_comes_back_exactly(saved):
    for path in (saved, str(saved)):
        back = load(path)
        for field in fields(SavedPose):
            np.testing.assert_array_equal(getattr(back, field.name), getattr(SAVED, field.name))


def test_saving_again_replaces_it_and_leaves_nothing_else(saved):
    save_pose(saved, replace(SAVED, unix_time=1020.0))
    assert load(saved).unix_time == 1020.0
    assert os.listdir(saved.parent) == [saved.name]


@pytest.mark.parametrize('share', (0.0, 0.1, 0.5, 0.9, 0.99))
def test_fault_34_truncated_file_is_ignored_with_the_reason(saved, share):
    raw = saved.read_bytes()
    saved.write_bytes(raw[:int(share * len(raw))])
    with pytest.raises(DataError, match='truncated or damaged') as error:
        load(saved)
    assert str(saved) in str(error.value)


@pytest.mark.parametrize('limits, reason', (
    ({'map_sha256': 'cd' * 32}, 'lies in map abab'),
    ({'now': 1060.5}, '60.5 s old, at most 60 s'),
    ({'now': 999.0}, 'in the future'),
    ({'max_age': 0.0}, 'old'),
))
def test_fault_34_pose_of_another_map_or_time_is_ignored_with_the_reason(saved, limits, reason):
    assert load(saved, now=1060.0).frame_id == 'map'
    with pytest.raises(DataError, match=reason):
        load(saved, **limits)


def test_fault_34_missing_and_unreadable_files_are_ignored_with_the_reason(tmp_path):
    for path in (tmp_path / 'none.json', tmp_path):
        with pytest.raises(DataError, match='cannot be read'):
            load(path)


@pytest.mark.parametrize('changes, reason', (
    ({'format': 'other'}, 'format'),
    ({'frame_id': None}, 'frame_id'),
    ({'map_sha256': 5}, 'map_sha256'),
    ({'unix_time': 'yesterday'}, 'no numbers'),
    ({'unix_time': 10 ** 400}, 'no numbers'),
    ({'unix_time': float('nan')}, 'unix_time'),
    ({'map_from_base': [[1, 2], [3]]}, 'no numbers'),
    ({'map_from_base': np.diag((2.0, 1, 1, 1)).tolist()}, 'rigid'),
    ({'map_from_base': np.full((4, 4), float('nan')).tolist()}, 'rigid'),
    ({'map_from_base': {'a': 1}}, 'no numbers'),
    ({'covariance': np.zeros((6, 6)).tolist()}, 'covariance'),
    ({'covariance': [1, 2, 3]}, 'covariance'),
))
def test_fault_34_content_that_is_no_pose_is_ignored_with_the_reason(saved, changes, reason):
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps(content | changes))
    with pytest.raises(DataError, match=reason):
        load(saved)


@pytest.mark.parametrize('name', [field.name for field in fields(SavedPose)])
def test_fault_34_missing_fields_are_named(saved, name):
    content = json.loads(saved.read_text())
    del content[name]
    saved.write_text(json.dumps(content))
    with pytest.raises(DataError, match=f'lacks {name}'):
        load(saved)


@pytest.mark.parametrize('raw, reason', (
    (b'[]', 'format'), (b'null', 'format'), (b'\xff\xfe\x00', 'damaged'),
    (b'[' * 60000, 'damaged'), (b' ' * 70000, 'larger than'),
))
def test_fault_34_other_files_are_ignored_with_the_reason(tmp_path, raw, reason):
    path = tmp_path / 'pose.json'
    path.write_bytes(raw)
    with pytest.raises(DataError, match=reason):
        load(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[
    HealthCheck.function_scoped_fixture])
@given(st.integers(0, 5000), st.binary(max_size=20))
def test_fault_34_damage_anywhere_never_gives_a_wrong_exception(saved, place, damage):
    raw = saved.read_bytes()
    path = saved.with_name('damaged.json')
    place %= len(raw)
    path.write_bytes(raw[:place] + damage + raw[place + len(damage):])
    try:
        load(path)
    except DataError:
        pass


def test_fault_34_directory_that_cannot_be_written_is_a_reason(saved):
    # A file where a folder has to be: refused to every user, root included.
    with pytest.raises(DataError, match='cannot be saved'):
        save_pose(saved / 'pose.json', SAVED)
    assert load(saved).unix_time == SAVED.unix_time


def test_fault_34_full_disk_leaves_the_old_pose(saved, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(DataError, match='No space left'):
        save_pose(saved, replace(SAVED, unix_time=1020.0))
    monkeypatch.undo()
    assert load(saved).unix_time == SAVED.unix_time
    assert os.listdir(saved.parent) == [saved.name]


def test_pose_that_is_not_finite_is_never_written(saved):
    with pytest.raises(DataError, match='cannot be saved'):
        save_pose(saved, replace(SAVED, map_from_base=np.full((4, 4), np.nan)))
    assert load(saved).unix_time == SAVED.unix_time
