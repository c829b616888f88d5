"""What is believed, when it is doubted, and what may be published."""

from dataclasses import replace
import pickle
import zlib

from drive import Drive, drive, error, map_from_odom, planar, SECOND
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.localization.pose_history import Fix, HistoryOptions
from nerfmatch_ros.localization.pose_tracker import PoseTracker, TrackerOptions, TrackerState
from nerfmatch_ros.localization.rigid_motion import perturb
import numpy as np
import pytest

UNLOCALIZED, LOCALIZED = TrackerState.UNLOCALIZED, TrackerState.LOCALIZED
COASTING, LOST = TrackerState.COASTING, TrackerState.LOST
FAR = (3.0, -2.0, 0.0, 0.0, 0.0, 0.5)
FARTHER = (-4.0, 5.0, 0.0, 0.0, 0.0, -1.0)


@pytest.fixture
def rng(request):
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def outcomes(tracker, fixes):
    return [tracker.add_fix(fix) for fix in fixes]


def verdicts(tracker, fixes):
    return [outcome.verdict for outcome in outcomes(tracker, fixes)]


def localized(path, count=10, options=None):
    """Make a tracker that has taken the first `count` fixes."""
    tracker = PoseTracker(options)
    assert verdicts(tracker, path.fixes[:count]) == ['pending'] + (count - 1) * ['accepted']
    assert tracker.state is LOCALIZED
    return tracker


def lose(tracker, stamps):
    for stamp in stamps:
        tracker.add_failure(stamp)
    assert tracker.state is LOST


def moved_world(path, k, delta):
    """The drive with its truth and fixes from k on moved by delta: a kidnapped robot."""
    shift = perturb(np.eye(4), np.array(delta, float))
    truth = [pose if i < k else shift @ pose for i, pose in enumerate(path.truth)]
    fixes = [fix if i < k else replace(fix, map_from_base=shift @ fix.map_from_base)
             for i, fix in enumerate(path.fixes)]
    return Drive(path.stamps, truth, path.odometry, fixes)


# Start


@pytest.mark.parametrize('needed', (1, 2, 4))
@pytest.mark.parametrize('odometry', (True, False))
def test_nothing_is_given_out_before_fixes_agree(rng, needed, odometry):
    path = drive(rng, 6, odometry=odometry)
    tracker = PoseTracker(TrackerOptions(init_consistent_fixes=needed))
    results = outcomes(tracker, path.fixes)
    assert [result.verdict for result in results] == (
        (needed - 1) * ['pending'] + (7 - needed) * ['accepted'])
    assert [result.pose is None for result in results] == (
        (needed - 1) * [True] + (7 - needed) * [False])
    assert all(result.jump is None for result in results)
    assert (tracker.counts['pending'], tracker.counts['accepted']) == (needed - 1, 7 - needed)
    last = results[-1].pose
    assert error(last.map_from_base, path.truth[-1]) < 0.15
    assert (last.map_from_odom is None) != odometry
    if odometry:
        np.testing.assert_allclose(
            last.map_from_odom @ path.odometry[-1], last.map_from_base, atol=1e-12)
        np.testing.assert_array_equal(last.map_from_odom, tracker.map_from_odom)


def test_first_wrong_fix_cannot_make_every_good_one_an_outlier(rng):
    path = drive(rng, 6)
    tracker = PoseTracker()
    assert verdicts(tracker, [path.moved(0, FAR), *path.fixes[1:]]) == [
        'pending', 'pending', 'accepted', 'accepted', 'accepted', 'accepted']
    assert error(tracker.predict(path.stamps[-1], path.odometry[-1])[0], path.truth[-1]) < 0.1


def test_wrong_fixes_that_disagree_are_never_believed(rng):
    path = drive(rng, 8)
    wrong = [path.moved(k, rng.uniform(1, 4, 6) * rng.choice((-1, 1), 6)) for k in range(8)]
    tracker = PoseTracker()
    assert verdicts(tracker, wrong) == 8 * ['pending']
    assert tracker.state is UNLOCALIZED
    assert tracker.predict(path.stamps[-1], path.odometry[-1]) is None
    assert tracker.map_from_odom is None


def test_agreement_is_of_the_newest_fixes_in_a_row(rng):
    path = drive(rng, 6)
    tracker = PoseTracker(TrackerOptions(init_consistent_fixes=3))
    path.fixes[2] = path.moved(2, FAR)
    assert verdicts(tracker, path.fixes) == 5 * ['pending'] + ['accepted']


def test_fix_so_vague_that_it_agrees_with_all_bridges_no_contradiction(rng):
    path = drive(rng, 5)
    vague = replace(path.fixes[0], covariance=1e6 * path.fixes[0].covariance)
    tracker = PoseTracker(TrackerOptions(init_consistent_fixes=3))
    assert verdicts(tracker, [vague, path.moved(1, FAR), *path.fixes[2:]]) == (
        4 * ['pending'] + ['accepted'])


def test_the_same_image_does_not_agree_with_itself(rng):
    path = drive(rng, 2)
    tracker = PoseTracker()
    assert verdicts(tracker, [path.fixes[0]] * 3) == ['pending', 'stale', 'stale']
    assert tracker.state is UNLOCALIZED


def test_fix_that_agrees_with_the_prior_needs_no_second_one(rng):
    path = drive(rng, 12)
    tracker = PoseTracker()
    near = perturb(path.truth[0], np.array((0.3, -0.2, 0.1, 0, 0, 0.1)))
    tracker.set_prior(near, np.zeros((6, 6)), source='initialpose')
    assert tracker.state is UNLOCALIZED
    # The robot has driven on since: the prior follows by odometry.
    first = tracker.predict(path.stamps[0], path.odometry[0])
    np.testing.assert_array_equal(first[0], near)
    later, covariance = tracker.predict(path.stamps[10], path.odometry[10])
    np.testing.assert_allclose(
        later, map_from_odom(near, path.odometry[0]) @ path.odometry[10], atol=1e-12)
    assert np.trace(covariance) > np.trace(first[1])
    outcome = tracker.add_fix(path.fixes[10])
    assert (outcome.verdict, tracker.state) == ('accepted', LOCALIZED)
    np.testing.assert_array_equal(outcome.pose.map_from_base, path.fixes[10].map_from_base)


def test_prior_of_the_start_confirms_nothing_after_lost(rng):
    path = drive(rng, 12)
    tracker = PoseTracker()
    tracker.set_prior(path.truth[0], np.zeros((6, 6)), source='initialpose')
    assert verdicts(tracker, path.fixes[:5]) == 5 * ['accepted']
    lose(tracker, path.stamps[5:8])
    assert verdicts(tracker, path.fixes[8:10]) == ['pending', 'accepted']


def test_prior_without_odometry_stays_where_it_was_put(rng):
    path = drive(rng, 3, odometry=False)
    tracker = PoseTracker()
    tracker.set_prior(path.truth[0], np.zeros((6, 6)), source='initialpose')
    pose, covariance = tracker.predict(path.stamps[0] + 100 * SECOND, None)
    np.testing.assert_array_equal(pose, path.truth[0])
    np.testing.assert_allclose(np.sqrt(covariance[0, 0]), 0.5)
    assert verdicts(tracker, [path.moved(0, FAR), path.fixes[1]]) == ['pending', 'accepted']


def test_fault_31_prior_is_never_trusted_blindly(rng):
    """Fixes that contradict it have to agree with one another, and then win; it gives no pose."""
    path = drive(rng, 5)
    for covariance in (np.zeros((6, 6)), 1e-6 * np.eye(6)):
        tracker = PoseTracker()
        wrong = perturb(path.truth[0], np.array(FAR))
        tracker.set_prior(wrong, covariance, source='initialpose')
        assert tracker.map_from_odom is None
        assert verdicts(tracker, path.fixes[:2]) == ['pending', 'accepted']
        pose, _ = tracker.predict(path.stamps[1], path.odometry[1])
        assert error(pose, path.truth[1]) < 0.2


def test_fault_31_prior_of_the_whole_map_confirms_no_single_fix(rng):
    path = drive(rng, 3)
    tracker = PoseTracker()
    tracker.set_prior(path.truth[0], np.diag(6 * [1e4]), source='initialpose')
    assert tracker.predict(path.stamps[0], path.odometry[0]) is not None
    assert verdicts(tracker, [path.moved(0, FAR), path.fixes[1], path.fixes[2]]) == [
        'pending', 'pending', 'accepted']


@pytest.mark.parametrize('pose, covariance, cause', (
    (np.full((4, 4), np.nan), np.eye(6), 'rigid'),
    (np.diag((0.0, 0, 0, 1)), np.eye(6), 'rigid'),  # what a zero quaternion gives
    (np.diag((1.0, 1, -1, 1)), np.eye(6), 'rigid'),
    (np.eye(3), np.eye(6), 'rigid'),
    (np.eye(4), -np.eye(6), 'covariance'),
    (np.eye(4), np.full((6, 6), np.nan), 'covariance'),
    (np.eye(4), np.ones((6, 6)), 'covariance'),
    (np.eye(4), np.ones(36), 'covariance'),
))
def test_fault_31_impossible_prior_is_refused_and_changes_nothing(rng, pose, covariance, cause):
    path = drive(rng, 10)
    tracker = localized(path)
    before = pickle.dumps(tracker)
    with pytest.raises(DataError, match=f'initialpose.*{cause}'):
        tracker.set_prior(pose, covariance, source='initialpose')
    assert pickle.dumps(tracker) == before


def test_fault_31_prior_of_a_running_tracker_begins_a_new_epoch(rng):
    path = drive(rng, 14)
    tracker = localized(path)
    tracker.set_prior(path.truth[10], np.zeros((6, 6)), source='initialpose')
    assert (tracker.epoch, tracker.state) == (1, UNLOCALIZED)
    assert tracker.map_from_odom is None
    assert tracker.add_refined(path.stamps[5], *path.exact(5)) == 'refined_unknown_frame'
    assert verdicts(tracker, path.fixes[10:]) == 4 * ['accepted']


# States


def test_states_come_and_go_with_hysteresis(rng):
    path = drive(rng, 40)
    tracker = localized(path)
    tracker.add_failure(path.stamps[10])
    assert (tracker.state, tracker.consecutive_failures) == (COASTING, 1)
    tracker.add_failure(path.stamps[11])
    assert tracker.state is COASTING
    assert tracker.add_fix(path.fixes[12]).verdict == 'accepted'
    assert (tracker.state, tracker.consecutive_failures) == (LOCALIZED, 0)
    lose(tracker, path.stamps[13:16])
    assert tracker.predict(path.stamps[16], path.odometry[16]) is None
    # Found by two that agree, not by one: a failure between them does not matter.
    assert tracker.add_fix(path.fixes[17]).verdict == 'pending'
    assert tracker.state is LOST
    tracker.add_failure(path.stamps[18])
    found = tracker.add_fix(path.fixes[19])
    assert (found.verdict, found.jump, tracker.state) == ('accepted', None, LOCALIZED)
    assert found.pose.stamp_ns == path.stamps[19]
    assert tracker.epoch == 0
    assert tracker.counts['failed'] == 6


def test_gated_frames_count_as_frames_without_a_fix(rng):
    path = drive(rng, 16)
    tracker = localized(path)
    assert tracker.add_fix(path.moved(10, FAR)).verdict == 'gated'
    assert (tracker.state, tracker.consecutive_rejects) == (COASTING, 1)
    assert tracker.add_fix(path.fixes[11]).verdict == 'accepted'
    assert (tracker.state, tracker.consecutive_rejects) == (LOCALIZED, 0)
    tracker.add_failure(path.stamps[12])
    tracker.add_fix(path.moved(13, FAR))
    tracker.add_failure(path.stamps[14])
    assert tracker.state is LOST


def test_failure_of_an_old_frame_says_nothing(rng):
    path = drive(rng, 10)
    tracker = localized(path)
    tracker.add_failure(path.stamps[5])
    assert (tracker.state, tracker.consecutive_failures) == (LOCALIZED, 0)


def test_time_without_a_fix_loses_the_pose_once(rng):
    path = drive(rng, 10)
    tracker = PoseTracker()
    assert not tracker.tick(100.0)
    tracker = localized(path)
    assert not tracker.tick(4.9)
    assert tracker.state is LOCALIZED
    assert tracker.tick(5.0)
    assert tracker.state is LOST
    assert not tracker.tick(6.0)
    never = localized(path, options=TrackerOptions(lost_timeout=0.0))
    assert not never.tick(1e6)
    assert never.state is LOCALIZED


def test_options_can_be_replaced_while_it_runs(rng):
    path = drive(rng, 20)
    tracker = localized(path)
    tracker.options = replace(tracker.options, lost_after_failures=1,
                              history=HistoryOptions(gate_chi2=0.0))
    assert tracker.add_fix(path.moved(10, FAR)).verdict == 'accepted'
    lose(tracker, path.stamps[11:12])
    tracker.options = TrackerOptions(init_consistent_fixes=1)
    assert tracker.add_fix(path.fixes[12]).verdict in ('accepted', 'relocalized')


@pytest.mark.parametrize('change', (
    {'init_consistent_fixes': 0}, {'relocalize_after_rejects': 0}, {'lost_after_failures': 0},
    {'lost_timeout': -1.0}, {'lost_timeout': float('nan')}))
def test_impossible_options_are_refused(change):
    with pytest.raises(ConfigError, match=next(iter(change))):
        TrackerOptions(**change)


# Wrong fixes


def test_fault_18_wrong_match_is_gated(rng):
    path = drive(rng, 40)
    tracker = localized(path)
    for k in range(10, 40):
        wrong = k % 3 == 0
        outcome = tracker.add_fix(path.moved(k, FAR) if wrong else path.fixes[k])
        assert outcome.verdict == ('gated' if wrong else 'accepted')
        assert (outcome.pose is None) == wrong
    assert tracker.counts['gated'] == 10


def test_fault_18_wrong_matches_that_disagree_never_win(rng):
    path = drive(rng, 30)
    tracker = localized(path)
    wrong = [path.moved(k, FAR if k % 2 else FARTHER) for k in range(10, 30)]
    results = outcomes(tracker, wrong)
    assert all(result.pose is None for result in results)
    assert {result.verdict for result in results} == {'gated', 'pending'}
    assert tracker.state is LOST


@pytest.mark.parametrize('needed', (1, 3, 6))
def test_fault_18_persistent_match_wins_only_through_the_relocalize_rule(rng, needed):
    """Also where it takes more fixes than it takes frames to be lost."""
    path = moved_world(drive(rng, 20), 10, FAR)
    tracker = localized(path, options=TrackerOptions(relocalize_after_rejects=needed))
    results = outcomes(tracker, path.fixes[10:])
    assert [result.verdict for result in results] == (
        (needed - 1) * ['gated'] + ['relocalized'] + (10 - needed) * ['accepted'])
    jumps = [result.jump for result in results if result.jump is not None]
    assert len(jumps) == 1
    assert results[needed - 1].jump == jumps[0]
    assert results[needed - 1].pose.stamp_ns == path.stamps[9 + needed]
    metres, radians = jumps[0]
    shift = perturb(np.eye(4), np.array(FAR))
    expected = np.linalg.norm(
        (np.linalg.inv(shift) @ path.truth[9 + needed] - path.truth[9 + needed])[:3, 3])
    assert metres == pytest.approx(expected, abs=0.2)
    assert radians == pytest.approx(0.5, abs=0.05)
    assert tracker.state is LOCALIZED


def test_accepted_fix_ends_the_row_of_gated_ones(rng):
    path = drive(rng, 30)
    tracker = localized(path)
    for k in range(10, 28, 3):
        assert verdicts(tracker, (
            path.moved(k, FAR), path.moved(k + 1, FAR), path.fixes[k + 2])) == [
                'gated', 'gated', 'accepted']


def test_fault_16_odometry_that_is_reset_relocalizes_after_the_rejects(rng):
    """The odometry starts at zero again, too near to be seen as a jump by its speed."""
    path = drive(rng, 30)
    tracker = localized(path, 15)
    step = planar(0.4, -0.5, 0.4)
    for k in range(15, 30):
        path.odometry[k] = step @ path.odometry[k]
        path.fixes[k] = replace(path.fixes[k], odom_from_base=path.odometry[k])
    assert not tracker.observe_odometry(path.stamps[14], path.odometry[14])
    results = outcomes(tracker, path.fixes[15:])
    assert [result.verdict for result in results] == [
        'gated', 'gated', 'relocalized'] + 12 * ['accepted']
    assert error(results[2].pose.map_from_base, path.truth[17]) < 0.15
    assert tracker.epoch == 0


@pytest.mark.parametrize('shift', (planar(3, 0, 0), planar(-40, -7, -2), None))
def test_fault_16_odometry_faster_than_possible_begins_a_new_epoch_at_once(rng, shift):
    path = drive(rng, 20)
    if shift is None:  # it starts at zero again
        shift = np.linalg.inv(path.odometry[10])
    tracker = localized(path)
    for stamp, odom in zip(path.stamps[:10], path.odometry):
        assert not tracker.observe_odometry(stamp, odom)
    assert tracker.observe_odometry(path.stamps[10], shift @ path.odometry[10])
    assert (tracker.epoch, tracker.state) == (1, UNLOCALIZED)
    assert tracker.map_from_odom is None
    # The new odometry is the measure from now on, and two fixes bring the pose back.
    fixes = [replace(fix, odom_from_base=shift @ fix.odom_from_base) for fix in path.fixes[10:]]
    for fix in fixes:
        assert not tracker.observe_odometry(fix.stamp_ns, fix.odom_from_base)
    assert verdicts(tracker, fixes) == ['pending'] + 9 * ['accepted']
    np.testing.assert_allclose(
        error(tracker.map_from_odom @ shift @ path.odometry[19], path.truth[19]), 0, atol=0.1)


def test_fault_16_odometry_that_jumps_and_jumps_back_is_seen_twice():
    tracker = PoseTracker()
    places = (planar(0, 0, 0), planar(9, 0, 0), planar(0, 0, 0), planar(0.1, 0, 0))
    assert [tracker.observe_odometry(SECOND + k * SECOND // 10, place)
            for k, place in enumerate(places)] == [False, True, True, False]
    assert tracker.epoch == 2


def test_fault_16_fast_but_possible_odometry_is_left_alone(rng):
    tracker = PoseTracker()
    for k in range(20):  # 5 m/s and 3 rad/s, the bounds themselves
        assert not tracker.observe_odometry(
            SECOND + k * SECOND // 10, planar(0.5 * k, 0, 0.3 * k))
    # An older stamp is not compared with a newer one; the same place later is none either.
    assert not tracker.observe_odometry(SECOND, planar(100, 0, 0))
    assert not tracker.observe_odometry(SECOND * 3, planar(9.5, 0, 5.7))
    assert tracker.epoch == 0


def test_fault_19_pose_that_is_none_is_a_frame_without_a_fix(rng):
    path = drive(rng, 20)
    tracker = localized(path)
    good = path.fixes[10]
    impossible = (
        replace(good, map_from_base=good.map_from_base * np.nan),
        replace(good, map_from_base=np.diag((1.0, 1, 1, 0))),
        replace(good, covariance=np.full((6, 6), np.inf)),
        replace(good, covariance=np.zeros((6, 6))),
        replace(good, covariance=np.ones((6, 6))),
        replace(good, odom_from_base=good.odom_from_base * np.nan),
    )
    history = pickle.dumps(tracker._history)
    for fix in impossible:
        outcome = tracker.add_fix(fix)
        assert (outcome.verdict, outcome.pose) == ('invalid', None)
    assert pickle.dumps(tracker._history) == history
    assert (tracker.state, tracker.counts['invalid']) == (LOST, 6)
    assert verdicts(PoseTracker(), impossible) == 6 * ['invalid']


# Lost and found


def test_wrong_fixes_after_lost_need_agreement(rng):
    path = drive(rng, 30)
    tracker = localized(path)
    lose(tracker, path.stamps[10:13])
    assert verdicts(tracker, (path.moved(13, FAR), path.moved(14, FARTHER), path.fixes[15])) == [
        'pending', 'pending', 'pending']
    assert tracker.state is LOST
    found = tracker.add_fix(path.fixes[16])
    assert (found.verdict, found.jump) == ('accepted', None)
    assert error(found.pose.map_from_base, path.truth[16]) < 0.15


def test_frames_of_another_scene_give_no_pose_and_two_good_ones_bring_it_back(rng):
    path = drive(rng, 40)
    tracker = localized(path)
    spliced = []
    for k in range(10, 30):
        if k % 3:
            tracker.add_failure(path.stamps[k])
        else:
            spliced.append(tracker.add_fix(path.moved(k, rng.uniform(2, 9, 6))))
    assert all(outcome.pose is None for outcome in spliced)
    assert tracker.state is LOST
    back = outcomes(tracker, path.fixes[30:33])
    assert [outcome.verdict for outcome in back] == ['pending', 'accepted', 'accepted']
    assert error(back[1].pose.map_from_base, path.truth[31]) < 0.15


def test_fault_40_robot_moved_while_lost_resumes_with_one_jump(rng):
    path = moved_world(drive(rng, 40), 15, FAR)
    tracker = localized(path)
    # Coasting: the pose follows odometry and is ever less certain with the way.
    traces = [np.trace(tracker.predict(path.stamps[9], path.odometry[9])[1][:3, :3])]
    for k in range(10, 12):
        tracker.add_failure(path.stamps[k])
        assert tracker.state is COASTING
        pose, covariance = tracker.predict(path.stamps[k], path.odometry[k])
        assert error(pose, path.truth[k]) < 0.2
        traces.append(np.trace(covariance[:3, :3]))
    assert (np.diff(traces) > 0).all()
    lose(tracker, path.stamps[12:15])
    results = outcomes(tracker, path.fixes[15:])
    assert [result.verdict for result in results] == [
        'pending', 'relocalized'] + 23 * ['accepted']
    assert [result.jump is not None for result in results].count(True) == 1
    first = results[1]
    assert first.jump[0] > 2
    assert first.pose.stamp_ns == path.stamps[16]
    assert error(first.pose.map_from_base, path.truth[16]) < 0.15  # a measurement, not a guess
    assert tracker.counts['relocalized'] == 1


def test_fault_40_covariance_grows_with_the_way_coasted(rng):
    path = drive(rng, 10)
    tracker = localized(path)
    tracker.add_failure(path.stamps[9] + SECOND)
    stamp, here = path.stamps[9] + 2 * SECOND, path.odometry[9]
    traces = [np.trace(tracker.predict(stamp, here @ planar(metres, 0, 0))[1][:3, :3])
              for metres in range(6)]
    assert (np.diff(traces) > 0).all()


def test_old_history_does_not_influence_the_new_one(rng):
    path = drive(rng, 30)
    tracker = localized(path)
    lose(tracker, path.stamps[10:13])
    fresh = PoseTracker()
    for one, other in zip(outcomes(tracker, path.fixes[15:]), outcomes(fresh, path.fixes[15:])):
        assert (one.pose is None) == (other.pose is None)
        if one.pose is not None:
            np.testing.assert_array_equal(one.pose.map_from_base, other.pose.map_from_base)
            np.testing.assert_array_equal(one.pose.covariance, other.pose.covariance)


# Refined poses


def test_refined_pose_is_counted_and_improves_the_next_ones(rng):
    path = drive(rng, 30)
    fast, refined = localized(path, 20), localized(path, 20)
    for k in range(5, 20, 3):
        assert refined.add_refined(path.stamps[k], *path.exact(k)) == 'accepted'
    assert refined.counts['refined_accepted'] == 5
    errors = [error(tracker.predict(path.stamps[19], path.odometry[19])[0], path.truth[19])
              for tracker in (fast, refined)]
    assert errors[1] < errors[0]


@pytest.mark.parametrize('fault, verdict', (
    ('unknown stamp', 'refined_unknown_frame'),
    ('pruned stamp', 'refined_unknown_frame'),
    ('not a number', 'refined_invalid'),
    ('no rotation', 'refined_invalid'),
    ('wrong shape', 'refined_invalid'),
    ('covariance of nothing', 'refined_invalid'),
    ('covariance with NaN', 'refined_invalid'),
    ('worse', 'refined_worse'),
    ('far', 'refined_gated'),
    ('far, newest', 'refined_gated'),
))
def test_fault_26_refined_pose_that_is_refused_changes_nothing_bit_for_bit(rng, fault, verdict):
    path = drive(rng, 80)
    tracker = localized(path, 80)
    pose, covariance = path.exact(70)
    far = perturb(pose, np.array(FAR))
    arguments = {
        'unknown stamp': (path.stamps[70] + 1, pose, covariance),
        'pruned stamp': (path.stamps[1], *path.exact(1)),
        'not a number': (path.stamps[70], pose * np.nan, covariance),
        'no rotation': (path.stamps[70], 1.1 * pose, covariance),
        'wrong shape': (path.stamps[70], pose[:3], covariance),
        'covariance of nothing': (path.stamps[70], pose, np.zeros((6, 6))),
        'covariance with NaN': (path.stamps[70], pose, covariance * np.nan),
        'worse': (path.stamps[70], pose, path.fixes[70].covariance),
        'far': (path.stamps[70], far, covariance),
        'far, newest': (path.stamps[79], far, covariance),
    }[fault]
    counts, transform = dict(tracker.counts), tracker.map_from_odom.tobytes()
    tracker.counts.clear()
    before = pickle.dumps(tracker)
    assert tracker.add_refined(*arguments) == verdict
    assert tracker.counts == {verdict: 1}
    tracker.counts.clear()
    assert pickle.dumps(tracker) == before
    assert tracker.map_from_odom.tobytes() == transform
    assert counts == {'pending': 1, 'accepted': 79}


def test_fault_26_refined_pose_of_an_older_epoch_or_of_a_lost_time_is_dropped(rng):
    path = drive(rng, 30)
    tracker = localized(path)
    lose(tracker, path.stamps[10:13])
    assert tracker.add_refined(path.stamps[8], *path.exact(8)) == 'refined_unknown_frame'
    tracker.reset('map switched')
    assert tracker.add_refined(path.stamps[8], *path.exact(8)) == 'refined_unknown_frame'
    assert verdicts(tracker, path.fixes[13:16]) == ['pending', 'accepted', 'accepted']
    assert tracker.add_refined(path.stamps[8], *path.exact(8)) == 'refined_unknown_frame'
    assert tracker.counts['refined_unknown_frame'] == 3


def test_refined_pose_that_frees_gated_fixes_ends_the_coasting(rng):
    path = drive(rng, 14)
    tracker = localized(path, options=TrackerOptions(history=HistoryOptions(gate_chi2=0.0)))
    wrong = replace(path.moved(10, (0.4, 0.4, 0, 0, 0, 0.3)),
                    covariance=path.fixes[10].covariance / 100)
    assert tracker.add_fix(wrong).verdict == 'accepted'
    tracker.options = TrackerOptions()
    assert verdicts(tracker, path.fixes[11:13]) == ['gated', 'gated']
    assert (tracker.state, tracker.consecutive_rejects) == (COASTING, 2)
    assert tracker.add_refined(path.stamps[10], *path.exact(10, 0.002)) == 'accepted'
    assert (tracker.state, tracker.consecutive_rejects) == (LOCALIZED, 0)
    assert tracker.consecutive_failures == 0
    assert tracker.add_fix(path.fixes[13]).verdict == 'accepted'


def test_refined_pose_leaves_failures_that_it_does_not_explain(rng):
    path = drive(rng, 14)
    tracker = localized(path)
    tracker.add_failure(path.stamps[10])
    assert tracker.add_refined(path.stamps[8], *path.exact(8)) == 'accepted'
    assert (tracker.state, tracker.consecutive_failures) == (COASTING, 1)


# Stamps and epochs


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 19), st.sampled_from(
    ('good', 'good', 'good', 'wrong', 'failed', 'refined', 'reset', 'tick'))), max_size=40))
def test_output_stamps_strictly_increase_and_poses_are_finite(events):
    path = drive(np.random.default_rng(1), 20, seconds=0.04)  # no step back of a second
    tracker = PoseTracker()
    newest = 0
    for k, event in events:
        if event == 'failed':
            tracker.add_failure(path.stamps[k])
        elif event == 'refined':
            tracker.add_refined(path.stamps[k], *path.exact(k))
        elif event == 'reset':
            tracker.reset('test')
        elif event == 'tick':
            tracker.tick(6.0)
        else:
            outcome = tracker.add_fix(path.fixes[k] if event == 'good' else path.moved(k, FAR))
            if outcome.pose is not None:
                assert outcome.verdict in ('accepted', 'relocalized')
                assert outcome.pose.stamp_ns == path.stamps[k] > newest
                newest = outcome.pose.stamp_ns
                assert np.isfinite(outcome.pose.map_from_base).all()
                assert np.linalg.eigvalsh(outcome.pose.covariance).min() > 0
        assert tracker.consecutive_failures >= tracker.consecutive_rejects >= 0
        if tracker.state is LOCALIZED:
            assert tracker.consecutive_failures == 0
        if tracker.state is COASTING:
            assert tracker.consecutive_failures > 0


def test_late_fix_is_fused_and_not_published(rng):
    path = drive(rng, 20)
    late, in_order = localized(path, 12), localized(path, 12)
    assert verdicts(late, path.fixes[13:15]) == 2 * ['accepted']
    outcome = late.add_fix(path.fixes[12])
    assert (outcome.verdict, outcome.pose) == ('accepted', None)
    assert verdicts(in_order, path.fixes[12:15]) == 3 * ['accepted']
    np.testing.assert_allclose(late.map_from_odom, in_order.map_from_odom, rtol=0, atol=1e-9)
    assert late.add_fix(path.fixes[13]).verdict == 'stale'
    assert late.add_fix(path.fixes[15]).pose.stamp_ns == path.stamps[15]


def test_late_fix_after_a_gated_one_is_published_and_does_not_end_the_doubt(rng):
    path = drive(rng, 20)
    tracker = localized(path)
    assert tracker.add_fix(path.moved(11, FAR)).verdict == 'gated'
    outcome = tracker.add_fix(path.fixes[10])
    assert outcome.verdict == 'accepted'
    assert outcome.pose.stamp_ns == path.stamps[10]
    assert (tracker.state, tracker.consecutive_rejects) == (COASTING, 1)


def test_gated_fixes_count_once_when_a_late_one_arrives(rng):
    path = moved_world(drive(rng, 20), 11, FAR)
    tracker = localized(path, 9)
    assert tracker.add_fix(path.fixes[10]).verdict == 'accepted'
    assert tracker.add_fix(path.fixes[11]).verdict == 'gated'
    assert tracker.add_fix(path.fixes[9]).verdict == 'accepted'
    assert verdicts(tracker, path.fixes[12:14]) == ['gated', 'relocalized']


def test_fix_more_than_a_second_late_is_not_published_either(rng):
    path = drive(rng, 30)
    tracker = localized(path, 12)
    assert verdicts(tracker, path.fixes[13:30]) == 17 * ['accepted']
    outcome = tracker.add_fix(path.fixes[12])
    assert (outcome.verdict, outcome.pose) == ('accepted', None)


def test_new_epoch_does_not_repeat_stamps(rng):
    path = drive(rng, 20)
    tracker = localized(path, 12)
    tracker.reset('initialpose')
    results = outcomes(tracker, path.fixes[8:15])
    assert [result.verdict for result in results] == ['pending'] + 6 * ['accepted']
    assert [result.pose is not None for result in results] == 4 * [False] + 3 * [True]


def test_stamps_that_start_again_are_published_in_a_new_epoch_only(rng):
    path = drive(rng, 30)
    tracker = localized(path, 30)
    again = path.fixes[:10]
    assert {outcome.pose for outcome in outcomes(tracker, again)} == {None}
    tracker.reset('stamps went back')
    assert (tracker.epoch, tracker.state) == (1, UNLOCALIZED)
    results = outcomes(tracker, again)
    assert [result.verdict for result in results] == ['pending'] + 9 * ['accepted']
    assert [result.pose.stamp_ns for result in results[1:]] == path.stamps[1:10]


def test_reset_drops_everything_of_the_old_epoch(rng):
    path = drive(rng, 30)
    tracker = localized(path)
    tracker.observe_odometry(path.stamps[9], path.odometry[9])
    tracker.add_failure(path.stamps[10])
    tracker.reset('test')
    assert (tracker.state, tracker.epoch) == (UNLOCALIZED, 1)
    assert (tracker.consecutive_failures, tracker.consecutive_rejects) == (0, 0)
    assert tracker.map_from_odom is None
    assert tracker.predict(path.stamps[10], path.odometry[10]) is None
    assert not tracker.observe_odometry(path.stamps[10], planar(500, 0, 0))
    # Elsewhere and at another time: nothing old stands against it, and nothing jumped.
    elsewhere = [Fix(fix.stamp_ns, planar(50, 50, 1) @ fix.map_from_base, fix.covariance,
                     fix.odom_from_base) for fix in path.fixes[20:22]]
    results = outcomes(tracker, elsewhere)
    assert [result.verdict for result in results] == ['pending', 'accepted']
    assert results[1].jump is None


def test_without_odometry_the_camera_is_followed_and_found_again(rng):
    path = drive(rng, 30, odometry=False)
    tracker = localized(path)
    assert tracker.add_fix(path.moved(10, (8, 0, 0, 0, 0, 0))).verdict == 'gated'
    assert verdicts(tracker, path.fixes[11:14]) == 3 * ['accepted']
    lose(tracker, path.stamps[14:17])
    assert verdicts(tracker, path.fixes[17:20]) == ['pending', 'accepted', 'accepted']
    assert tracker.map_from_odom is None
