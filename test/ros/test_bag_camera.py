"""Which camera_info of a bag belongs to which image."""

from dataclasses import replace

from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros.bag_frames import extract_frames
from nerfmatch_ros.ros.bag_options import BagFrameOptions
import pytest
from robot_bags import CAMERA, drive, INFO, OPTICAL, PERIOD, START, write

EVERY = BagFrameOptions(keyframe_metres=0)
OTHER = replace(CAMERA, fx=99.0, fy=99.0)


def focal_lengths(folder):
    return [image.camera.fx for image in read_posed_images(folder)]


def info(index, camera, frame=OPTICAL, *, after=4, stamp=None):
    """Give the event of a camera_info that comes so many ns after the stamp of an image."""
    own = START + index * PERIOD
    return [INFO, own + after,
            messages.make_camera_info(camera, own if stamp is None else stamp, frame)]


@pytest.mark.parametrize('stamped', [True, False])
def test_of_two_cameras_on_one_topic_each_image_has_its_own(tmp_path, stamped):
    events = drive(6, info=False)
    for index in range(6):
        events.append(info(index, CAMERA, after=1, stamp=None if stamped else 0))
        events.append(info(index, OTHER, 'other', after=2, stamp=None if stamped else 0))
    found = extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames', EVERY)
    assert focal_lengths(tmp_path / 'frames') == [50.0] * 6
    assert any(f"camera_info of the frames '{OPTICAL}', 'other'; that of '{OPTICAL}' was taken"
               in note for note in found.report['notes'])


def test_camera_info_that_names_other_frames_only_is_taken_and_told_of(tmp_path):
    events = drive(4, info=False) + [info(0, CAMERA, 'left'), info(2, OTHER, 'right')]
    found = extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames', EVERY)
    assert focal_lengths(tmp_path / 'frames') == [50.0, 50.0, 99.0, 99.0]
    assert any(f"none of '{OPTICAL}' as the images have" in note
               for note in found.report['notes'])


def test_one_frame_that_is_not_that_of_the_images_is_no_news(tmp_path):
    events = drive(3, info=False) + [info(0, CAMERA, 'usb_cam')]
    found = extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames', EVERY)
    assert focal_lengths(tmp_path / 'frames') == [50.0] * 3 and not found.report['notes']


@pytest.mark.parametrize('after', [4, 30])  # ns; images come after 5
def test_a_zoom_changes_the_camera_at_its_own_image_whatever_is_sent_first(tmp_path, after):
    events = drive(8, info=False)
    events += [info(k, OTHER if 3 <= k < 6 else CAMERA, after=after) for k in range(8)]
    extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames', EVERY)
    assert focal_lengths(tmp_path / 'frames') == [50.0] * 3 + [99.0] * 3 + [50.0] * 2


def test_stamps_of_another_clock_are_gone_around_by_the_order_of_the_bag(tmp_path):
    events = drive(6, info=False)
    events += [info(k, CAMERA if k < 3 else OTHER, stamp=k + 1)
               for k in range(6)]
    extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames', EVERY)
    assert focal_lengths(tmp_path / 'frames') == [50.0] * 3 + [99.0] * 3
