"""Pictures of 16 bits a sample, all of which a camera may use or not."""

from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros import frame_folder
from nerfmatch_ros.ros.bag_frames import extract_frames
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.frame_picture import largest_of_16_bits
import numpy as np
import pytest
from robot_bags import compressed, drive, IMAGE, raw, texture, write

EVERY = BagFrameOptions(keyframe_metres=0)


def samples(index, bits):
    """Give samples (H, W), uint16, of as many bits."""
    found = texture(index)[..., 0].astype(np.uint16) << (bits - 8)
    found[0, 0] = (1 << bits) - 1
    return found


def png(values, stamp):
    return compressed(values, stamp, suffix='.png', form='mono16; png compressed ')


@pytest.mark.parametrize('topic', [IMAGE, f'{IMAGE}/compressed'])
def test_images_of_12_bits_in_16_are_told_of_and_not_stretched(tmp_path, topic):
    make = raw_of if topic == IMAGE else png
    notes = {}
    for bits in (12, 16):
        bag = write(tmp_path / f'bag{bits}', drive(
            3, topic=topic, image=lambda k, stamp, bits=bits: make(samples(k, bits), stamp)))
        frames = tmp_path / f'frames{bits}'
        notes[bits] = extract_frames(bag, frames, EVERY).report['notes']
        assert (read_posed_images(frames)[1].rgb()[..., 0] == samples(1, bits) >> 8).all()
    assert notes[16] == []
    note, = notes[12]
    assert 'largest value is 4095' in note and 'no more than 16 of 256 grey levels' in note


def raw_of(values, stamp):
    return raw(values, 'mono16', stamp)


def test_images_that_are_dark_for_that_reason_are_told_of_too(tmp_path):
    bag = write(tmp_path / 'bag', drive(3, image=lambda k, stamp: raw_of(
        samples(k, 12) >> 2, stamp)))
    with pytest.raises(DataError, match='3 almost black.*the largest value is 1023'):
        extract_frames(bag, tmp_path / 'frames', EVERY)


@pytest.mark.parametrize('order', ['<', '>'])
def test_the_largest_sample_counts_neither_padding_nor_the_wrong_byte_first(order):
    message = raw(samples(0, 12).astype(f'{order}u2'), 'mono16', 0, padding=4)
    message.is_bigendian = int(order == '>')
    message.data.reshape(message.height, -1)[:, -4:] = 255
    assert largest_of_16_bits(message, False) == 4095


def test_images_of_8_bits_have_no_such_sample():
    assert largest_of_16_bits(raw(texture(0), 'rgb8', 0), False) == 0
    assert largest_of_16_bits(compressed(texture(0), 0), True) == 0
    assert largest_of_16_bits(compressed(texture(0), 0, suffix='.png', form='png'), True) == 0


def test_a_run_that_goes_on_remembers_the_largest_sample(tmp_path, monkeypatch):
    bag = write(tmp_path / 'bag', drive(3, image=lambda k, stamp: raw_of(samples(k, 12), stamp)))
    monkeypatch.setattr(frame_folder.FrameFolder, 'finish', lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        extract_frames(bag, tmp_path / 'frames', EVERY)
    monkeypatch.undo()
    assert '4095' in extract_frames(bag, tmp_path / 'frames', EVERY).report['notes'][0]
