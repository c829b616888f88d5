"""Bags of simulated drives, written and read without a ROS installation."""

from pathlib import Path
import subprocess
import sys

import cv2
from fake_localizer import CAMERA, circle, queries
from nerfmatch_ros import cli
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.trajectory import Trajectory
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros import bag_drive, bag_messages
from nerfmatch_ros.ros.bag import BagReader, BagTopic, BagWriter, decoded
from nerfmatch_ros.ros.bag_drive import BASE_FROM_CAMERA, DriveOptions, write_drive
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def drive(images, path, **options):
    """Write a drive; give its summary and its decoded messages by topic."""
    summary = write_drive(images, path, DriveOptions(**options))
    messages = {}
    with BagReader(path) as bag:
        for name, time_ns, message in bag.messages(bag.topics):
            messages.setdefault(name, []).append((time_ns, message))
    return summary, messages


def odometry_of(messages):
    found = []
    for time_ns, message in messages['/tf']:
        (parent, child, stamp, pose), = bag_messages.read_transforms(message)
        assert (parent, child, stamp) == ('odom', 'base_link', time_ns)
        found.append((stamp, pose))
    return Trajectory.of(found)


def test_images_come_back_in_order_at_the_rate_with_their_cameras(tmp_path):
    images = queries(5)
    summary, messages = drive(images, tmp_path / 'bag', rate=4.0)
    assert summary.images == 5 and summary.seconds == pytest.approx(1.0)
    stamps = [bag_messages.read_stamp(m.header) for _, m in messages['/camera/image_raw']]
    assert np.diff(stamps).tolist() == [250_000_000] * 4
    assert stamps == [time_ns for time_ns, _ in messages['/camera/image_raw']]
    for image, (_, message), (_, info) in zip(
            images, messages['/camera/image_raw'], messages['/camera/camera_info']):
        assert (message.encoding, message.step) == ('rgb8', 96)
        assert (message.data.reshape(24, 32, 3) == image.pixels).all()
        assert message.header == info.header
        assert message.header.frame_id == 'camera_optical_frame'
        assert (info.width, info.height, info.distortion_model) == (32, 24, 'plumb_bob')
        np.testing.assert_array_equal(info.k.reshape(3, 3), CAMERA.matrix())


def test_perfect_odometry_and_extrinsic_lead_to_the_cameras_of_the_images(tmp_path):
    images = queries(4)
    summary, messages = drive(images, tmp_path / 'bag', odometry=0.0)
    assert summary.drift_m < 1e-9
    (parent, child, _, base_from_camera), = bag_messages.read_transforms(
        messages['/tf_static'][0][1])
    assert (parent, child) == ('base_link', 'camera_optical_frame')
    # An object straight ahead, 2 m before the camera, is 2.1 m before the base, 0.3 m up.
    np.testing.assert_allclose(base_from_camera @ (0, 0, 2, 1), (2.1, 0, 0.3, 1), atol=1e-12)
    truth = [bag_messages.read_pose(message) for _, message in messages['/ground_truth/pose']]
    stamps = [stamp for stamp, *_ in truth]
    assert stamps == [time_ns for time_ns, _ in messages['/camera/image_raw']]
    odometry = odometry_of(messages)
    assert set(stamps) <= set(odometry.stamps_ns.tolist())
    map_from_odom = truth[0][1] @ np.linalg.inv(odometry.at(stamps[:1])[0])
    for image, (_, map_from_base, _), odom_from_base in zip(images, truth, odometry.at(stamps)):
        np.testing.assert_allclose(
            map_from_base @ BASE_FROM_CAMERA, image.map_from_camera, atol=1e-9)
        np.testing.assert_allclose(map_from_odom @ odom_from_base, map_from_base, atol=1e-9)


def test_odometry_is_faster_than_the_images_and_reaches_beyond_them(tmp_path):
    for rate in (0.7, 8.0, 60.0):
        _, messages = drive(queries(3), tmp_path / f'{rate}', rate=rate)
        stamps = odometry_of(messages).stamps_ns
        images = [time_ns for time_ns, _ in messages['/camera/image_raw']]
        assert np.diff(stamps).max() <= 20_000_000 and np.diff(stamps).min() > 0
        assert stamps[0] <= images[0] - 400_000_000 and stamps[-1] >= images[-1] + 900_000_000


def test_odometry_drifts_by_the_noise_and_the_same_seed_gives_the_same_bag(tmp_path):
    bags = {}
    for name, options in (('a', {}), ('b', {}), ('seed', {'seed': 1}),
                          ('noisy', {'odometry': 0.1})):
        bags[name] = drive(queries(12), tmp_path / name / 'bag', **options)
    drifts = {name: summary.drift_m for name, (summary, _) in bags.items()}
    assert drifts['a'] == drifts['b'] != drifts['seed']
    # Drift is proportional to the noise, but for what its own turning adds.
    assert 3 < drifts['noisy'] / drifts['a'] < 30 and drifts['a'] > 1e-3
    contents = [(tmp_path / name / 'bag' / 'bag.mcap').read_bytes() for name in 'ab']
    assert contents[0] == contents[1]


def test_fast_jumps_between_images_are_warned_of_with_their_speed(tmp_path, caplog):
    write_drive(queries(12), tmp_path / 'slow', DriveOptions(rate=1.0))
    assert not caplog.records
    summary = write_drive(queries(12), tmp_path / 'fast', DriveOptions(rate=100.0))
    assert summary.fastest_m_s > 40 and f'{summary.fastest_m_s:.1f} m/s' in caplog.text


def test_images_without_a_pose_have_no_truth_and_do_not_disturb_the_way(tmp_path):
    images = queries(6)
    other = PosedImage(name='other', camera=Camera('PINHOLE', 40, 30, 30, 30, 20, 15),
                       pixels=np.zeros((30, 40, 3), np.uint8))
    _, messages = drive([other, *images[:2], other, *images[2:], other], tmp_path / 'bag')
    times = [time_ns for time_ns, _ in messages['/camera/image_raw']]
    assert len(times) == 9
    truth = [time_ns for time_ns, _ in messages['/ground_truth/pose']]
    assert truth == times[1:3] + times[4:8]
    steps = np.diff(odometry_of(messages).poses[:, :3, 3], axis=0)
    assert np.linalg.norm(steps, axis=1).max() < 0.25
    with pytest.raises(DataError, match='none of 2 images has a pose'):
        write_drive([other, other], tmp_path / 'none')


@pytest.mark.parametrize('camera', [
    Camera('OPENCV', 32, 24, 30, 31, 15, 11, (0.1, -0.2, 0.01, 0.02)),
    Camera('OPENCV_FISHEYE', 32, 24, 30, 31, 15, 11, (0.1, -0.02, 0.003, 0.0)),
    Camera('RATIONAL', 32, 24, 30, 31, 15, 11, (0.1, -0.2, 0.01, 0.02, 0.3, 0.1, 0.2, 0.01))])
def test_camera_models_survive_the_way_through_the_bag(camera):
    pytest.importorskip('sensor_msgs.msg', reason='needs the messages of ROS 2 (ros-wheels)')
    from nerfmatch_ros.ros.camera_messages import camera_from_info
    message = bag_messages.make_camera_info(camera, 5, 'c')
    data = bag_messages.TYPES.serialize_cdr(message, bag_messages.CAMERA_INFO)
    assert camera_from_info(decoded(bytes(data), bag_messages.CAMERA_INFO)) == camera


def test_ros_reads_what_is_written(tmp_path):
    serialization = pytest.importorskip(
        'rclpy.serialization', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
    from geometry_msgs.msg import PoseStamped
    from sensor_msgs.msg import CameraInfo, Image
    write_drive(queries(2), tmp_path / 'bag')
    types = {'/camera/image_raw': Image, '/camera/camera_info': CameraInfo,
             '/ground_truth/pose': PoseStamped}
    with BagReader(tmp_path / 'bag') as bag:
        for name, time_ns, data in bag.serialized(types):
            message = serialization.deserialize_message(bytes(data), types[name])
            assert message.header.stamp.sec * 10**9 + message.header.stamp.nanosec == time_ns
            if name == '/camera/image_raw':
                assert len(message.data) == message.step * message.height == 32 * 24 * 3


def test_quality_of_service_is_kept_in_a_form_that_humble_reads(tmp_path):
    write_drive(queries(2), tmp_path / 'bag')
    text = (tmp_path / 'bag' / 'metadata.yaml').read_text()
    assert 'version: 8' in text and 'storage_identifier: mcap' in text
    with BagReader(tmp_path / 'bag') as bag:
        assert {name for name, topic in bag.topics.items() if topic.latched} == {'/tf_static'}
        assert bag.topics == {topic.name: topic for topic in bag_drive.TOPICS}


def test_a_bag_is_written_whole_or_not_at_all(tmp_path):
    with pytest.raises(ZeroDivisionError), BagWriter(tmp_path / 'bag') as bag:
        bag.add_topic(BagTopic('/pose', bag_messages.POSE))
        bag.write('/pose', 1, bag_messages.make_pose(np.eye(4), 1, 'map'))
        assert not (tmp_path / 'bag').exists()
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())
    (tmp_path / 'bag').mkdir()
    with pytest.raises(DataError, match='bag exists; remove it'):
        BagWriter(tmp_path / 'bag')


def test_damaged_bags_are_data_errors(tmp_path):
    def read(path):
        with BagReader(path) as bag:
            return list(bag.messages(bag.topics))

    with pytest.raises(DataError, match='no_bag cannot be read'):
        read(tmp_path / 'no_bag')
    write_drive(queries(3), tmp_path / 'bag')
    file = tmp_path / 'bag' / 'bag.mcap'
    whole = file.read_bytes()
    for cut in (0, 5, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:cut])
        with pytest.raises(DataError, match='bag cannot be read|bag is damaged'):
            read(tmp_path / 'bag')
    with pytest.raises(DataError, match='is no geometry_msgs'):
        decoded(b'\x00\x01\x00\x00abc', bag_messages.POSE)


@pytest.mark.parametrize('options', [
    {'rate': 0}, {'rate': float('nan')}, {'odometry': -1}, {'odometry': float('inf')}])
def test_impossible_drives_are_refused(options):
    with pytest.raises(ConfigError, match=f'--{next(iter(options))}'):
        DriveOptions(**options)


def test_the_verb_takes_the_split_and_needs_no_ros(tmp_path):
    folder = tmp_path / 'photographs'
    folder.mkdir()
    frames = []
    for index, (image, pose) in enumerate(zip(queries(4), circle(4))):
        cv2.imwrite(str(folder / f'{index}.png'), image.pixels)
        entry = PosedImage(name=f'{index}.png', camera=CAMERA, map_from_camera=pose,
                           path=folder / f'{index}.png', split='train' if index == 3 else 'test')
        frames.append(transforms_json.frame_entry(entry, folder))
    transforms_json.write(folder / 'transforms.json', frames)
    code = (
        'import sys\n'
        'for name in ("rclpy", "sensor_msgs", "geometry_msgs", "tf2_msgs"):\n'
        '    sys.modules[name] = None\n'
        'from nerfmatch_ros.cli import main\n'
        'sys.exit(main(sys.argv[1:]))\n')
    done = subprocess.run(
        [sys.executable, '-c', code, 'bag', '--images', str(folder), '--output',
         str(tmp_path / 'out' / 'bag'), '--odometry', '0'],
        cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    with BagReader(tmp_path / 'out' / 'bag') as bag:
        assert bag.counts['/camera/image_raw'] == 3
    again = ['bag', '--images', str(folder), '--output', str(tmp_path / 'out' / 'bag')]
    assert cli.main(again) == 2
