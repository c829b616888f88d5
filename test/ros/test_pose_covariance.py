"""What a robot's own covariances say of its poses."""

import math

from nerfmatch_ros import build_verbs
from nerfmatch_ros.files import write_text
from nerfmatch_ros.mapping import build_map as build_module
from nerfmatch_ros.mapping.register_poses import ODOMETRY
from nerfmatch_ros.ros.bag_frames import extract_frames
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.pose_covariance import stated_certainty
import numpy as np
import pytest
from robot_bags import base_pose, drive, odometry, PERIOD, pose_with_covariance, START, write

COUNT = 400
ALONG = np.linspace(0, 20, COUNT)  # metres


def stated(variances, *, fixed=False, along=ALONG):
    """Give what variances (N, 6) or (6,) say along a straight way."""
    places = np.stack((along, 0 * along, 0 * along), axis=1)
    return stated_certainty(np.arange(len(along)), places,
                            np.broadcast_to(variances, (len(along), 6)), fixed=fixed, topic='/p')


def growing(deviation):
    """Give variances (N, 6) of standard deviations (N,) of the position."""
    return np.repeat(np.asarray(deviation)[:, None] ** 2, 6, axis=1)


def test_the_share_is_how_fast_the_deviation_grows():
    assert stated(growing(0.01 + 0.05 * ALONG)).odometry_share == pytest.approx(0.05, rel=0.01)
    # A random walk that is 3 cm after a metre.
    assert stated(growing(0.03 * np.sqrt(ALONG))).odometry_share == pytest.approx(0.03, rel=0.02)


def test_a_few_wild_numbers_and_noise_change_little():
    generator = np.random.default_rng(0)
    deviation = (0.01 + 0.05 * ALONG) * (1 + 0.05 * generator.normal(size=COUNT))
    variances = growing(deviation)
    variances[generator.choice(COUNT, 20, replace=False)] = (1e6, np.nan, -1, 0, np.inf, 7)
    assert stated(variances).odometry_share == pytest.approx(0.05, rel=0.1)


def test_axes_that_nobody_measures_do_not_count():
    variances = growing(0.05 * ALONG + 0.001)
    variances[:, 2:5] = 1e6
    assert stated(variances).odometry_share == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize(('per_metre', 'share'), [(1e-4, 0.002), (0.6, 0.2)])
def test_a_share_is_bounded(per_metre, share):
    assert stated(growing(1e-4 + per_metre * ALONG)).odometry_share == share


@pytest.mark.parametrize('variances', [
    0.0, 1e6, -1.0, np.nan, np.inf, 0.01, 1e-12, growing(0.5 - 0.02 * ALONG),
    growing(0.1 + 3 * ALONG), growing(0.05 + 0.01 * (np.arange(COUNT) % 2))])
def test_what_says_nothing_is_not_used_and_told_of(variances):
    found = stated(variances)
    assert found.odometry_share is None and found.pose_std is None
    assert 'not used' in found.report()['covariance']


def test_a_robot_that_stands_says_nothing_and_trembling_is_no_way():
    assert stated(growing(0.01 + 0.01 * np.arange(COUNT)), along=0 * ALONG).odometry_share is None
    trembling = ALONG + 0.01 * np.random.default_rng(0).normal(size=COUNT)
    assert stated(growing(0.01 + 0.05 * ALONG), along=trembling).odometry_share \
        == pytest.approx(0.05, rel=0.15)


def test_in_a_fixed_frame_the_deviations_themselves_count():
    variances = np.tile((0.04, 0.04, 1e6, 0.0, 0.0, 0.01), (COUNT, 1))
    variances[:30] *= 100  # before it was localized
    metres, degrees = stated(variances, fixed=True).pose_std
    assert metres == pytest.approx(0.2) and degrees == pytest.approx(math.degrees(0.1))
    assert stated((0.04, 0.04, 0.04, 0, 0, 0), fixed=True).pose_std[1] is None
    assert stated(1e-8, fixed=True).pose_std[0] == 0.001
    assert stated(0.0, fixed=True).pose_std is None


def moving(make):
    """Give a drive of 4 s at 0.5 m/s with poses on /pose, made by make(pose, stamp, metres)."""
    events = drive(40, transforms=False)
    for stamp in range(START - PERIOD, START + 42 * PERIOD, PERIOD // 2):
        seconds = (stamp - START) / 1e9
        events.append(['/pose', stamp + 9, make(base_pose(seconds), stamp, 0.5 * (seconds + 0.1))])
    return events


TOPIC = BagFrameOptions(pose_topic='/pose', keyframe_metres=0)


@pytest.mark.parametrize(('make', 'key', 'told'), [
    (lambda pose, stamp, way: odometry(pose, stamp, variances=6 * [(0.001 + 0.08 * way) ** 2]),
     'odometry_share', (0.08, 0.1, 5.0)),
    (lambda pose, stamp, way: odometry(pose, stamp), 'covariance', (ODOMETRY, 0.1, 5.0)),
    (lambda pose, stamp, way: pose_with_covariance(
        pose, stamp, variances=3 * [0.09] + 3 * [math.radians(2) ** 2]),
     'pose_std', (None, 0.3, 2.0))])
def test_a_registration_trusts_poses_as_far_as_the_robot_does(
        tmp_path, monkeypatch, make, key, told):
    configs = []
    monkeypatch.setattr(build_module, 'build_map', lambda images, output, config, **_:
                        configs.append(config.registration) or output.mkdir(exist_ok=True))
    bag = write(tmp_path / 'bag', moving(make))
    report = extract_frames(bag, tmp_path / 'frames', TOPIC).report
    assert '/pose' in (report[key] if key == 'covariance' else report[key]['from'])
    build_verbs.build(bag=bag, output=tmp_path / 'map', poses='rough', frames=TOPIC)
    found = configs[0].odometry, configs[0].translation, configs[0].rotation
    assert found[0] == (told[0] and pytest.approx(told[0], rel=1e-3))
    assert found[1:] == pytest.approx(told[1:])
    # What is configured counts instead.
    write_text(tmp_path / 'c.yaml', 'registration: {odometry: 0.07, translation: 0.4}\n')
    build_verbs.build(bag=bag, output=tmp_path / 'map', poses='rough', frames=TOPIC,
                      config=tmp_path / 'c.yaml')
    assert (configs[1].odometry, configs[1].translation) == (0.07, 0.4)
