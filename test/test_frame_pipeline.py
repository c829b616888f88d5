"""One frame through lookups, prior, localizer and tracker, without messages or threads."""

from dataclasses import replace
from threading import RLock

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.frame_pipeline import FramePipeline, PipelineOptions, TrackedFrames
from nerfmatch_ros.localization.pose_tracker import PoseTracker, TrackerState
from nerfmatch_ros.localization.rigid_motion import rotation_exp
import numpy as np
import pytest

CAMERA = Camera('PINHOLE', 32, 24, 30.0, 30.0, 15.5, 11.5)
IMAGE = PosedImage('frame', CAMERA, pixels=np.zeros((24, 32, 3), np.uint8))
SECOND = 10 ** 9
BASE_FROM_CAMERA = np.array([
    [0.0, 0.0, 1.0, 0.1], [-1.0, 0.0, 0.0, 0.0], [0.0, -1.0, 0.0, 0.3], [0.0, 0.0, 0.0, 1.0]])
MAP_FROM_ODOM = np.array([
    [0.0, -1.0, 0.0, 5.0], [1.0, 0.0, 0.0, -2.0], [0.0, 0.0, 1.0, 0.0], [0.0, 0.0, 0.0, 1.0]])


class Missing(NerfmatchError):
    """A transform that is not there."""


def odom_from_base(stamp_ns):
    pose = np.eye(4)
    pose[0, 3] = 0.5 * stamp_ns / SECOND
    return pose


def truth(stamp_ns):
    return MAP_FROM_ODOM @ odom_from_base(stamp_ns)


class Robot:
    """Transforms and a localizer that knows the truth."""

    def __init__(self, odometry=True, extrinsic=True):
        self.odometry, self.extrinsic = odometry, extrinsic
        self.map_sha256 = 'fa'
        self.now = 0
        self.priors = []
        self.answer = 'good'
        self.during = lambda: None

    def lookup(self, target, source, stamp_ns):
        if (target, source) == ('base_link', 'camera') and self.extrinsic:
            return BASE_FROM_CAMERA
        if (target, source) == ('odom', 'base_link') and self.odometry:
            return odom_from_base(stamp_ns)
        raise Missing(f'{target} <- {source}')

    def localize(self, image, prior=None):
        self.priors.append(prior)
        self.during()
        if self.answer == 'none':
            return PoseEstimate(None, 'too few', None, 0, 10, float('nan'))
        pose = truth(self.now) @ BASE_FROM_CAMERA
        if self.answer == 'wrong':
            pose = pose.copy()
            pose[1, 3] += 2.0
        return PoseEstimate(pose, '', np.eye(6) * 1e-4, 50, 80, 0.7)


def pipeline_of(robot, tf_mode='map_to_odom', pose_frame='base', **options):
    return FramePipeline(
        robot, PoseTracker(), TrackedFrames.for_mode(tf_mode, pose_frame, 'base_link', 'odom'),
        robot.lookup, lock=RLock(), options=PipelineOptions(**options))


def drive(pipeline, robot, seconds):
    results = []
    for second in seconds:
        robot.now = round(second * SECOND)
        results.append(pipeline.process(IMAGE, robot.now, 'camera'))
    return results


@pytest.mark.parametrize(('tf_mode', 'pose_frame', 'expected'), [
    ('map_to_odom', 'base', ('base_link', 'odom', True, False)),
    ('map_to_odom', 'camera', ('base_link', 'odom', True, True)),
    ('map_to_base', 'base', ('base_link', None, False, False)),
    ('map_to_camera', 'base', (None, None, False, True)),
    ('none', 'base', ('base_link', 'odom', False, False)),
    ('none', 'camera', (None, 'odom', False, True)),
])
def test_the_mode_says_what_is_tracked(tf_mode, pose_frame, expected):
    frames = TrackedFrames.for_mode(tf_mode, pose_frame, 'base_link', 'odom')
    assert (frames.base, frames.odom, frames.odometry_required, frames.pose_of_camera) == expected


def test_a_drive_is_tracked_in_the_base_with_the_odometry_of_each_stamp():
    robot = Robot()
    pipeline = pipeline_of(robot)
    results = drive(pipeline, robot, (1, 1.2, 1.4))
    assert [result.verdict for result in results] == ['pending', 'accepted', 'accepted']
    for result in results[1:]:
        pose, covariance = pipeline.published_pose(result)
        np.testing.assert_allclose(pose, truth(result.stamp_ns), atol=1e-9)
        assert covariance.shape == (6, 6)
        assert set(result.seconds) == {'transforms', 'localize', 'fuse'}
    np.testing.assert_allclose(pipeline.tracker.map_from_odom, MAP_FROM_ODOM, atol=1e-9)
    # The third frame was looked for where odometry says that the camera is.
    assert robot.priors[0] is None
    np.testing.assert_allclose(
        robot.priors[2], truth(round(1.4 * SECOND)) @ BASE_FROM_CAMERA, atol=1e-9)


class Clock:
    """Stages that a backend would have timed."""

    def __init__(self):
        self.seconds = {}

    def take(self):
        seconds, self.seconds = self.seconds, {}
        return seconds


def test_a_frame_has_the_seconds_of_its_own_stages_and_no_others():
    robot = Robot()
    robot.clock = clock = Clock()
    pipeline = pipeline_of(robot)
    clock.seconds = {'similar views': 7.0}  # asked for between two frames
    robot.during = lambda: clock.seconds.update({'encode': 0.25, 'refine/match': 0.125})
    first = drive(pipeline, robot, (1,))[0]
    robot.during = lambda: clock.seconds.update({'encode': 0.5})
    second = drive(pipeline, robot, (1.2,))[0]
    steps = {'transforms', 'localize', 'fuse'}
    assert {stage: spent for stage, spent in first.seconds.items() if stage not in steps} == {
        'localize/encode': 0.25, 'localize/refine/match': 0.125}
    assert {stage: spent for stage, spent in second.seconds.items() if stage not in steps} == {
        'localize/encode': 0.5}
    assert steps <= set(second.seconds)


def test_stages_of_a_localizer_that_failed_are_not_counted_for_the_next_frame():
    robot = Robot()
    robot.clock = clock = Clock()
    pipeline = pipeline_of(robot)

    def fail():
        clock.seconds['encode'] = 3.0
        raise RuntimeError('injected')
    robot.during = fail
    with pytest.raises(RuntimeError):
        drive(pipeline, robot, (1,))
    robot.during = lambda: None
    assert set(drive(pipeline, robot, (1.2,))[0].seconds) == {'transforms', 'localize', 'fuse'}


def test_the_lever_arm_of_the_camera_widens_the_covariance_of_the_base():
    robot = Robot()
    result = drive(pipeline_of(robot), robot, (1,))[0]
    variances = result.raw[1].diagonal()
    assert variances[2] > 1e-4 and variances[3] == pytest.approx(1e-4)


def test_search_globally_gives_no_prior():
    robot = Robot()
    drive(pipeline_of(robot, search_globally=True), robot, (1, 1.2, 1.4))
    assert robot.priors == [None] * 3


@pytest.mark.parametrize('missing', ['odometry', 'extrinsic'])
def test_a_missing_transform_is_no_pose_and_no_identity(missing):
    robot = Robot(**{missing: False})
    pipeline = pipeline_of(robot)
    with pytest.raises(Missing):
        drive(pipeline, robot, (1,))
    assert pipeline.tracker.counts['failed'] == 1 and not robot.priors


def test_without_transforms_a_camera_is_tracked_alone():
    robot = Robot(odometry=False, extrinsic=False)
    pipeline = pipeline_of(robot, 'map_to_camera')
    results = drive(pipeline, robot, (1, 1.2))
    pose, _ = pipeline.published_pose(results[1])
    # Fused with the fix 0.2 s before, which may have been up to a metre away.
    np.testing.assert_allclose(pose, truth(robot.now) @ BASE_FROM_CAMERA, atol=0.01)


def test_optional_odometry_is_decided_once_an_epoch():
    robot = Robot(odometry=False)
    pipeline = pipeline_of(robot, 'none')
    drive(pipeline, robot, (1, 1.2))
    robot.odometry = True
    assert drive(pipeline, robot, (1.4,))[0].odom_from_base is None
    pipeline.tracker.reset('test')
    drive(pipeline, robot, (1.6, 1.8))
    assert pipeline.tracker.map_from_odom is not None
    robot.odometry = False
    with pytest.raises(Missing):
        drive(pipeline, robot, (2.0,))


def test_what_was_computed_for_an_epoch_that_ended_is_dropped():
    robot = Robot()
    pipeline = pipeline_of(robot)
    drive(pipeline, robot, (1, 1.2))
    robot.during = lambda: pipeline.tracker.reset('test')
    result = drive(pipeline, robot, (1.4,))[0]
    assert result.verdict == 'superseded' and result.pose is None
    assert pipeline.tracker.state is TrackerState.UNLOCALIZED


@pytest.mark.parametrize(('probability', 'least', 'counts'), [
    (0.3, 0.5, False), (0.7, 0.5, True), (0.3, 0.0, True), (float('nan'), 0.5, True)])
def test_a_pose_that_the_judge_doubts_does_not_count(probability, least, counts):
    robot = Robot()
    found = robot.localize
    robot.localize = lambda image, prior=None: replace(
        found(image, prior), probability=probability)
    results = drive(pipeline_of(robot, min_probability=least), robot, (1, 1.2))
    assert (results[1].pose is not None) == counts
    if not counts:
        assert [result.verdict for result in results] == ['no_fix', 'no_fix']
        assert 'probability of 0.30; min_probability is 0.5' in results[0].reason
        assert results[0].raw is None


def test_failures_and_contradictions_give_reasons_and_no_pose():
    robot = Robot()
    pipeline = pipeline_of(robot)
    drive(pipeline, robot, (1, 1.2))
    robot.answer = 'none'
    failed = drive(pipeline, robot, (1.4,))[0]
    assert (failed.verdict, failed.reason, failed.pose, failed.raw) == (
        'no_fix', 'too few', None, None)
    robot.answer = 'wrong'
    gated = drive(pipeline, robot, (1.6,))[0]
    assert gated.verdict == 'gated' and gated.pose is None and gated.reason and gated.raw


def test_odometry_that_jumps_starts_anew():
    robot = Robot()
    pipeline = pipeline_of(robot)
    drive(pipeline, robot, (1, 1.2))
    epoch = pipeline.tracker.epoch
    robot.lookup = lambda target, source, stamp: (
        BASE_FROM_CAMERA if source == 'camera' else odom_from_base(stamp + 100 * SECOND))
    pipeline._lookup = robot.lookup
    result = drive(pipeline, robot, (1.4,))[0]
    assert result.odometry_jumped and result.epoch == epoch + 1 and result.verdict == 'pending'


def test_a_refined_pose_of_the_camera_reaches_the_history_of_the_base():
    robot = Robot()
    pipeline = pipeline_of(robot, pose_frame='camera')
    results = drive(pipeline, robot, (1, 1.2))
    better = truth(results[1].stamp_ns) @ BASE_FROM_CAMERA
    assert pipeline.add_refined(results[1].stamp_ns, better, np.eye(6) * 1e-6) == 'accepted'
    assert pipeline.add_refined(12345, better, np.eye(6) * 1e-6) == 'refined_unknown_frame'
    np.testing.assert_allclose(pipeline.tracker.map_from_odom, MAP_FROM_ODOM, atol=1e-9)


def test_two_d_mode_keeps_the_base_on_the_floor():
    robot = Robot()
    result = drive(pipeline_of(robot, two_d=True), robot, (1,))[0]
    pose = result.raw[0]
    assert pose[2, 3] == 0 and pose[2, 2] == pytest.approx(1)


def test_two_d_mode_keeps_refined_poses_on_the_floor():
    robot = Robot()
    pipeline = pipeline_of(robot, two_d=True)
    drive(pipeline, robot, (1, 1.2))
    lifted = truth(robot.now) @ np.block([
        [np.eye(3), np.array([[0.0], [0.0], [0.02]])], [np.zeros(3), 1.0]])
    assert pipeline.add_refined(robot.now, lifted, np.eye(6) * 1e-6) == 'accepted'
    assert pipeline.tracker.map_from_odom[2, 3] == pytest.approx(0.0, abs=1e-6)


def test_two_d_mode_keeps_to_the_floor_although_odometry_rises_and_leans_over():
    robot = Robot()
    lookup = robot.lookup

    def rising(target, source, stamp):
        found = lookup(target, source, stamp).copy()
        if target == 'odom':
            found[:3, :3] = rotation_exp(np.array((0.1 * stamp / SECOND, 0.0, 0.0)))
            found[2, 3] = 0.3 * stamp / SECOND
        return found
    robot.lookup = rising
    results = drive(pipeline_of(robot, two_d=True), robot, (1, 1.2, 1.4))
    assert [result.verdict for result in results] == ['pending', 'accepted', 'accepted']
    pose = results[-1].pose.map_from_base
    np.testing.assert_allclose(pose, truth(robot.now), atol=1e-9)


def test_a_localizer_that_raises_is_a_failed_frame():
    robot = Robot()
    pipeline = pipeline_of(robot)
    drive(pipeline, robot, (1, 1.2))

    def fail():
        raise RuntimeError('injected')
    robot.during = fail
    for second in (1.4, 1.6, 1.8):
        with pytest.raises(RuntimeError, match='injected'):
            drive(pipeline, robot, (second,))
    assert pipeline.tracker.state is TrackerState.LOST


@pytest.mark.parametrize('spoil', [np.nan, 2.0])
def test_a_fix_that_is_no_pose_gives_no_raw_pose_but_a_reason(spoil):
    robot = Robot()
    pipeline = pipeline_of(robot)
    drive(pipeline, robot, (1, 1.2))
    localize = robot.localize

    def spoiled(image, prior=None):
        estimate = localize(image, prior)
        estimate.map_from_camera[0, 0] = spoil
        return estimate
    robot.localize = spoiled
    result = drive(pipeline, robot, (1.4,))[0]
    assert (result.verdict, result.raw, result.pose) == ('invalid', None, None) and result.reason


def test_odometry_that_jumps_is_told_at_once_even_if_the_localizer_then_raises():
    robot, jumps = Robot(), []
    pipeline = pipeline_of(robot)
    pipeline._on_odometry_jump = lambda: jumps.append(pipeline.tracker.epoch)
    drive(pipeline, robot, (1, 1.2))
    pipeline._lookup = lambda target, source, stamp: (
        BASE_FROM_CAMERA if source == 'camera' else odom_from_base(stamp + 100 * SECOND))

    def fail():
        raise RuntimeError('injected')
    robot.during = fail
    with pytest.raises(RuntimeError, match='injected'):
        drive(pipeline, robot, (1.4,))
    assert jumps == [1]
