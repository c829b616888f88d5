"""Posed photographs from bags as robots record them."""

import csv
import errno
import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import cv2
from nerfmatch_ros import cli
from nerfmatch_ros.data.photograph import read_camera
from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.mapping.register_poses import ODOMETRY
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros import frame_folder
from nerfmatch_ros.ros.bag_drive import BASE_FROM_CAMERA, write_drive
from nerfmatch_ros.ros.bag_frames import extract_frames
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.image_messages import compressed_to_rgb, image_to_rgb
import numpy as np
import pytest
import robot_bags as robot
from robot_bags import (
    CAMERA,
    camera_pose,
    compressed,
    drive,
    IMAGE,
    INFO,
    PERIOD,
    raw,
    START,
    write,
)

ROOT = Path(__file__).resolve().parents[2]
EVERY = BagFrameOptions(keyframe_metres=0)


def seconds(image):
    """Give how long after the first image this one was taken, to the microsecond."""
    return round(image.stamp - START / 1e9, 6)


def check_drive(folder, count=10, pose=camera_pose):
    """Check that a folder holds all images of a drive with their poses."""
    images = read_posed_images(folder)
    assert [seconds(image) for image in images] == [round(k / 10, 6) for k in range(count)]
    for index, image in enumerate(images):
        np.testing.assert_allclose(image.map_from_camera, pose(index / 10), atol=1e-7)
        assert image.camera == Camera('OPENCV', 64, 48, 50.0, 50.0, 31.5, 23.5, (0.0,) * 4)
    return images


@pytest.mark.parametrize(('storage', 'compression'), [
    ('mcap', 'none'), ('mcap', 'storage'), ('sqlite3', 'none'), ('sqlite3', 'file'),
    ('sqlite3', 'message')])
def test_images_and_interpolated_poses_come_out_of_any_storage(tmp_path, storage, compression):
    bag = write(tmp_path / 'bag', drive(), storage=storage, compression=compression)
    found = extract_frames(bag, tmp_path / 'frames', EVERY)
    for index, image in enumerate(check_drive(tmp_path / 'frames')):
        assert (image.rgb() == robot.texture(index)).all()
    assert (found.quality, found.frame, found.z_up) == ('rough', 'odom', True)
    assert found.report['kept'] == found.report['frames_read'] == 10
    assert 'odom -> base_link -> camera_optical_frame' in found.report['poses_from']
    for name in ('report.json', 'frames.csv', 'trajectory.png', 'transforms.json'):
        assert (tmp_path / 'frames' / name).stat().st_size > 100


def mosaic(index):
    return robot.texture(index)[..., 0]


@pytest.mark.parametrize(('make', 'suffix', 'same_bytes'), [
    (lambda k, t: raw(robot.texture(k), 'bgr8', t, padding=8), '.png', False),
    (lambda k, t: raw(mosaic(k), 'mono8', t), '.png', False),
    (lambda k, t: raw(mosaic(k).astype(np.uint16) * 256, 'mono16', t), '.png', False),
    (lambda k, t: raw(mosaic(k), 'bayer_grbg8', t), '.png', False),
    (lambda k, t: raw(robot.texture(k)[..., :2], 'yuv422_yuy2', t), '.png', False),
    (lambda k, t: raw(np.resize(mosaic(k), (72, 64)), 'nv12', t, size=(48, 64)), '.png', False),
    (lambda k, t: compressed(robot.texture(k), t), '.jpg', True),
    (lambda k, t: compressed(mosaic(k), t, form='mono8; jpeg compressed '), '.jpg', True),
    (lambda k, t: compressed(robot.texture(k), t, suffix='.png', form='png'), '.png', True),
    (lambda k, t: compressed(mosaic(k), t, suffix='.png', form='bayer_rggb8; png compressed '),
     '.png', False)])
def test_pictures_are_those_a_node_would_see_and_are_not_compressed_anew(
        tmp_path, make, suffix, same_bytes):
    plain = make(0, 0).__msgtype__ == messages.IMAGE
    topic = IMAGE if plain else f'{IMAGE}/compressed'
    bag = write(tmp_path / 'bag', drive(5, topic=topic, image=make))
    extract_frames(bag, tmp_path / 'frames', EVERY)
    for index, image in enumerate(check_drive(tmp_path / 'frames', 5)):
        message = make(index, 0)
        assert image.path.suffix == suffix
        assert (image.rgb() == (image_to_rgb if plain else compressed_to_rgb)(message)).all()
        if same_bytes:
            assert image.path.read_bytes() == bytes(message.data)


def with_poses(make, topic='/pose', every=PERIOD // 2, **options):
    """Give a drive whose poses are on a topic, made by make(seconds, stamp)."""
    events = drive(transforms=False, **options)
    for stamp in range(START - PERIOD, START + 12 * PERIOD, every):
        events.append([topic, stamp + 9, make((stamp - START) / 1e9, stamp)])
    return events


@pytest.mark.parametrize(('make', 'frame', 'quality', 'z_up'), [
    (lambda t, stamp: robot.odometry(robot.base_pose(t), stamp), 'odom', 'rough', True),
    (lambda t, stamp: robot.odometry(robot.base_pose(t), stamp, 'robot/odom'),
     'robot/odom', 'rough', True),
    (lambda t, stamp: messages.make_pose(robot.base_pose(t), stamp, 'map'), 'map', 'exact', True),
    (lambda t, stamp: robot.pose_with_covariance(robot.base_pose(t), stamp), 'map', 'exact', True),
    (lambda t, stamp: robot.transform_stamped(robot.base_pose(t), stamp, 'vicon', 'base_link'),
     'vicon', 'exact', False),
    (lambda t, stamp: messages.make_pose(robot.base_pose(t), stamp, 'camera_init'),
     'camera_init', 'rough', False)])
def test_poses_of_the_base_come_from_topics_of_all_types(tmp_path, make, frame, quality, z_up):
    bag = write(tmp_path / 'bag', with_poses(make))
    found = extract_frames(bag, tmp_path / 'frames',
                           BagFrameOptions(pose_topic='/pose', keyframe_metres=0))
    check_drive(tmp_path / 'frames')
    assert (found.frame, found.quality, found.z_up) == (frame, quality, z_up)
    assert ('REP 105' in found.report['gravity'])


def test_a_topic_may_have_the_pose_of_the_camera_itself(tmp_path):
    said = write(tmp_path / 'said', with_poses(
        lambda t, stamp: robot.odometry(camera_pose(t), stamp, 'odom', robot.OPTICAL),
        extrinsic=False))
    extract_frames(said, tmp_path / 'a', BagFrameOptions(pose_topic='pose', keyframe_metres=0))
    check_drive(tmp_path / 'a')
    told = write(tmp_path / 'told', with_poses(
        lambda t, stamp: messages.make_pose(camera_pose(t), stamp, 'map'), extrinsic=False))
    with pytest.raises(DataError, match="'base_link'.*do not say where the camera "
                                        "'camera_optical_frame' is.*--base-frame camera_optical"):
        extract_frames(told, tmp_path / 'b', BagFrameOptions(pose_topic='/pose'))
    extract_frames(told, tmp_path / 'c', BagFrameOptions(
        pose_topic='/pose', keyframe_metres=0, base_frame='camera_optical_frame'))
    check_drive(tmp_path / 'c')


def test_a_camera_that_nobody_mounted_is_an_error_and_can_be_given_an_extrinsic(tmp_path):
    bag = write(tmp_path / 'bag', drive(extrinsic=False))
    with pytest.raises(DataError, match="do not lead from 'odom' to 'camera_optical_frame'.*"
                                        '/tf_static.*--camera-frame.*--extrinsic'):
        extract_frames(bag, tmp_path / 'a')
    # Looking ahead from 0.1 m before and 0.3 m above the base.
    extrinsic = '0.1 0 0.3 -0.5 0.5 -0.5 0.5'
    extract_frames(bag, tmp_path / 'b', BagFrameOptions(extrinsic=extrinsic, keyframe_metres=0))
    check_drive(tmp_path / 'b')


def test_a_wrong_frame_id_of_the_images_can_be_put_right(tmp_path):
    events = drive(image=lambda k, t: messages.make_image(robot.texture(k), t, 'usb_cam'))
    bag = write(tmp_path / 'bag', events)
    with pytest.raises(DataError, match="frame 'usb_cam' is in no transform"):
        extract_frames(bag, tmp_path / 'a')
    extract_frames(bag, tmp_path / 'b', BagFrameOptions(
        camera_frame='camera_optical_frame', keyframe_metres=0))
    check_drive(tmp_path / 'b')


def test_a_frame_of_the_body_taken_for_an_optical_one_is_warned_of(tmp_path, caplog):
    events = [event for event in drive(extrinsic=False)]
    upright = np.eye(4)
    events.append(['/tf_static', START - 9, messages.make_transforms(
        upright, START, 'base_link', robot.OPTICAL)])
    extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames')
    assert 'the camera looks up most of the time' in caplog.text
    assert '--camera-frame' in caplog.text


def outcomes(folder):
    with open(folder / 'frames.csv', newline='') as file:
        return [row['outcome'] for row in csv.DictReader(file)]


def test_every_image_that_is_dropped_is_counted_with_its_reason(tmp_path):
    events = drive(30)
    images = [event for event in events if event[0] == IMAGE]

    def replace(index, rgb):
        images[index][2] = messages.make_image(
            rgb, START + index * PERIOD, robot.OPTICAL)

    def stamp(index, ns, frame=robot.OPTICAL):
        images[index][2].header = messages.make_header(ns, frame)

    replace(2, np.zeros_like(robot.texture(0)))
    replace(3, np.full_like(robot.texture(0), 255))
    replace(4, np.full_like(robot.texture(0), 90))
    replace(6, robot.texture(5))  # the camera is stuck
    stamp(7, 0)
    stamp(9, START + 8 * PERIOD)
    stamp(11, START + 5 * PERIOD + 7)
    stamp(13, START + 4 * 10**17)  # twelve years later
    stamp(15, START + 15 * PERIOD, 'other_camera')
    images[17][2].data = images[17][2].data[:-5]
    images[18][2].encoding = '32FC1'
    whole = robot.TYPES.serialize_cdr(images[20][2], messages.IMAGE)
    images[20][2] = messages.IMAGE, bytes(whole[:30])
    images[21][2] = messages.IMAGE, bytes(whole[:200])
    images[22][2] = messages.make_image(
        np.zeros((50, 60, 3), np.uint8), START + 22 * PERIOD, robot.OPTICAL)
    bag = write(tmp_path / 'bag', [
        event for event in events
        if not (event[0] == '/tf' and START + 23.5 * PERIOD < event[1] < START + 25.5 * PERIOD)])
    found = extract_frames(bag, tmp_path / 'frames',
                           BagFrameOptions(keyframe_metres=0, max_gap=0.1))
    expected = {2: 'dark', 3: 'saturated', 4: 'flat', 6: 'repeated', 7: 'stamp_zero',
                9: 'duplicate', 11: 'out_of_order', 13: 'out_of_order', 15: 'other_camera',
                17: 'truncated', 18: 'bad_encoding', 20: 'unreadable', 21: 'unreadable',
                22: 'bad_size', 24: 'no_pose', 25: 'no_pose'}
    assert outcomes(tmp_path / 'frames') == [expected.get(k, 'kept') for k in range(30)]
    report = found.report
    assert report['frames_read'] == 30 and report['kept'] == 30 - len(expected)
    assert report['dropped'] == {kind: list(expected.values()).count(kind)
                                 for kind in set(expected.values())}
    assert set(report['dropped']) - {'truncated', 'bad_encoding', 'bad_size'} \
        == set(report['meaning'])
    assert 'gap of 0.' in report['first_detail']['no_pose']
    assert 'header states' in report['first_detail']['truncated']
    kept = [seconds(image) for image in read_posed_images(tmp_path / 'frames')]
    assert kept == [round(k / 10, 6) for k in range(30) if k not in expected]


def test_the_sharpest_frame_of_each_stretch_of_the_way_is_kept(tmp_path):
    sharp = {3, 12, 15, 23}

    def image(index, stamp):
        scene = robot.texture(0)
        scene[:8] = index  # never the same picture twice
        return messages.make_image(
            scene if index in sharp else cv2.blur(scene, (5, 1)), stamp, robot.OPTICAL)

    # 10 cm between two images: a keyframe every six of them.
    bag = write(tmp_path / 'bag', drive(24, image=image, speed=1.0))
    found = extract_frames(bag, tmp_path / 'frames', BagFrameOptions(
        keyframe_metres=0.55, keyframe_degrees=90))
    kept = [k for k, outcome in enumerate(outcomes(tmp_path / 'frames')) if outcome == 'kept']
    assert len(kept) == 4 and 6 <= kept[1] < 12
    assert kept[0] == 3 and kept[2] in (12, 15) and kept[3] == 23
    assert found.report['dropped'] == {'less_sharp': 20}


def test_a_slow_robot_has_as_many_keyframes_as_there_may_be_and_few_are_decoded(tmp_path):
    bag = write(tmp_path / 'bag', drive(60, speed=0.2))
    found = extract_frames(bag, tmp_path / 'frames', BagFrameOptions(max_images=4))
    assert found.report['kept'] == 4
    assert found.report['dropped'] == {'less_sharp': 4 * 7, 'not_compared': 60 - 4 * 8}
    # 0.2 m/s for 6 s, a quarter of that for each.
    assert found.report['keyframe_metres'] == pytest.approx(0.3, rel=0.1)


def test_several_image_topics_are_an_error_that_names_them(tmp_path):
    events = drive(4) + drive(4, topic='/rear/image_raw/compressed', info=False, transforms=False,
                              extrinsic=False, image=lambda k, t: compressed(robot.texture(k), t))
    bag = write(tmp_path / 'bag', events)
    with pytest.raises(DataError, match=r'images on 2 topics \(/camera/image_raw \(4 Image\), '
                                        r'/rear/image_raw/compressed \(4 CompressedImage\)\).*'
                                        '--image-topic'):
        extract_frames(bag, tmp_path / 'a')
    extract_frames(bag, tmp_path / 'b', BagFrameOptions(
        image_topic='camera/image_raw', keyframe_metres=0))
    check_drive(tmp_path / 'b', 4)
    with pytest.raises(DataError, match='no images on /tf, but .* of tf2_msgs/msg/TFMessage; it '
                                        'has images on /camera/image_raw'):
        extract_frames(bag, tmp_path / 'c', BagFrameOptions(image_topic='/tf'))
    # The rear camera has the frame of the front one here, and so its camera_info.
    extract_frames(bag, tmp_path / 'd', BagFrameOptions(
        image_topic='/rear/image_raw/compressed', keyframe_metres=0))
    check_drive(tmp_path / 'd', 4)


def test_without_camera_info_a_camera_must_be_given(tmp_path):
    bag = write(tmp_path / 'bag', drive(5, info=False))
    with pytest.raises(DataError, match='no camera_info on /camera/camera_info.*--camera FILE'):
        extract_frames(bag, tmp_path / 'a')
    given = Camera('OPENCV_FISHEYE', 64, 48, 40.0, 41.0, 30.0, 20.0, (0.1, 0.0, 0.0, 0.0))
    extract_frames(bag, tmp_path / 'b', EVERY, camera=given)
    assert {image.camera for image in read_posed_images(tmp_path / 'b')} == {given}


def test_an_uncalibrated_camera_is_an_error_that_says_so(tmp_path):
    events = drive(5)
    for topic, _, message in events:
        if topic == INFO:
            message.k = np.zeros(9)
    bag = write(tmp_path / 'bag', events)
    with pytest.raises(DataError, match='K of zeros: the camera is not calibrated.*--camera FILE'):
        extract_frames(bag, tmp_path / 'frames')


def test_camera_info_may_come_once_and_late_and_may_change(tmp_path):
    events = drive(6, info=False)
    other = Camera('PINHOLE', 64, 48, 70.0, 70.0, 31.5, 23.5)
    for index, camera in ((2, CAMERA), (4, other)):
        stamp = START + index * PERIOD
        events.append([INFO, stamp, messages.make_camera_info(camera, stamp, robot.OPTICAL)])
    extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames', EVERY)
    assert [image.camera.fx for image in read_posed_images(tmp_path / 'frames')] \
        == [50.0] * 4 + [70.0] * 2


def test_rectified_images_have_the_camera_of_the_projection(tmp_path):
    events = drive(4, topic='/camera/image_rect/compressed',
                   image=lambda k, t: compressed(robot.texture(k), t))
    for topic, _, message in events:
        if topic == INFO:
            message.d = np.array([0.1, 0, 0, 0, 0])
            message.p = np.array([45.0, 0, 30, 0, 0, 45, 20, 0, 0, 0, 1, 0])
    extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames', EVERY)
    assert {image.camera.fx for image in read_posed_images(tmp_path / 'frames')} == {45.0}


def test_a_robot_in_a_namespace_has_its_own_transforms(tmp_path):
    events = []
    for name, speed in (('a', 0.5), ('b', 2.0)):
        for topic, time_ns, message in drive(5, speed=speed):
            events.append([f'/{name}{topic}', time_ns, message])
    bag = write(tmp_path / 'bag', events)
    for name, speed in (('a', 0.5), ('b', 2.0)):
        extract_frames(bag, tmp_path / name, BagFrameOptions(
            image_topic=f'/{name}{IMAGE}', keyframe_metres=0))
        check_drive(tmp_path / name, 5, lambda t, speed=speed: camera_pose(t, speed))


def test_poses_that_are_nowhere_are_errors_that_name_what_is_there(tmp_path):
    bag = write(tmp_path / 'bag', with_poses(
        lambda t, stamp: robot.odometry(robot.base_pose(t), stamp), '/wheel/odometry'))
    with pytest.raises(DataError, match=r"no transform of the frame 'odom'; it has base_link, "
                                        r'camera_optical_frame.*--odom-frame.*--pose-topic.*'
                                        r'/wheel/odometry \(\d+ Odometry\)'):
        extract_frames(bag, tmp_path / 'a')
    with pytest.raises(DataError, match='no poses on /odom: it|no poses on /odom; it has poses on '
                                        '/wheel/odometry'):
        extract_frames(bag, tmp_path / 'b', BagFrameOptions(pose_topic='/odom'))


def test_clocks_that_differ_are_recognized_and_can_be_gone_around(tmp_path):
    events = drive()
    for event in events:
        if event[0] == IMAGE:
            event[2].header = messages.make_header(event[1] - START + 10**9, robot.OPTICAL)
            event[1] -= 5
    bag = write(tmp_path / 'bag', events)
    with pytest.raises(DataError, match='none of 10 images .* has a pose.*before the first of '
                                        "'base_link' in 'odom'.*recorded .* s after their stamps"
                                        '.*--image-stamps received'):
        extract_frames(bag, tmp_path / 'a')
    extract_frames(bag, tmp_path / 'b', BagFrameOptions(
        image_stamps='received', keyframe_metres=0))
    check_drive(tmp_path / 'b')


def test_images_without_stamps_are_an_error_that_tells_the_way_out(tmp_path):
    events = drive(image=lambda k, t: messages.make_image(robot.texture(k), 0, robot.OPTICAL))
    with pytest.raises(DataError, match='none of 10 images.*10 no stamp.*--image-stamps received'):
        extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames')


def test_an_encoding_nobody_knows_is_an_error_with_its_name_and_a_report(tmp_path):
    events = drive(3, image=lambda k, t: raw(robot.texture(k), 'yuv444_odd', t))
    with pytest.raises(DataError, match="none of 3 images.*3 bad_encoding.*'yuv444_odd'"):
        extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames')
    assert json.loads((tmp_path / 'frames' / 'report.json').read_text())['kept'] == 0
    assert not (tmp_path / 'frames' / 'transforms.json').exists()


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


class Killed(BaseException):
    """What a test ends a run with that nothing may catch."""


@pytest.mark.parametrize('killed_in', ['write_picture', 'note', 'finish'])
def test_a_run_that_was_killed_goes_on_and_ends_as_if_it_had_not_been(
        tmp_path, monkeypatch, killed_in):
    bag = write(tmp_path / 'bag', drive(8))
    extract_frames(bag, tmp_path / 'whole', EVERY)
    calls = []
    real = getattr(frame_folder.FrameFolder, killed_in)

    def killed(self, *arguments):
        calls.append(arguments)
        if len(calls) == (1 if killed_in == 'finish' else 4):
            raise Killed
        return real(self, *arguments)

    monkeypatch.setattr(frame_folder.FrameFolder, killed_in, killed)
    with pytest.raises(Killed):
        extract_frames(bag, tmp_path / 'frames', EVERY)
    monkeypatch.undo()
    # What a kill in the middle of writing leaves.
    (tmp_path / 'frames' / 'images' / '.half.123.png').write_bytes(b'half a picture')
    with open(tmp_path / 'frames' / 'progress.jsonl', 'a') as journal:
        journal.write('{"segment": 7, "na')
    before = {path: path.stat().st_mtime_ns
              for path in (tmp_path / 'frames' / 'images').glob('[!.]*')}
    extract_frames(bag, tmp_path / 'frames', EVERY)
    assert contents(tmp_path / 'frames') == contents(tmp_path / 'whole')
    kept = [path for path, time in before.items() if path.stat().st_mtime_ns == time]
    assert len(kept) == (8 if killed_in == 'finish' else 3)


def test_frames_that_are_there_are_not_extracted_again_and_others_not_overwritten(tmp_path):
    bag = write(tmp_path / 'bag', drive(5))
    first = extract_frames(bag, tmp_path / 'frames', EVERY)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / 'frames').rglob('*')}
    assert extract_frames(bag, tmp_path / 'frames', EVERY) == first
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / 'frames').rglob('*')}
    with pytest.raises(DataError, match='another bag or with other options; repeat.*or delete'):
        extract_frames(bag, tmp_path / 'frames', BagFrameOptions(max_images=7))
    write(tmp_path / 'other', drive(6))
    with pytest.raises(DataError, match='another bag or with other options'):
        extract_frames(tmp_path / 'other', tmp_path / 'frames', EVERY)
    (tmp_path / 'mine').mkdir()
    (tmp_path / 'mine' / 'letter.txt').write_text('dear')
    with pytest.raises(DataError, match='mine is not empty and holds no frames'):
        extract_frames(bag, tmp_path / 'mine', EVERY)


def run_verb(*arguments, before=''):
    """Run the command line in a process of its own that has no ROS."""
    code = ('import sys\n'
            'for name in ("rclpy", "sensor_msgs", "std_msgs", "geometry_msgs", "tf2_msgs"):\n'
            '    sys.modules[name] = None\n'
            f'{before}\n'
            'from nerfmatch_ros.cli import main\n'
            'sys.exit(main(sys.argv[1:]))\n')
    return subprocess.run([sys.executable, '-c', code, *map(str, arguments)], cwd=ROOT, text=True,
                          capture_output=True, check=False)


def test_a_full_disk_is_an_error_that_leaves_no_half_picture_and_needs_no_ros(tmp_path, capsys):
    bag = write(tmp_path / 'bag', drive(6))
    # No file may grow beyond 8000 bytes: a picture of noise has 9 kB.
    limited = run_verb('frames', '--bag', bag, '--output', tmp_path / 'frames',
                       before='import resource; resource.setrlimit(resource.RLIMIT_FSIZE, '
                              '(8000, 8000))')
    assert limited.returncode == 2, limited.stderr
    assert 'frames cannot be written' in limited.stderr and 'Traceback' not in limited.stderr
    assert not list((tmp_path / 'frames' / 'images').iterdir())
    assert cli.main(['frames', '--bag', str(bag), '--output', str(tmp_path / 'frames')]) == 0
    printed = capsys.readouterr().out
    assert '6 of 6 images kept' in printed and "poses: rough, in 'odom'" in printed
    check_drive(tmp_path / 'frames', 6)


def test_no_room_to_unpack_a_compressed_bag_is_an_error_that_says_where(tmp_path, monkeypatch):
    bag = write(tmp_path / 'bag', drive(3), storage='sqlite3', compression='file')

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, 'copyfileobj', full)
    with pytest.raises(DataError, match='No space left.*unpacked into .*TMPDIR'):
        extract_frames(bag, tmp_path / 'frames')


def test_damaged_bags_are_errors_that_say_what_was_read_and_how_to_repair(tmp_path):
    for storage, suffix in (('mcap', '.mcap'), ('sqlite3', '.db3')):
        bag = write(tmp_path / storage, drive(40), storage=storage)
        file = bag / f'{storage}{suffix}'
        whole = file.read_bytes()
        for end in (5, 100, len(whole) // 2):
            file.write_bytes(whole[:end])
            with pytest.raises(DataError, match='(cannot be read|is damaged).*mcap recover'):
                extract_frames(bag, tmp_path / 'frames')
            assert not (tmp_path / 'frames' / 'transforms.json').exists()
        file.write_bytes(whole)
        os.remove(bag / 'metadata.yaml')  # as after a crash of the recorder
        extract_frames(bag, tmp_path / f'frames_{storage}', EVERY)
        check_drive(tmp_path / f'frames_{storage}', 40)


@pytest.mark.parametrize(('storage', 'suffix'), [('mcap', '.mcap'), ('sqlite3', '.db3')])
def test_foreign_bytes_inside_a_bag_are_an_error_or_told_of(tmp_path, storage, suffix):
    """Of sqlite3 those inside a message are not: it has no checksums; nothing else is raised."""
    bag = write(tmp_path / 'bag', drive(40), storage=storage)
    file = bag / f'bag{suffix}'
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle:middle + 256 * 400] = bytes(range(256)) * 400
    file.write_bytes(content)
    try:
        notes = extract_frames(bag, tmp_path / 'frames', EVERY).report['notes']
    except DataError as error:
        notes = [str(error)]
    assert storage == 'sqlite3' or any(
        'is damaged' in note and 'mcap recover' in note for note in notes)


def test_messages_that_a_damage_hides_are_told_of(tmp_path):
    events = drive(6)
    bag = write(tmp_path / 'bag', events)
    lost = [message for topic, _, message in events if topic == IMAGE][2]
    file = bag / 'bag.mcap'
    content = bytearray(file.read_bytes())
    # A record of another kind in the place of a message: opcode, length, 22 bytes, the message.
    record = content.find(bytes(robot.TYPES.serialize_cdr(lost, messages.IMAGE))) - 31
    assert content[record] == 5
    content[record] = 0x7F
    file.write_bytes(content)
    found = extract_frames(bag, tmp_path / 'frames', EVERY)
    assert found.report['kept'] == 5
    assert any(note.startswith('1 messages on /camera/image_raw are lost, the bag is damaged')
               for note in found.report['notes'])


def test_what_is_no_bag_of_ros_2_is_an_error_before_anything_is_written(tmp_path):
    (tmp_path / 'old.bag').write_bytes(b'#ROSBAG V2.0')
    with pytest.raises(DataError, match='old.bag is one of ROS 1; .*rosbags-convert'):
        extract_frames(tmp_path / 'old.bag', tmp_path / 'a')
    with pytest.raises(DataError, match='nowhere does not exist'):
        extract_frames(tmp_path / 'nowhere', tmp_path / 'b')
    assert not (tmp_path / 'b').exists()
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='empty cannot be read: .*neither a metadata.yaml nor'):
        extract_frames(tmp_path / 'empty', tmp_path / 'c')


def test_pictures_alone_are_taken_evenly_in_time_with_their_camera(tmp_path):
    bag = write(tmp_path / 'bag', drive(20, transforms=False, extrinsic=False))
    found = extract_frames(bag, tmp_path / 'frames', BagFrameOptions(max_images=5),
                           need_poses=False)
    assert (found.quality, found.frame) == ('none', '')
    assert len(list((tmp_path / 'frames' / 'images').iterdir())) == 5
    assert read_camera(tmp_path / 'frames' / 'camera.yaml').fx == 50.0
    assert not (tmp_path / 'frames' / 'transforms.json').exists()


def test_real_photographs_come_out_of_a_simulated_drive_as_they_went_in(shared_data, tmp_path):
    images = sorted(read_posed_images(shared_data / 'redkitchen', 'train'),
                    key=lambda image: image.name)[:12]
    write_drive(images, tmp_path / 'bag')
    extract_frames(tmp_path / 'bag', tmp_path / 'frames', BagFrameOptions(
        pose_topic='/ground_truth/pose', keyframe_metres=0))
    found = read_posed_images(tmp_path / 'frames')
    assert len(found) == 12
    for before, after in zip(images, found):
        assert (before.rgb() == after.rgb()).all()
        np.testing.assert_allclose(after.map_from_camera, before.map_from_camera, atol=1e-9)
        assert after.camera.matrix() == pytest.approx(before.camera.matrix())


def test_a_build_takes_its_photographs_from_the_bag_and_keeps_the_report(tmp_path, monkeypatch):
    from nerfmatch_ros.mapping import build_map as module
    bag = write(tmp_path / 'bag', drive(9))
    taken, told, origins = [], [], []

    def build_map(images, output, config, *_, rough, origin, beside, **__):
        taken[:] = images
        told.append((rough, config.registration.odometry))
        origins.append(origin)
        assert beside.keys() == {'bag_report.json', 'bag_frames.csv', 'bag_trajectory.png'}

    monkeypatch.setattr(module, 'build_map', build_map)
    arguments = ['build', '--bag', str(bag), '--output', str(tmp_path / 'map'),
                 '--keyframe-metres', '0']
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, '--poses', 'exact']) == 0
    assert told == [(True, ODOMETRY), (False, None)]  # what odometry says is rough
    assert origins[0]['frame'] == 'odom' and origins[0]['up'].startswith('+z')
    assert len(taken) == 9 and taken[0].path.is_relative_to(tmp_path / 'map.build' / 'frames')
    # The frames by themselves first come to the same.
    assert cli.main(['frames', *arguments[1:3], '--output', str(tmp_path / 'frames'),
                     '--keyframe-metres', '0']) == 0
    assert cli.main(['build', '--images', str(tmp_path / 'frames'), '--output',
                     str(tmp_path / 'map')]) == 0
    assert told[2] == told[0] and origins[2] == origins[0] and len(taken) == 9


@pytest.mark.parametrize(('arguments', 'text'), [
    ([], 'give --images or --bag'),
    (['--bag', 'b', '--images', 'i'], 'give --images or --bag'),
    (['--images', 'i', '--odom-frame', 'odom'], 'give --bag too'),
    (['--bag', 'b', '--odom-frame', 'odom', '--pose-topic', '/p'], 'give one of them'),
    (['--bag', 'b', '--max-images', '0'], '--max-images 0'),
    (['--bag', 'b', '--max-gap', 'nan'], '--max-gap nan'),
    (['--bag', 'b', '--extrinsic', '1 2'], '--extrinsic')])
def test_options_that_contradict_one_another_are_refused(tmp_path, capsys, arguments, text):
    try:
        status = cli.main(['build', '--output', str(tmp_path / 'map'), *arguments])
    except SystemExit as left:
        status = left.code
    assert status == 2
    assert text in ' '.join(''.join(capsys.readouterr()).replace('│', ' ').split())


def test_the_extrinsic_of_the_tests_is_that_of_simulated_drives():
    assert BASE_FROM_CAMERA[:3, 3].tolist() == [0.1, 0.0, 0.3]
