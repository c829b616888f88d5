"""Transforms that two publishers contradict one another on, and static ones that change."""

from nerfmatch_ros.data.reader import read_posed_images
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros.bag_drive import BASE_FROM_CAMERA
from nerfmatch_ros.ros.bag_frames import extract_frames
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.link_check import contradictions
import numpy as np
import pytest
from robot_bags import (
    BASE,
    base_pose,
    camera_pose,
    drive,
    ODOM,
    odometry,
    OPTICAL,
    PERIOD,
    START,
    write,
)
from scipy.spatial.transform import Rotation

EVERY = BagFrameOptions(keyframe_metres=0)
TICK = 20_000_000  # ns


def way(count=600, *, rate=50.0, speed=0.6, noise=0.0, seed=0, offset=(0.0, 0.0), yaw=0.0,
        delay=0.0):
    """Give stamps (N,) ns and numbers (N, 7) of a robot that drives a bend."""
    generator = np.random.default_rng(seed)
    seconds = np.arange(count) / rate + delay
    numbers = np.zeros((count, 7))
    numbers[:, 0] = 3 * np.sin(speed * seconds / 3) + offset[0]
    numbers[:, 1] = 3 - 3 * np.cos(speed * seconds / 3) + offset[1]
    numbers[:, :3] += noise * generator.normal(size=(count, 3))
    angle = speed * seconds / 3 + yaw + noise * generator.normal(size=count)
    numbers[:, 3:] = Rotation.from_euler('z', angle[:, None]).as_quat()
    return (1e9 * seconds).astype(np.int64), numbers


def both(*ways):
    return tuple(np.concatenate(parts) for parts in zip(*ways))


@pytest.mark.parametrize('second', [
    {'offset': (5.0, 0.0), 'delay': 0.007}, {'offset': (0.5, 0.5)},  # also of the same stamps
    {'offset': (3.0, 0.0), 'rate': 10.0, 'count': 120},
    {'offset': (5.0, 0.0), 'rate': 1.0, 'count': 12, 'delay': 0.3},
    {'yaw': 1.0, 'delay': 0.003}, {'yaw': np.pi, 'delay': 0.003},
    {'offset': (4.0, 1.0), 'noise': 0.05, 'delay': 0.011}])
def test_two_publishers_are_found_whatever_their_rates(second):
    found = contradictions(*both(way(noise=0.002), way(seed=1, **second)))
    assert found.count >= 11 and found.count > 0.01 * found.samples


def test_publishers_that_overtake_one_another_are_found():
    stamps = np.repeat(np.arange(300) * TICK, 2)
    numbers = np.repeat(way(300)[1], 2, axis=0)
    second = np.arange(600) % 4 % 3 != 0  # A B B A, of two with equal stamps
    numbers[second, 0] += 2.0
    assert contradictions(stamps, numbers).count > 100


@pytest.mark.parametrize('options', [
    {'noise': 0.05}, {'noise': 0.3, 'rate': 10.0}, {'speed': 30.0, 'rate': 5.0}, {'speed': 0.0},
    {'noise': 0.02, 'rate': 200.0, 'count': 4000}])
def test_honest_noise_is_no_contradiction(options):
    for seed in range(5):
        assert contradictions(*way(seed=seed, **options)) is None


def test_noise_along_one_axis_and_a_robot_that_stops_and_goes_are_no_contradiction():
    generator = np.random.default_rng(0)
    stamps, numbers = way(3000, speed=0.0)
    numbers[:, 0] += 0.1 * generator.normal(size=3000)
    assert contradictions(stamps, numbers) is None
    seconds = np.arange(3000) / 10
    numbers[:, 0] = np.cumsum(np.where(seconds % 20 < 10, 0.0, 3.0 * np.sin(seconds))) / 10
    assert contradictions((1e9 * seconds).astype(np.int64), numbers) is None


def test_a_relocalization_and_corrections_again_and_again_are_no_contradiction():
    stamps, numbers = way(1000, noise=0.001)
    numbers[500:, :2] += 4.0
    assert contradictions(stamps, numbers) is None
    # A filter that drifts and is put right every second.
    numbers[:, 1] += 0.5 * (np.arange(1000) % 50) / 50
    assert contradictions(stamps, numbers) is None


def test_samples_that_a_relay_repeats_are_no_contradiction():
    assert contradictions(*both(way(noise=0.01), way(noise=0.01))) is None


def two_publishers(every=1):
    events = drive(12)
    for number, stamp in enumerate(range(START - 200_000_000, START + 12 * PERIOD, TICK)):
        if number % every == 0:
            pose = base_pose((stamp - START) / 1e9)
            pose[0, 3] += 5
            events.append(['/tf', stamp + 3, messages.make_transforms(pose, stamp, ODOM, BASE)])
    return events


def test_two_publishers_of_one_transform_are_an_error_that_names_link_and_jump(tmp_path):
    bag = write(tmp_path / 'bag', two_publishers())
    with pytest.raises(DataError, match=r"'base_link' in 'odom' jumps 5\.\d\d m there and back "
                                        'again.*two publishers.*--odom-frame.*--pose-topic'):
        extract_frames(bag, tmp_path / 'frames')


def test_a_few_jumps_are_told_of(tmp_path):
    bag = write(tmp_path / 'bag', two_publishers(every=40))
    notes = extract_frames(bag, tmp_path / 'frames', EVERY).report['notes']
    assert any("'base_link' in 'odom' jumps 5" in note and 'may be wrong' in note
               for note in notes)


def test_two_publishers_on_a_topic_of_poses_are_an_error_that_names_it(tmp_path):
    events = drive(12, transforms=False)
    for number, stamp in enumerate(range(START - 200_000_000, START + 12 * PERIOD, TICK // 2)):
        pose = base_pose((stamp - START) / 1e9)
        pose[1, 3] += 3 * (number % 2)
        events.append(['/odom', stamp + 1, odometry(pose, stamp)])
    with pytest.raises(DataError, match=r"/odom: 'base_link' in 'odom' jumps 3\.\d\d m there"):
        extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames',
                       BagFrameOptions(pose_topic='/odom'))


def raised_mount(since, stamp):
    mount = BASE_FROM_CAMERA.copy()
    mount[2, 3] += 1.0
    return ['/tf_static', since, messages.make_transforms(mount, stamp, BASE, OPTICAL)]


@pytest.mark.parametrize('stamp', [START + 6 * PERIOD, 0])
def test_a_static_transform_that_changes_holds_from_then_on_and_is_told_of(tmp_path, stamp):
    bag = write(tmp_path / 'bag', [*drive(12), raised_mount(START + 6 * PERIOD, stamp)])
    found = extract_frames(bag, tmp_path / 'frames', EVERY)
    for k, image in enumerate(read_posed_images(tmp_path / 'frames')):
        expected = camera_pose(k / 10)
        expected[2, 3] += k >= 6
        np.testing.assert_allclose(image.map_from_camera, expected, atol=1e-7)
    assert any(f"'{OPTICAL}' in '{BASE}' is static, but changes 1 times, by up to 1.000 m" in note
               for note in found.report['notes'])


def test_a_static_transform_sent_again_and_again_is_no_change(tmp_path):
    events = drive(6)
    for k in range(6):
        message = messages.make_transforms(BASE_FROM_CAMERA, START + k * PERIOD, BASE, OPTICAL)
        rotation = message.transforms[0].transform.rotation
        if k % 2:  # the same rotation
            for axis in 'xyzw':
                setattr(rotation, axis, -getattr(rotation, axis))
        events.append(['/tf_static', START + k * PERIOD, message])
    assert not extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames').report['notes']


def test_two_publishers_of_a_static_transform_are_an_error(tmp_path):
    events = drive(12)
    for k in range(5):
        events.append(raised_mount(START + 2 * k * PERIOD, START + 2 * k * PERIOD))
        events.append(['/tf_static', START + (2 * k + 1) * PERIOD, messages.make_transforms(
            BASE_FROM_CAMERA, START + (2 * k + 1) * PERIOD, BASE, OPTICAL)])
    with pytest.raises(DataError, match='is static, but changes 10 times.*two publishers'):
        extract_frames(write(tmp_path / 'bag', events), tmp_path / 'frames')
