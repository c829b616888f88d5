"""The transforms of a whole bag, looked up afterwards."""

from nerfmatch_ros.data.tum import numbers_from_pose
from nerfmatch_ros.ros.transform_buffer import TransformBuffer, TransformError
from nerfmatch_ros.ros.transform_log import TransformLog
import numpy as np
import pytest
from robot_bags import base_pose

SECOND = 10**9


def log_of(*links):
    """Make a log of (parent, child, stamp in ns, pose, static)."""
    log = TransformLog()
    for parent, child, stamp, pose, static in links:
        log.add_numbers(parent, child, stamp, numbers_from_pose(pose).tolist(), static)
    return log


def moved(x, y=0.0):
    pose = np.eye(4)
    pose[:2, 3] = x, y
    return pose


def tree():
    """Give links of a robot: a static mount, wheels that turn, and odometry as it drives."""
    mount = base_pose(3.0)
    links = [('base', 'camera', 0, mount, True), ('camera', 'optical', 0, base_pose(1.0), True)]
    for k in range(20):
        links.append(('odom', 'base', k * SECOND // 10, base_pose(k / 10), False))
        links.append(('base', 'wheel', k * SECOND // 10, base_pose(-k), False))
    return links


def test_poses_are_those_of_a_buffer_whatever_the_order_of_arrival():
    generator = np.random.default_rng(0)
    links = tree()
    buffer = TransformBuffer(duration=1e9)
    for parent, child, stamp, pose, static in links:
        buffer.set(parent, child, stamp, pose, static)
    generator.shuffle(links)
    log = log_of(*links)
    stamps = np.array([0, 1, 50_000_000, 123_456_789, 1_900_000_000])
    for target, source in (('odom', 'optical'), ('wheel', 'optical'), ('optical', 'odom')):
        poses, reasons = log.at(target, source, stamps, SECOND)
        assert reasons == [''] * 5
        for stamp, pose in zip(stamps.tolist(), poses):
            np.testing.assert_allclose(pose, buffer.lookup(target, source, stamp), atol=1e-9)


def test_nothing_is_known_outside_and_in_gaps_and_the_reason_names_the_link():
    log = log_of(*[('odom', 'base', k * SECOND, moved(k), False) for k in (1, 2, 5)],
                 ('base', 'camera', 0, moved(0.1), True))
    stamps = np.array([0, SECOND, 1_500_000_000, 3 * SECOND, 5 * SECOND, 5 * SECOND + 1])
    poses, reasons = log.at('odom', 'camera', stamps, SECOND)
    known = np.isfinite(poses).all(axis=(1, 2))
    assert known.tolist() == [not reason for reason in reasons]
    assert known.tolist() == [False, True, True, False, True, False]
    assert poses[[1, 2, 4], 0, 3] == pytest.approx([1.1, 1.6, 5.1])
    assert "1.000 s before the first of 'base' in 'odom'" in reasons[0]
    assert "gap of 3.000 s of 'base' in 'odom'" in reasons[3]
    assert "after the last of 'base' in 'odom'" in reasons[5]


def test_of_equal_stamps_the_last_counts_and_static_transforms_hold_until_they_change():
    log = log_of(('odom', 'base', 7, moved(1), False), ('odom', 'base', 7, moved(2), False),
                 ('base', 'camera', 0, moved(0, 1), True),
                 ('base', 'camera', 9, moved(0, 2), True))
    pose, = log.at('odom', 'camera', np.array([7]), SECOND)[0]
    assert pose[:2, 3].tolist() == [2, 1]
    held = log.at('base', 'camera', np.array([-5, 0, 8, 9, 10]), SECOND)[0]
    assert held[:, 1, 3].tolist() == [1, 1, 1, 2, 2]


def test_what_moves_goes_before_what_was_said_to_be_fixed():
    fixed = ('odom', 'base', 0, moved(9), True)
    moving = [('odom', 'base', k, moved(k), False) for k in range(4)]
    for links in ([fixed, *moving], [*moving, fixed]):
        assert log_of(*links).at('odom', 'base', np.array([2]), SECOND)[0][0, 0, 3] == 2


def test_two_parents_of_one_frame_do_not_tear_the_tree_apart():
    log = log_of(('odom', 'base', 5, moved(1), False), ('vision', 'base', 5, moved(2), False))
    for target, x in (('odom', 1), ('vision', 2)):
        assert log.at(target, 'base', np.array([5]), SECOND)[0][0, 0, 3] == x
    assert log.parents('base') == ['odom', 'vision']


def test_a_frame_in_itself_is_known_at_any_time():
    poses, reasons = log_of().at('camera', 'camera', np.array([3, 4]), SECOND)
    assert (poses == np.eye(4)).all() and reasons == ['', '']


def test_frames_that_nothing_joins_are_errors_that_say_what_is_there():
    log = log_of(('odom', 'base', 5, moved(1), False), ('head', 'camera', 5, moved(2), True))
    with pytest.raises(TransformError, match="no chain.*'head'.*'odom'") as caught:
        log.path('odom', 'camera')
    assert caught.value.kind == 'disconnected'
    with pytest.raises(TransformError, match="'map' is in no transform.*base, camera, head, odom"):
        log.path('map', 'base')


def test_what_is_no_transform_is_counted_and_not_kept():
    log = log_of(('odom', 'base', 5, moved(1), False))
    good = [0.0, 0, 0, 0, 0, 0, 1]
    for parent, child, numbers in (
            ('odom', 'base', [np.nan, *good[1:]]), ('odom', 'base', [0.0] * 7),
            ('odom', '', good), ('odom', 'odom', good)):
        log.add_numbers(parent, child, 6, numbers, False)
    assert sum(log.refused.values()) == 4 and log.refused["'base' in 'odom'"] == 2
    assert log.at('odom', 'base', np.array([6]), SECOND)[1] != ['']
