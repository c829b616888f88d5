"""Faults of transforms, odometry, fixes and refinement, at the nodes, over real topics.

Rows are those of docs/faults.md. What is published is looked at, and that nothing else is.
"""

from contextlib import contextmanager
import math
import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy', reason='needs rclpy (a sourced ROS 2, or the extra ros-wheels)')
pytest.importorskip('tf2_msgs.msg', reason='needs tf2_msgs (python tools/generate_tf2_msgs.py)')

from diagnostic_msgs.msg import DiagnosticStatus  # noqa: E402
from fake_backend import Behaviour, FakeBackend, picture  # noqa: E402
from nerfmatch_ros.geometry.pose import perturb  # noqa: E402
from nerfmatch_ros.localization.pose_tracker import TrackerState  # noqa: E402
from nerfmatch_ros.localization.rigid_motion import distance, inverse, rotation_exp  # noqa: E402
from nerfmatch_ros.ros.conversions import (  # noqa: E402
    matrix_from_pose,
    matrix_from_transform,
    pose_with_covariance,
    stamp_message,
    stamp_ns,
    transform_stamped,
)
from node_world import (  # noqa: E402
    BASE_FROM_CAMERA,
    CAMERA_FRAME,
    error_of,
    map_from_base_at,
    MAP_FROM_ODOM,
    Spinner,
    World,
)
from rclpy.parameter import Parameter  # noqa: E402
from std_srvs.srv import Trigger  # noqa: E402
from tf2_msgs.msg import TFMessage  # noqa: E402
import torch  # noqa: E402

QUICK = {'wait_for_transform': 0.02}  # seconds; where the transform never comes


def truth(world, stamp):
    return map_from_base_at(stamp * 1e-9 - world.started)


def moved(pose, x=0.0, y=0.0, z=0.0, turn=0.0):
    """Give a pose moved, and turned about its z axis, in the axes of the map."""
    return perturb(torch.from_numpy(np.array(pose)),
                   torch.tensor([x, y, z, 0.0, 0.0, turn], dtype=torch.float64)).numpy()


def send_transform(world, parent_from_child, stamp, parent, child, change=None):
    transform = transform_stamped(parent_from_child, stamp_message(stamp), parent, child)
    if change is not None:
        change(transform)
    world.tf.publish(TFMessage(transforms=[transform]))


def send_and_wait(world, stamp, pixels):
    """Send one frame and wait until it was worked on or dropped."""
    handled = world.handled()
    world.send(stamp=stamp, pixels=pixels)
    world.wait_for(lambda: world.handled() > handled, 'the frame')


def drops(world, kind):
    return world.node.drops.counts().get(kind, 0)


def broadcasts(world):
    """Give what was heard of map -> odom so far."""
    return [matrix_from_transform(transform.transform) for transform in world.transforms]


def next_broadcast(world):
    """Wait for a transform that was sent from now on, and give it."""
    seen, sent = len(world.transforms), world.node.broadcaster.sent
    world.wait_for(lambda: world.node.broadcaster.sent > sent + 1, 'the broadcast to go on')
    world.wait_for(lambda: len(world.transforms) > seen + 1, 'transforms')
    return matrix_from_transform(world.transforms[-1].transform)


def check_stamps(world, sent):
    """Poses have stamps of images, each newer than the one before, and so have transforms."""
    assert set(world.pose_stamps) <= set(sent)
    for stamps in (world.pose_stamps, [stamp_ns(t.header) for t in world.transforms]):
        assert all(later > earlier for earlier, later in zip(stamps, stamps[1:]))


@contextmanager
def localized(tf_mode='map_to_odom', frames=3, **options):
    """Give a world whose robot knows where it is."""
    with World(tf_mode=tf_mode, **options) as world:
        world.connect()
        if world.refiner is not None:
            world.wait_for(lambda: world.client.count_subscribers('pose_with_covariance') == 2,
                           'the refiner')
        world.first = world.localize(odometry=tf_mode == 'map_to_odom', frames=frames)
        yield world


# Row 14: odometry is missing, late, or stops


def test_row_14_without_odometry_there_is_neither_pose_nor_transform_until_it_comes():
    with World(tf_mode='map_to_odom', **QUICK) as world:
        world.connect()
        world.drive(3)
        assert drops(world, 'tf_missing') == 3 and not world.backend.asked
        fault = world.wait_for(
            lambda: (d := world.diagnosis(': tf')) and d.level == DiagnosticStatus.ERROR and d,
            'an error in the diagnostics')
        assert 'odom to base_link' in fault.message
        assert 'map_to_base or map_to_camera' in fault.message
        world.wait_for(lambda: world.logged('image dropped (tf_missing)'), 'a warning')
        assert not world.poses and not world.transforms
        stamps = world.localize(odometry=True)
        assert error_of(world.poses[stamps[-1]], truth(world, stamps[-1])) < 0.1


def test_row_14_late_odometry_is_waited_for_while_the_executor_goes_on():
    with localized(wait_for_transform=5.0) as world:
        worker = world.node.worker
        stamp = world.send()
        world.wait_for(lambda: worker.busy_since, 'the frame to wait')
        received = world.node.input.received
        world.wait_for(lambda: world.send() and world.node.input.received > received,
                       'images to be taken meanwhile')
        assert worker.busy_since and stamp not in world.poses
        newest = world.send()
        world.send_odometry(newest, newest * 1e-9 - world.started)
        world.wait_for(lambda: stamp in world.poses, 'the pose of the frame that waited')
        # Interpolated at its stamp, between the odometry before it and after it.
        assert error_of(world.poses[stamp], truth(world, stamp)) < 0.1


def test_row_14_odometry_that_stops_holds_the_poses_back_and_the_transform_where_it_is():
    with localized(slew_linear=0.0, **QUICK) as world:
        before = world.tracker.map_from_odom
        missed = world.drive(4)
        assert drops(world, 'tf_future') == 4 and world.tracker.state is TrackerState.LOST
        assert np.array_equal(world.tracker.map_from_odom, before)
        np.testing.assert_allclose(next_broadcast(world), before, atol=1e-12)
        back = world.localize(odometry=True)
        assert not set(missed) & set(world.poses) and back[-1] in world.poses


# Row 15: base -> camera is missing, moves, or is none


def test_row_15_without_the_extrinsic_nothing_comes_out_and_the_command_is_named():
    with World(tf_mode='map_to_odom', **QUICK) as world:
        world.connect(static=False)
        world.drive(3, odometry=True)
        fault = world.wait_for(
            lambda: (d := world.diagnosis(': tf')) and d.level == DiagnosticStatus.ERROR and d,
            'an error in the diagnostics')
        assert 'ros2 run tf2_ros static_transform_publisher' in fault.message
        assert f'--frame-id base_link --child-frame-id {CAMERA_FRAME}' in fault.message
        assert 'no transform odom' not in fault.message
        assert not world.poses and not world.transforms and not world.raw
        world.send_static()
        world.wait_for(lambda: world.drive(1, odometry=True) and world.poses, 'poses')


def test_row_15_a_camera_that_turns_is_looked_up_at_the_stamp_of_the_image():
    def extrinsic(stamp):
        turn = np.eye(4)
        turn[:3, :3] = rotation_exp(np.array((0.0, 0.0, 3.0 * (stamp * 1e-9 - world.started))))
        return turn @ BASE_FROM_CAMERA

    with World(tf_mode='map_to_base', backend=FakeBackend(noise=0.0)) as world:
        world.connect(static=False)
        start = world.now_ns()
        for k in range(4):
            stamp = start + k * 50_000_000 + 25_000_000
            for at in (stamp - 25_000_000, stamp + 25_000_000):
                send_transform(world, extrinsic(at), at, 'base_link', CAMERA_FRAME)
            pixels = picture(truth(world, stamp) @ extrinsic(stamp), serial=k)
            send_and_wait(world, stamp, pixels)
            time.sleep(0.05)  # or the next stamp would lie in the future
        world.wait_for(lambda: len(world.poses) == 3, 'poses')
        for stamp, message in world.poses.items():
            metres, radians = distance(matrix_from_pose(message.pose), truth(world, stamp))
            assert metres < 0.02 and radians < 0.01  # the latest one is off by 0.07 rad


@pytest.mark.parametrize('values', [(0.0, 0.0, 0.0, 0.0), (math.nan, 0.0, 0.0, 1.0)])
def test_row_15_an_extrinsic_that_is_none_is_refused_and_the_former_one_stays(values):
    def spoil(transform):
        for axis, value in zip('xyzw', values):
            setattr(transform.transform.rotation, axis, value)

    with localized('map_to_base') as world:
        send_transform(world, np.eye(4), world.now_ns(), 'base_link', CAMERA_FRAME, spoil)
        world.wait_for(lambda: world.node.listener.rejected[CAMERA_FRAME], 'a refusal')
        world.wait_for(lambda: world.logged(CAMERA_FRAME) and world.logged('ignored'), 'a line')
        stamp, = world.drive(1)
        world.wait_for(lambda: stamp in world.poses, 'a pose')
        assert error_of(world.poses[stamp], truth(world, stamp)) < 0.1


# Row 16: odometry jumps


def test_row_16_odometry_that_slips_by_decimetres_is_overruled_within_three_fixes():
    with localized(max_speed=100.0) as world:  # or it would be no slip but a jump
        epoch = world.tracker.epoch
        world.map_from_odom = moved(MAP_FROM_ODOM, x=0.35)
        stamps = world.drive(3, odometry=True)
        world.wait_for(lambda: stamps[-1] in world.poses, 'a pose')
        assert not set(stamps[:2]) & set(world.poses), 'they contradict the odometry'
        assert error_of(world.poses[stamps[-1]], truth(world, stamps[-1])) < 0.1
        assert world.tracker.counts['relocalized'] == 1 and world.tracker.epoch == epoch
        world.wait_for(lambda: world.logged('relocalized: the robot jumps'), 'an event')
        assert 0.25 < world.node.health._last_jump[0] < 0.45


def test_row_16_odometry_that_jumps_by_metres_ends_the_epoch_and_the_transform_at_once():
    with localized() as world:
        epoch, before = world.tracker.epoch, next_broadcast(world)
        world.map_from_odom = moved(MAP_FROM_ODOM, x=20.0, turn=1.0)  # reset to another origin
        first, = world.drive(1, odometry=True)
        world.wait_for(lambda: world.logged('odometry jumped'), 'a warning')
        assert world.tracker.epoch == epoch + 1 and first not in world.poses
        assert world.tracker.state is TrackerState.UNLOCALIZED
        sent = world.node.broadcaster.sent
        time.sleep(0.15)  # three periods in which the old transform is not sent
        assert world.node.broadcaster.sent == sent
        second, = world.drive(1, odometry=True)
        world.wait_for(lambda: second in world.poses, 'a pose')
        assert error_of(world.poses[second], truth(world, second)) < 0.1
        world.wait_for(lambda: world.node.broadcaster.sent > sent, 'the broadcast to go on')
        after = next_broadcast(world)
        assert np.abs(after - world.map_from_odom).max() < 0.5
        for sent in broadcasts(world):  # it does not glide through places where it never was
            assert min(np.abs(sent - before).max(), np.abs(sent - after).max()) < 0.3
        assert world.node.health.jumps == 0, 'odometry jumped, not the robot in the map'


def test_row_16_a_localizer_that_fails_at_that_very_frame_hides_no_jump():
    with localized() as world:
        epoch = world.tracker.epoch
        world.map_from_odom = moved(MAP_FROM_ODOM, x=20.0)
        world.drive(1, behaviour=Behaviour.RAISE, odometry=True)
        world.wait_for(lambda: world.logged('odometry jumped'), 'a warning')
        assert world.tracker.epoch == epoch + 1


# Row 17: somebody else publishes our transform


def test_row_17_another_publisher_of_map_to_odom_is_an_error_and_ours_goes_on():
    with localized() as world:
        assert world.wait_for(lambda: world.diagnosis(': tf')).level == DiagnosticStatus.OK
        send_transform(world, np.eye(4), world.now_ns(), 'map', 'odom')
        fault = world.wait_for(
            lambda: (d := world.diagnosis(': tf')) and d.level == DiagnosticStatus.ERROR and d,
            'an error')
        assert 'map -> odom' in fault.message and 'tf_mode none' in fault.message
        next_broadcast(world)
        assert world.localize(odometry=True)[-1] in world.poses


def test_row_17_a_second_parent_of_the_base_is_an_error_even_before_the_first_pose():
    with World(tf_mode='map_to_base', **QUICK) as world:
        world.connect()
        now = world.now_ns()
        world.send_odometry(now, 0.0)
        fault = world.wait_for(
            lambda: (d := world.diagnosis(': tf')) and d.level == DiagnosticStatus.ERROR and d,
            'an error')
        assert 'odom -> base_link' in fault.message and not world.poses


@pytest.mark.parametrize('options', [{'tf_mode': 'none'}, {'tf_broadcast': False}])
def test_row_17_who_broadcasts_nothing_takes_nobody_for_a_rival(options):
    with localized(**{'tf_mode': 'map_to_odom', **options}) as world:
        stamp = world.now_ns()
        send_transform(world, MAP_FROM_ODOM, stamp, 'map', 'odom')
        send_transform(world, np.eye(4), stamp, 'odom', 'marker')
        listener, count = world.node.listener, len(world.diagnostics)
        world.wait_for(lambda: listener.latest('map', 'marker'), 'the transforms to be heard')
        world.wait_for(lambda: len(world.diagnostics) > count + 1, 'diagnostics since')
        assert 'others send' not in world.diagnosis(': tf').message


# Row 18: confident and wrong


def test_row_18_a_wrong_fix_is_gated_and_the_next_good_one_goes_on():
    with localized() as world:
        wrong, = world.drive(1, behaviour=Behaviour.WRONG, odometry=True)
        good, = world.drive(1, odometry=True)
        world.wait_for(lambda: good in world.poses, 'a pose')
        assert wrong not in world.poses and wrong in world.raw
        assert error_of(world.poses[good], truth(world, good)) < 0.1
        assert world.tracker.counts['gated'] == 1


def test_row_18_only_wrong_fixes_that_agree_three_times_win_and_say_so_once():
    with localized() as world:
        wrong = world.drive(3, behaviour=Behaviour.WRONG, odometry=True)
        world.wait_for(lambda: wrong[-1] in world.poses, 'a pose')
        assert not set(wrong[:2]) & set(world.poses)
        assert abs(error_of(world.poses[wrong[-1]], truth(world, wrong[-1])) - 3.0) < 0.2
        world.wait_for(lambda: world.logged('relocalized: the robot jumps'), 'an event')
        np.testing.assert_allclose(
            next_broadcast(world), moved(MAP_FROM_ODOM, x=3.0), atol=0.2)
        assert world.node.health.jumps == 1, 'pose and transform jump together: one event'
        assert abs(world.node.health._last_jump[0] - 3.0) < 0.2


def test_row_18_wrong_fixes_that_disagree_never_win():
    with localized(lost_after_failures=100) as world:
        stamps = []
        for k in range(6):
            place = moved(truth(world, world.now_ns()), x=3.0 + 2 * k, y=-k)
            stamps += world.drive(1, pixels=picture(place @ BASE_FROM_CAMERA, serial=k),
                                  odometry=True)
        good, = world.drive(1, odometry=True)
        world.wait_for(lambda: good in world.poses, 'a pose')
        assert not set(stamps) & set(world.poses)
        assert world.tracker.counts['relocalized'] == 0


# Row 19: what a degenerate solve may give (its own tests are in test_absolute_pose.py)


@pytest.mark.parametrize('behaviour', [Behaviour.NAN, Behaviour.DEGENERATE, Behaviour.NO_POSE])
@pytest.mark.parametrize('tf_mode', ['map_to_odom', 'map_to_base'])
def test_row_19_an_estimate_that_is_none_is_counted_and_never_published(behaviour, tf_mode):
    with localized(tf_mode) as world:
        odometry = tf_mode == 'map_to_odom'
        bad = world.drive(2, behaviour=behaviour, odometry=odometry)
        assert world.tracker.state is TrackerState.COASTING
        key = 'failed' if behaviour == Behaviour.NO_POSE else 'invalid'
        assert world.tracker.counts[key] == 2
        good, = world.drive(1, odometry=odometry)
        world.wait_for(lambda: good in world.poses and good in world.raw, 'a pose')
        assert not set(bad) & {*world.poses, *world.raw, *world.covariances}
        for message in [*world.raw.values(), *world.covariances.values()]:
            assert np.isfinite(message.pose.covariance).all()
            assert np.linalg.eigvalsh(message.pose.covariance.reshape(6, 6)).min() > 0
        assert all(np.isfinite(transform).all() for transform in broadcasts(world))
        world.wait_for(lambda: world.status('verdict') == 'accepted', 'the status')


# Row 25: the refiner is absent, dies, hangs, is slow


@contextmanager
def without_injection(world):
    """Take the test's own publisher of refined poses away, so that only a refiner has one."""
    world.client.destroy_publisher(world.refined_poses)
    yield world


def test_row_25_without_a_refiner_poses_come_and_the_diagnostics_warn():
    with localized() as world, without_injection(world):
        warning = world.wait_for(
            lambda: (d := world.diagnosis(': refiner')) and 'no refiner runs' in d.message and d,
            'a warning')
        assert warning.level == DiagnosticStatus.WARN
        stamps = world.drive(5, odometry=True)
        world.wait_for(lambda: set(stamps) <= set(world.poses), 'a pose for every frame')


def test_row_25_a_refiner_that_is_killed_and_returns_needs_no_new_beginning():
    with localized(refiner=True) as world, without_injection(world):
        counts = world.tracker.counts
        stamps = world.drive(4, odometry=True)
        world.wait_for(lambda: counts['refined_accepted'] >= 2, 'refined poses')
        epoch = world.tracker.epoch
        world._spinners.pop().stop()
        world.refiner.close()
        stamps += world.drive(4, odometry=True)
        world.wait_for(
            lambda: (d := world.diagnosis(': refiner')) and 'no refiner runs' in d.message,
            'a warning')
        accepted = counts['refined_accepted']
        world.refiner = world.make_refiner(tf_mode='map_to_odom')
        world._spinners.append(Spinner(world.context, world.refiner))

        def drive_until_refined():
            world.send_info()
            stamps.extend(world.drive(1, odometry=True))
            return counts['refined_accepted'] > accepted + 2

        world.wait_for(drive_until_refined, 'refined poses of the new refiner')
        world.wait_for(lambda: set(stamps) <= set(world.poses), 'a pose for every frame')
        world.wait_for(lambda: world.diagnosis(': refiner').level == DiagnosticStatus.OK, 'peace')
        assert world.tracker.epoch == epoch
        check_stamps(world, world.first + stamps)


def test_row_25_a_refiner_that_hangs_holds_nothing_up_and_goes_on_with_the_newest():
    with localized(refiner=True) as world:
        world.wait_for(lambda: world.drive(1, odometry=True) and (
            world.tracker.counts['refined_accepted'] > 0), 'refined poses')
        world.refiner_backend.refine_hold.clear()
        begun = len(world.refiner_backend.refined)
        world.wait_for(lambda: world.drive(1, odometry=True) and (
            len(world.refiner_backend.refined) > begun), 'a refinement that hangs')
        accepted = world.tracker.counts['refined_accepted']
        stamps = world.drive(8, odometry=True)
        world.wait_for(lambda: set(stamps) <= set(world.poses), 'a pose for every frame')
        assert world.tracker.counts['refined_accepted'] == accepted
        slot = world.refiner._worker.slot
        world.wait_for(lambda: slot.waiting() is not None
                       and slot.waiting().start.stamp_ns == stamps[-1], 'the newest to wait')
        world.refiner_backend.refine_hold.set()
        world.wait_for(lambda: stamps[-1] in world.refined, 'the newest to be refined')
        # The one it hung in, the newest, nothing between.
        assert not set(stamps[:-1]) & set(world.refined)


def test_row_25_in_one_process_and_executor_a_refiner_that_hangs_holds_nothing_up_either():
    with localized(refiner=True) as world:
        world._spinners.pop().stop()
        world._spinners[0].executor.add_node(world.refiner)
        world.refiner_backend.refine_hold.clear()
        begun = len(world.refiner_backend.refined)
        world.wait_for(lambda: world.drive(1, odometry=True) and (
            len(world.refiner_backend.refined) > begun), 'a refinement that hangs')
        stamps = world.drive(5, odometry=True)
        world.wait_for(lambda: set(stamps) <= set(world.poses), 'a pose for every frame')
        world.refiner_backend.refine_hold.set()
        world.wait_for(lambda: stamps[-1] in world.refined, 'the newest to be refined')


def test_row_25_a_refinement_that_comes_too_late_is_given_up():
    with localized(refiner=True, refiner_parameters={'refine.max_age': 0.1}) as world:
        world.refiner_backend.refine_delay = 0.2
        known = world.refiner.drops.counts().get('too_old', 0)
        stamps = world.drive(3, odometry=True)
        world.wait_for(lambda: world.refiner.drops.counts().get('too_old', 0) > known, 'a drop')
        world.wait_for(lambda: set(stamps) <= set(world.poses), 'poses')
        assert not set(stamps) & set(world.refined)


def test_row_25_the_stream_has_no_gap_while_refinement_stops_and_returns():
    with localized(refiner=True) as world:
        stamps, accepted = [], [0]

        def drive_until_refined():
            stamps.extend(world.drive(1, odometry=True))
            return world.tracker.counts['refined_accepted'] > accepted[-1]

        for enabled in (True, False, True):
            world.refiner.set_parameters([Parameter('refine.enabled', value=enabled)])
            stamps += world.drive(4, odometry=True)
            if enabled:
                world.wait_for(drive_until_refined, 'refined poses')
            else:
                world.wait_for(lambda: not len(world.refiner._ring), 'images to be forgotten')
            accepted.append(world.tracker.counts['refined_accepted'])
        world.wait_for(lambda: set(stamps) <= set(world.poses), 'a pose for every frame')
        check_stamps(world, world.first + stamps)


# Row 26: refined poses that must change nothing


@pytest.fixture(scope='class')
def fed():
    """A localized robot whose corrections show at once on /tf; poses are sent to it as refined."""
    with localized(
            slew_linear=0.0, lost_timeout=0.0, backend=FakeBackend(noise=0.01)) as world:
        yield world


def send_refined(world, stamp, pose=None, sigma=0.001, frame='map', change=None):
    pose = truth(world, stamp) if pose is None else pose
    message = pose_with_covariance(
        pose, np.eye(6) * sigma ** 2, stamp_message(stamp), frame)
    if change is not None:
        change(message)
    world.refined_poses.publish(message)


def refined_counts(world):
    status = world.diagnosis(': refiner')
    return {} if status is None else {
        item.key: int(item.value) for item in status.values if item.key.startswith('refined ')}


def set_field(path, value):
    def change(message):
        *parents, name = path.split('.')
        for parent in parents:
            message = getattr(message, parent)
        setattr(message, name, value)
    return change


def set_covariance(index, value):
    def change(message):
        message.pose.covariance[index] = value
    return change


class TestRefinedPosesThatDoNotFit:
    @pytest.mark.parametrize(('verdict', 'stamp', 'options'), [
        ('refined_unknown_frame', +1, {}),
        ('refined_unknown_frame', -10 ** 12, {}),
        ('refined_worse', 0, {'sigma': 0.5}),
        ('refined_wrong_frame', 0, {'frame': 'odom'}),
        ('refined_wrong_frame', 0, {'frame': ''}),
        ('refined_gated', 0, {'pose': moved(np.eye(4), x=30.0)}),
        ('refined_invalid', 0, {'change': set_field('pose.pose.position.x', math.nan)}),
        ('refined_invalid', 0, {'change': set_field('pose.pose.orientation.w', math.inf)}),
        ('refined_invalid', 0, {'change': set_field('pose.pose.orientation.w', 4.0)}),
        ('refined_invalid', 0, {'change': set_covariance(0, -1.0)}),
        ('refined_invalid', 0, {'change': set_covariance(7, 0.0)}),
        ('refined_invalid', 0, {'change': set_covariance(35, math.nan)}),
    ])
    def test_row_26_a_refined_pose_that_does_not_fit_changes_no_bit(
            self, fed, verdict, stamp, options):
        before, sent = fed.tracker.map_from_odom.tobytes(), next_broadcast(fed).tobytes()
        known, state = fed.node.health._refined[verdict], fed.tracker.state
        send_refined(fed, fed.first[-1] + stamp, **options)
        fed.wait_for(lambda: fed.node.health._refined[verdict] > known, verdict)
        assert fed.tracker.map_from_odom.tobytes() == before and fed.tracker.state is state
        assert next_broadcast(fed).tobytes() == sent

    def test_row_26_the_reasons_are_counted_in_the_diagnostics(self, fed):
        send_refined(fed, 1)
        fed.wait_for(lambda: refined_counts(fed).get('refined refined_unknown_frame'), 'the count')
        assert set(refined_counts(fed)) == {
            f'refined {verdict}' for verdict in fed.node.health._refined}


def test_row_26_a_good_refined_pose_does_change_map_from_odom():
    with localized(slew_linear=0.0, backend=FakeBackend(noise=0.01)) as world:
        before = next_broadcast(world)
        send_refined(world, world.first[-1])
        world.wait_for(lambda: world.tracker.counts['refined_accepted'] == 1, 'acceptance')
        after = next_broadcast(world)
        assert not np.array_equal(before, after)
        assert np.abs(after - MAP_FROM_ODOM).max() < 0.01


def test_row_26_an_older_epoch_is_unknown():
    with localized() as world:
        world.node.reset('test')
        stamps = world.localize(odometry=True)
        before = world.tracker.map_from_odom.tobytes()
        send_refined(world, world.first[-1])
        world.wait_for(lambda: world.tracker.counts['refined_unknown_frame'], 'a refusal')
        assert world.tracker.map_from_odom.tobytes() == before
        send_refined(world, stamps[-1])
        world.wait_for(lambda: world.tracker.counts['refined_accepted'], 'the new epoch')


def test_row_26_a_refined_pose_from_before_a_change_of_the_map_is_unknown():
    with localized() as world:
        client = world.client.create_client(Trigger, 'nerfmatch_localizer/load_map')
        world.wait_for(client.service_is_ready, 'the service')
        answer = client.call_async(Trigger.Request())
        world.wait_for(answer.done, 'the new map')
        assert answer.result().success, answer.result().message
        stamps = world.localize(odometry=True)
        before = world.tracker.map_from_odom.tobytes()
        send_refined(world, world.first[-1])
        world.wait_for(lambda: world.tracker.counts['refined_unknown_frame'], 'a refusal')
        assert world.tracker.map_from_odom.tobytes() == before and stamps[-1] in world.poses


def test_row_26_a_refiner_with_another_map_refines_nothing():
    with World(tf_mode='map_to_odom', refiner=True) as world:
        world.refiner_backend.map_sha256 = 'bb' * 32
        world.connect()
        world.wait_for(lambda: world.refiner._map_of_localizer, 'the map of the localizer')
        world.wait_for(lambda: world.drive(1, odometry=True) and (
            world.refiner.drops.counts().get('other_map', 0) >= 2), 'refusals')
        assert not world.refined and not world.refiner_backend.refined
        world.wait_for(lambda: world.logged('give both the same map_path'), 'a warning')
        world.wait_for(lambda: any(
            status.level == DiagnosticStatus.WARN and 'give both' in status.message
            for message in list(world.diagnostics) for status in message.status
            if status.name == 'nerfmatch_refiner: refinement'), 'the diagnostics')


# Row 40: carried away while lost


@pytest.mark.parametrize('lost', [False, True])
def test_row_40_a_robot_that_was_carried_off_resumes_with_a_measurement_and_one_event(lost):
    failures = 4 if lost else 100
    # The drive goes faster than the stamps.
    with localized(lost_after_failures=failures, max_speed=1e3, max_turn_rate=1e3) as world:
        spreads, start = [], world.now_ns() * 1e-9 - world.started
        for k in range(4):
            covariance = world.tracker.predict(
                world.now_ns(), inverse(MAP_FROM_ODOM) @ map_from_base_at(start + 0.8 * k))[1]
            spreads.append(np.trace(covariance[:3, :3]))
            world.drive(1, at=start + 0.8 * k, odometry=True, behaviour=Behaviour.NO_POSE)
        # Odometry is off by 2 % of 0.4 m more each time.
        assert all(np.diff(spreads) > 0.8 * 0.008 ** 2)
        assert world.tracker.state is (TrackerState.LOST if lost else TrackerState.COASTING)
        known, jumps = len(world.poses), world.node.health.jumps
        # Carried 1.5 m while its wheels stood still.
        world.map_from_odom = moved(MAP_FROM_ODOM, y=1.5)
        at = start + 2.4
        carried = moved(map_from_base_at(at), y=1.5)
        found = []
        for k in range(3):
            stamp = world.now_ns()
            odom_from_base = inverse(MAP_FROM_ODOM) @ map_from_base_at(at)
            send_transform(world, odom_from_base, stamp, 'odom', 'base_link')
            pixels = picture(carried @ BASE_FROM_CAMERA, serial=500 + k)
            send_and_wait(world, stamp, pixels)
            found.append(stamp)
        world.wait_for(lambda: found[-1] in world.poses, 'a pose')
        assert len(world.poses) == known + (2 if lost else 1)
        assert error_of(world.poses[found[-1]], carried) < 0.1
        assert world.node.health.jumps == jumps + 1
        np.testing.assert_allclose(next_broadcast(world), world.map_from_odom, atol=0.1)
        assert world.node.health.jumps == jumps + 1, 'one event for pose and transform'


# Motion, and what leaves the node


def test_a_turning_robot_and_a_slow_localizer_leave_map_to_odom_where_it_is():
    """1 rad/s, 0.5 m/s and 150 ms: with the latest odometry it is off by 8 cm and 9 degrees."""
    def pose_at(stamp):
        angle = stamp * 1e-9 - world.started
        pose = moved(np.eye(4), turn=angle)
        pose[:3, 3] = 0.5 * math.sin(angle), 0.5 - 0.5 * math.cos(angle), 0.0
        return pose

    def publish_odometry():
        while not over.wait(0.02):
            stamp = world.now_ns()
            send_transform(world, inverse(MAP_FROM_ODOM) @ pose_at(stamp), stamp,
                           'odom', 'base_link')

    over = threading.Event()
    backend = FakeBackend(noise=0.0, delay=0.15)
    with World(tf_mode='map_to_odom', backend=backend, max_image_age=0.0) as world:
        world.connect()
        odometry = threading.Thread(target=publish_odometry)
        odometry.start()
        try:
            world.wait_for(lambda: world.node.listener.latest('odom', 'base_link'), 'odometry')
            for k in range(7):
                stamp = time.time_ns()
                send_and_wait(world, stamp, picture(
                    pose_at(stamp) @ BASE_FROM_CAMERA, serial=k))
                goal = world.tracker.map_from_odom
                if k:
                    metres, radians = distance(goal, MAP_FROM_ODOM)
                    assert metres < 0.01 and math.degrees(radians) < 0.2
            world.wait_for(lambda: len(world.poses) == 6, 'poses')
        finally:
            over.set()
            odometry.join()
        for stamp, message in world.poses.items():
            metres, radians = distance(matrix_from_pose(message.pose), pose_at(stamp))
            assert metres < 0.01 and math.degrees(radians) < 0.2
        for sent in broadcasts(world):
            metres, radians = distance(sent, MAP_FROM_ODOM)
            assert metres < 0.01 and math.degrees(radians) < 0.2


@pytest.mark.parametrize('outside', ['no pose', 'wrong poses'])
@pytest.mark.parametrize('tf_mode', ['map_to_odom', 'map_to_camera'])
def test_a_robot_that_leaves_the_map_is_lost_and_back_in_two_frames(outside, tf_mode):
    random = np.random.default_rng(3)
    options = {'odometry': tf_mode == 'map_to_odom'}

    def elsewhere(k):
        if outside == 'no pose':  # nothing of the map in it
            return random.integers(0, 255, (48, 64, 3), dtype=np.uint8)
        place = moved(truth(world, world.now_ns()), *random.uniform(5, 100, 3),
                      turn=random.uniform(-3, 3))
        return picture(place @ BASE_FROM_CAMERA, serial=k)

    with localized(tf_mode) as world:
        unknown = [world.drive(1, pixels=elsewhere(k), **options)[0] for k in range(7)]
        assert world.tracker.state is TrackerState.LOST
        world.wait_for(lambda: world.status('state') == 'LOST', 'the status')
        back = world.drive(2, **options)
        world.wait_for(lambda: back[-1] in world.poses, 'a pose')
        assert not {*unknown, back[0]} & set(world.poses)
        assert error_of(world.poses[back[-1]], truth(world, back[-1]) @ (
            BASE_FROM_CAMERA if tf_mode == 'map_to_camera' else np.eye(4))) < 0.1
        check_stamps(world, world.first + unknown + back)


def test_stamps_of_poses_are_those_of_images_rise_and_none_comes_before_the_first_fix():
    with World(tf_mode='map_to_camera', lost_after_failures=2) as world:
        world.connect(static=False)
        sent = world.drive(2, behaviour=Behaviour.NO_POSE) + world.drive(1)
        assert not world.pose_stamps
        random = np.random.default_rng(11)
        behaviours = [Behaviour.GOOD, Behaviour.NO_POSE, Behaviour.WRONG, Behaviour.NAN,
                      Behaviour.RAISE, Behaviour.DEGENERATE]
        for k in range(30):
            behaviour = random.choice(behaviours, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
            stamp = None
            if k % 5 == 4:  # overtaken on the way
                stamp = sent[-1] - int(random.integers(1, 20_000_000))
            sent += world.drive(1, behaviour=Behaviour(behaviour), stamp=stamp)
        last = world.localize()
        assert len(world.pose_stamps) > 5 and world.pose_stamps[-1] == last[-1]
        check_stamps(world, sent + last)


def test_two_namespaces_side_by_side_do_not_hear_each_other():
    def world_of(name, place):
        world = World(namespace=name, tf_mode='map_to_odom', refiner=True,
                      arguments=['-r', '/tf:=tf', '-r', '/tf_static:=tf_static'])
        world.map_from_odom = moved(MAP_FROM_ODOM, x=place)
        return world

    with world_of('alpha', 0.0) as alpha, world_of('beta', 7.0) as beta:
        for world in (alpha, beta):
            world.connect()
            world.wait_for(lambda w=world: w.client.count_subscribers('pose_with_covariance') == 2,
                           'the refiner')
        sent = {world: world.drive(6, odometry=True) for world in (alpha, beta)}
        for world, stamps in sent.items():
            world.wait_for(lambda w=world, last=stamps[-1]: last in w.poses, 'poses')
            world.wait_for(lambda w=world: w.refined and w.transforms, 'the rest')
            assert {*world.poses, *world.refined} <= set(stamps)
            assert world.node.input.received == 6
            assert np.abs(broadcasts(world)[-1] - world.map_from_odom).max() < 0.3
            assert not world.node.foreign.count
            assert not world.logged('nodes are named')
            assert world.tracker.counts['refined_unknown_frame'] == 0
        client = beta.client
        for node in ('nerfmatch_localizer', 'nerfmatch_refiner'):
            names = [name for find in (client.get_publisher_names_and_types_by_node,
                                       client.get_subscriber_names_and_types_by_node,
                                       client.get_service_names_and_types_by_node)
                     for name, _ in find(node, '/alpha')]
            elsewhere = {name for name in names if not name.startswith('/alpha/')}
            assert len(names) > 10
            assert elsewhere <= {'/diagnostics', '/rosout', '/parameter_events'}


def test_covariance_diagonal_only_leaves_nothing_beside_the_diagonal():
    def beside(message):
        covariance = np.array(message.pose.covariance).reshape(6, 6)
        assert (covariance.diagonal() > 0).all()
        return np.abs(covariance - np.diag(covariance.diagonal())).max()

    with localized(refiner=True, refiner_parameters={'covariance_diagonal_only': True}) as world:
        assert beside(world.covariances[world.first[-1]]) > 0, 'the lever of the camera'
        assert world.node.set_parameters([
            Parameter('covariance_diagonal_only', value=True)])[0].successful
        stamps = world.drive(3, odometry=True)
        world.wait_for(lambda: set(stamps) <= set(world.covariances) & set(world.raw), 'poses')
        world.wait_for(lambda: world.refined, 'a refined pose')
        checked = [*(world.covariances[stamp] for stamp in stamps),
                   *(world.raw[stamp] for stamp in stamps), *world.refined.values()]
        assert all(beside(message) == 0 for message in checked)


def test_two_d_mode_keeps_every_pose_on_the_floor_whatever_cameras_and_odometry_say():
    with World(tf_mode='map_to_odom', two_d_mode=True, refiner=True,
               backend=FakeBackend(noise=0.03)) as world:
        world.connect()
        world.wait_for(lambda: world.client.count_subscribers('pose_with_covariance') == 2,
                       'the refiner')
        stamps = []
        for k in range(9):  # odometry drifts upwards and leans over
            world.map_from_odom = perturb(
                torch.from_numpy(MAP_FROM_ODOM),
                k * torch.tensor([0.0, 0.0, 0.05, 0.02, 0.01, 0.0], dtype=torch.float64)).numpy()
            stamps += world.drive(1, odometry=True)
        world.wait_for(lambda: world.tracker.counts['refined_accepted'] >= 2, 'refined poses')
        stamps += world.localize(odometry=True)
        world.wait_for(lambda: set(stamps[1:]) <= set(world.covariances) & set(world.raw), 'poses')
        assert all(message.pose.pose.position.z == 0 for message in world.raw.values())
        for stamp, message in world.covariances.items():
            pose = matrix_from_pose(message.pose.pose)
            assert abs(pose[2, 3]) < 1e-9 and np.abs(pose[2, :3] - (0, 0, 1)).max() < 1e-9
            assert error_of(message, truth(world, stamp)) < 0.15
            assert np.linalg.eigvalsh(message.pose.covariance.reshape(6, 6)).min() > 0
