"""Transforms over time: interpolated between what was heard, never beyond it."""

import math
import random

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.transform_buffer import TransformBuffer, TransformError
import numpy as np
import pytest
from scipy.spatial.transform import Rotation, Slerp

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
UNIT = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0)


def rigid(generator):
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat(generator.normal(size=4)).as_matrix()
    pose[:3, 3] = generator.normal(size=3)
    return pose


def numbers(x, yaw=0.0):
    return (float(x), 0.0, 0.0, 0.0, 0.0, math.sin(yaw / 2), math.cos(yaw / 2))


def kind_of(call, *arguments):
    with pytest.raises(TransformError) as caught:
        call(*arguments)
    return caught.value.kind


@pytest.fixture
def generator(request):
    return np.random.default_rng(list(request.node.name.encode()))


@pytest.fixture
def buffer():
    return TransformBuffer(duration=10.0)


def test_a_stamp_that_was_heard_gives_what_was_heard(buffer, generator):
    poses = [rigid(generator) for _ in range(5)]
    for k, pose in enumerate(poses):
        buffer.set('odom', 'base', START + k * SECOND, pose)
    for k, pose in enumerate(poses):
        np.testing.assert_allclose(buffer.lookup('odom', 'base', START + k * SECOND), pose,
                                   atol=1e-12)


def test_between_stamps_position_is_linear_and_rotation_takes_the_shortest_arc(buffer, generator):
    for trial in range(50):
        first, second = rigid(generator), rigid(generator)
        buffer.set('odom', f'base{trial}', START, first)
        buffer.set('odom', f'base{trial}', START + 100, second)
        arc = Slerp((0, 1), Rotation.from_matrix((first[:3, :3], second[:3, :3])))
        for step in (1, 37, 50, 99):
            found = buffer.lookup('odom', f'base{trial}', START + step)
            np.testing.assert_allclose(
                found[:3, 3], first[:3, 3] + step / 100 * (second - first)[:3, 3], atol=1e-12)
            np.testing.assert_allclose(found[:3, :3], arc(step / 100).as_matrix(), atol=1e-9)


def test_the_sign_of_a_quaternion_does_not_matter(buffer):
    a, b = numbers(0, yaw=0.1), numbers(1, yaw=0.3)
    buffer.set_numbers('odom', 'base', START, a)
    buffer.set_numbers('odom', 'base', START + 2, (*b[:3], *(-v for v in b[3:])))
    found = buffer.lookup('odom', 'base', START + 1)
    assert math.atan2(found[1, 0], found[0, 0]) == pytest.approx(0.2)


def test_almost_equal_rotations_are_interpolated_too(buffer):
    buffer.set_numbers('odom', 'base', START, numbers(0, yaw=0.5))
    buffer.set_numbers('odom', 'base', START + 2, numbers(2, yaw=0.5 + 1e-9))
    found = buffer.lookup('odom', 'base', START + 1)
    assert found[0, 3] == 1 and math.atan2(found[1, 0], found[0, 0]) == pytest.approx(0.5)


def test_a_chain_is_the_product_of_its_links_in_both_directions(buffer, generator):
    map_from_odom, odom_from_base, base_from_camera = (rigid(generator) for _ in range(3))
    base_from_lidar = rigid(generator)
    buffer.set('map', 'odom', START, map_from_odom)
    buffer.set('odom', 'base', START, odom_from_base)
    buffer.set('base', 'camera', 0, base_from_camera, static=True)
    buffer.set('base', 'lidar', 0, base_from_lidar, static=True)
    whole = map_from_odom @ odom_from_base @ base_from_camera
    np.testing.assert_allclose(buffer.lookup('map', 'camera', START), whole, atol=1e-12)
    np.testing.assert_allclose(
        buffer.lookup('camera', 'map', START), np.linalg.inv(whole), atol=1e-12)
    # Links above the common ancestor do not matter, at whatever time.
    np.testing.assert_allclose(buffer.lookup('lidar', 'camera', 1),
                               np.linalg.inv(base_from_lidar) @ base_from_camera, atol=1e-12)
    np.testing.assert_array_equal(buffer.lookup('base', 'base', 1), np.eye(4))


def test_nothing_is_extrapolated(buffer):
    buffer.set_numbers('odom', 'base', START, numbers(0))
    assert kind_of(buffer.lookup, 'odom', 'base', START + 1) == 'future'
    assert kind_of(buffer.lookup, 'odom', 'base', START - 1) == 'past'
    buffer.set_numbers('odom', 'base', START + 10, numbers(1))
    assert kind_of(buffer.lookup, 'odom', 'base', START + 11) == 'future'
    assert kind_of(buffer.lookup, 'odom', 'base', START - 1) == 'past'


def test_what_is_past_is_told_even_if_another_link_is_still_to_come(buffer):
    for first, second in ((0, 20), (20, 0)):
        buffer.set_numbers('map', 'odom', START + first, UNIT)
        buffer.set_numbers('odom', 'base', START + second, UNIT)
        for target, source in (('map', 'base'), ('base', 'map')):
            assert kind_of(buffer.lookup, target, source, START + 10) == 'past'
        buffer.clear()


def test_unknown_and_unconnected_frames_are_told_apart(buffer):
    assert kind_of(buffer.lookup, 'odom', 'base', START) == 'missing'
    buffer.set_numbers('odom', 'base', START, UNIT)
    buffer.set_numbers('rig', 'camera', 0, UNIT, static=True)
    with pytest.raises(TransformError, match="'lidar'.*base, camera, odom, rig") as caught:
        buffer.lookup('base', 'lidar', START)
    assert caught.value.kind == 'missing'
    assert kind_of(buffer.lookup, 'base', 'camera', START) == 'disconnected'
    assert kind_of(buffer.latest, 'base', 'camera') == 'disconnected'


def test_static_transforms_hold_at_every_time_and_the_last_one_wins(buffer):
    buffer.set_numbers('base', 'camera', START, numbers(1), static=True)
    for stamp in (0, START - SECOND, START, START + 1000 * SECOND):
        assert buffer.lookup('base', 'camera', stamp)[0, 3] == 1
    buffer.set_numbers('base', 'camera', 0, numbers(2), static=True)
    assert buffer.lookup('base', 'camera', START)[0, 3] == 2
    assert buffer.latest('base', 'camera')[1] == 0


def test_clearing_keeps_static_transforms_and_takes_data_from_before(buffer):
    """Row 12: after a loop of a bag, stamps of the former pass lie in the future."""
    buffer.set_numbers('base', 'camera', START, numbers(1), static=True)
    for k in range(20):
        buffer.set_numbers('odom', 'base', START + k * SECOND, numbers(k))
    buffer.clear()
    assert buffer.lookup('base', 'camera', START)[0, 3] == 1
    assert kind_of(buffer.lookup, 'odom', 'base', START + SECOND) == 'missing'
    assert buffer.set_numbers('odom', 'base', START, numbers(7))
    assert buffer.lookup('odom', 'base', START)[0, 3] == 7


def test_the_order_of_arrival_does_not_matter(buffer):
    order = list(range(50))
    random.Random(1).shuffle(order)
    for k in order:
        buffer.set_numbers('odom', 'base', START + k * 1000, numbers(k * k))
    in_order = TransformBuffer(duration=10.0)
    for k in range(50):
        in_order.set_numbers('odom', 'base', START + k * 1000, numbers(k * k))
    for stamp in range(START, START + 49_001, 250):
        np.testing.assert_array_equal(
            buffer.lookup('odom', 'base', stamp), in_order.lookup('odom', 'base', stamp))


def test_the_last_of_two_with_one_stamp_wins(buffer):
    buffer.set_numbers('odom', 'base', START, numbers(1))
    buffer.set_numbers('odom', 'base', START, numbers(2))
    assert buffer.lookup('odom', 'base', START)[0, 3] == 2


def test_only_the_duration_is_kept_and_all_of_it():
    buffer = TransformBuffer(duration=2.0)
    for k in range(10_000):
        buffer.set_numbers('odom', 'base', START + k * SECOND // 1000, numbers(k))
        assert len(buffer._links['base'].stamps) <= 2000 * 17 / 16 + 2
    newest = START + 9_999 * SECOND // 1000
    assert buffer.lookup('odom', 'base', newest - 2 * SECOND)[0, 3] == 7_999
    assert kind_of(buffer.lookup, 'odom', 'base', newest - 3 * SECOND) == 'past'
    assert not buffer.set_numbers('odom', 'base', newest - 3 * SECOND, numbers(0))


def test_two_parents_of_one_child_are_reported_and_the_last_one_wins(buffer):
    """Row 17: two publishers of one child."""
    buffer.set_numbers('odom', 'base', START, numbers(1))
    assert buffer.conflicts == {}
    buffer.set_numbers('map', 'base', START + 1, numbers(2))
    assert buffer.conflicts == {'base': ('odom', 'map')} and buffer.parents == {'base': 'map'}
    # Never between a place in one parent and a place in another.
    assert kind_of(buffer.lookup, 'map', 'base', START) == 'past'
    assert kind_of(buffer.lookup, 'odom', 'base', START + 1) == 'missing'


def test_a_loop_of_frames_is_an_error_and_no_endless_search(buffer):
    for parent, child in (('a', 'b'), ('b', 'c'), ('c', 'a'), ('x', 'y')):
        buffer.set_numbers(parent, child, 0, UNIT, static=True)
    assert kind_of(buffer.lookup, 'x', 'a', START) == 'disconnected'
    assert kind_of(buffer.lookup, 'a', 'c', START) == 'disconnected'


@pytest.mark.parametrize('parent, child, values, message', [
    ('', 'base', UNIT, 'lacks the name'),
    ('odom', '/', UNIT, 'lacks the name'),
    ('base', '/base', UNIT, 'in itself'),
    ('odom', 'base', (math.nan, *UNIT[1:]), 'not finite'),
    ('odom', 'base', (math.inf, -math.inf, *UNIT[2:]), 'not finite'),
    ('odom', 'base', (*UNIT[:6], math.nan), 'not finite'),
    ('odom', 'base', (0.0,) * 7, 'no rotation'),
    ('odom', 'base', (*UNIT[:6], 1.1), 'length 1.1'),
])
def test_what_is_no_link_is_refused_and_changes_nothing(buffer, parent, child, values, message):
    """Row 15: NaN and zero quaternions."""
    buffer.set_numbers('odom', 'base', START, numbers(1))
    for static in (False, True):
        with pytest.raises(DataError, match=message):
            buffer.set_numbers(parent, child, START, values, static)
    assert buffer.lookup('odom', 'base', START)[0, 3] == 1
    assert buffer.parents == {'base': 'odom'} and not buffer.conflicts


def test_the_slash_of_ros_1_before_a_name_is_no_part_of_it(buffer):
    buffer.set_numbers('/odom', '/base', START, numbers(1))
    assert buffer.lookup('odom', '/base', START)[0, 3] == 1


def test_the_latest_is_the_newest_stamp_that_all_links_have(buffer):
    for k in range(10):
        buffer.set_numbers('map', 'odom', START + k, numbers(k))
    for k in range(5):
        buffer.set_numbers('odom', 'base', START + k, numbers(10 * k))
    buffer.set_numbers('base', 'camera', 0, numbers(100), static=True)
    matrix, stamp = buffer.latest('map', 'camera')
    assert stamp == START + 4 and matrix[0, 3] == 4 + 40 + 100


def test_a_camera_that_pans_is_where_it_was_at_the_image(buffer):
    """Row 15: base -> camera that changes."""
    for k in range(11):
        buffer.set_numbers('base', 'camera', START + k * SECOND // 10, numbers(0, yaw=0.1 * k))
    found = buffer.lookup('base', 'camera', START + SECOND // 4)
    assert math.atan2(found[1, 0], found[0, 0]) == pytest.approx(0.25)


def test_odometry_of_a_turning_robot_is_taken_at_the_image_not_at_its_arrival(buffer):
    """0.5 m/s, 1 rad/s, an image 150 ms late: the latest odometry is 7 cm, 8.6 deg off."""
    def truth(t):
        pose = np.eye(4)
        pose[:3, :3] = Rotation.from_euler('z', t).as_matrix()
        pose[:2, 3] = 0.5 * math.sin(t), 0.5 * (1 - math.cos(t))
        return pose

    for k in range(101):
        buffer.set('odom', 'base', START + k * SECOND // 50, truth(k / 50))
    image = 2.0 - 0.15 - 0.007
    found = buffer.lookup('odom', 'base', START + int(image * SECOND))
    error = np.linalg.inv(truth(image)) @ found
    angle = Rotation.from_matrix(error[:3, :3]).magnitude()
    assert np.linalg.norm(error[:3, 3]) < 0.01 and np.degrees(angle) < 0.2
    latest = np.linalg.inv(truth(image)) @ buffer.latest('odom', 'base')[0]
    assert np.linalg.norm(latest[:3, 3]) > 0.07


def test_hundreds_of_frames(buffer):
    """Row 37: every frame of a large robot is found, and so is the end of a long chain."""
    for k in range(500):
        buffer.set_numbers('base', f'part{k}', 0, numbers(k), static=True)
        buffer.set_numbers(f'link{k}', f'link{k + 1}', START, numbers(1))
    assert buffer.lookup('part3', 'part499', START)[0, 3] == 496
    assert buffer.lookup('link0', 'link500', START)[0, 3] == 500
