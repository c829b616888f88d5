"""Bags without their metadata, compressed or cut off."""

import os
import sqlite3

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.bag_frames import extract_frames
from nerfmatch_ros.ros.bag_options import BagFrameOptions
import pytest
from robot_bags import drive, write

EVERY = BagFrameOptions(keyframe_metres=0)


@pytest.mark.parametrize(('storage', 'suffix'), [('mcap', '.mcap'), ('sqlite3', '.db3')])
def test_compressed_messages_are_read_without_the_metadata_that_says_so(
        tmp_path, storage, suffix):
    bag = write(tmp_path / 'bag', drive(4), storage=storage, compression='message')
    found = extract_frames(bag / f'bag{suffix}', tmp_path / 'a', EVERY)
    assert found.report['kept'] == 4 and found.frame == 'odom'
    os.remove(bag / 'metadata.yaml')
    assert extract_frames(bag, tmp_path / 'b', EVERY).report['kept'] == 4


@pytest.mark.parametrize(('storage', 'suffix'), [('mcap', '.mcap'), ('sqlite3', '.db3')])
def test_a_compressed_file_without_metadata_is_an_error_that_says_what_to_do(
        tmp_path, storage, suffix):
    bag = write(tmp_path / 'bag', drive(4), storage=storage, compression='file')
    file = next(bag.glob('*.zstd'))
    text = f'bag{suffix}.zstd is compressed as a whole .*metadata.yaml.*zstd -d bag{suffix}.zstd'
    with pytest.raises(DataError, match=text):
        extract_frames(file, tmp_path / 'a')
    os.remove(bag / 'metadata.yaml')
    with pytest.raises(DataError, match=text):
        extract_frames(bag, tmp_path / 'b')


def test_a_cut_off_mcap_is_an_error_that_says_so_and_how_to_repair_it(tmp_path):
    bag = write(tmp_path / 'bag', drive(20))
    file = bag / 'bag.mcap'
    for end in (file.stat().st_size // 2, 100):
        os.truncate(file, end)
        for path in (bag, file):
            with pytest.raises(DataError, match=f'bag.mcap ends after {end} bytes in the middle.*'
                                                'mcap recover FILE -o NEW.mcap'):
                extract_frames(path, tmp_path / 'a')


def test_a_cut_off_sqlite3_is_an_error_that_says_how_much_is_there(tmp_path):
    bag = write(tmp_path / 'bag', drive(20), storage='sqlite3')
    file = bag / 'bag.db3'
    whole = file.stat().st_size
    os.truncate(file, whole // 2)
    with pytest.raises(DataError, match=f'bag.db3 has {whole // 2} of its {whole} bytes.*'
                                        '.recover. . sqlite3 NEW.db3'):
        extract_frames(bag, tmp_path / 'a')


def test_the_file_that_a_repair_writes_is_a_bag(tmp_path):
    bag = write(tmp_path / 'bag', drive(4), storage='sqlite3')
    with sqlite3.connect(bag / 'bag.db3') as old, sqlite3.connect(tmp_path / 'new.db3') as new:
        new.executescript('\n'.join(old.iterdump()))
    assert extract_frames(tmp_path / 'new.db3', tmp_path / 'a', EVERY).report['kept'] == 4
