"""Replay of late and refined fixes, against in-order insertion and the reference arithmetic."""

from dataclasses import replace
from pathlib import Path
import pickle
import runpy
import zlib

from drive import drive, error, map_from_odom, SECOND
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.pose_history import (
    Fix,
    fixes_agree,
    HistoryOptions,
    motion_between,
    PoseHistory,
    propagate,
    Verdict,
)
from nerfmatch_ros.localization.rigid_motion import difference, inverse, perturb
import numpy as np
import pytest

REFERENCE = Path(__file__).resolve().parents[2] / 'shared' / 'ref_correction.py'
FAR = (3.0, -2.0, 0.0, 0.0, 0.0, 0.5)


@pytest.fixture
def rng(request):
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def reference():
    """Tested reference arithmetic beside the repository; without it the test is skipped."""
    if not REFERENCE.is_file():
        pytest.skip(f'no reference arithmetic at {REFERENCE}')
    return runpy.run_path(str(REFERENCE))


def filled(fixes, options=None):
    history = PoseHistory(options)
    for fix in fixes:
        history.add(fix)
    return history


def with_outliers(path, rng, share=0.2):
    """Replace a share of the fixes, never the first, by grossly wrong ones; give which."""
    wrong = set()
    for k in range(1, len(path.fixes)):
        if rng.random() < share:
            path.fixes[k] = path.moved(k, rng.choice((-1, 1), 6) * rng.uniform(1, 3, 6))
            wrong.add(k)
    return wrong


def same(first, second, tolerance=1e-9):
    stamp = first.newest_stamp_ns
    assert stamp == second.newest_stamp_ns
    for one, other in zip(first.predict(stamp, None), second.predict(stamp, None)):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)
    np.testing.assert_allclose(
        first.map_from_odom, second.map_from_odom, rtol=0, atol=tolerance)


@settings(max_examples=60, deadline=None)
@given(st.permutations(range(9)), st.sets(st.integers(1, 8), max_size=3), st.booleans())
def test_insertion_in_any_order_equals_insertion_in_order(order, wrong, odometry):
    path = drive(np.random.default_rng(7), 9, odometry=odometry)
    for k in wrong:
        path.fixes[k] = path.moved(k, FAR)
    late, in_order = filled(path.fixes[k] for k in order), filled(path.fixes)
    stamp = path.stamps[-1] + SECOND
    for one, other in zip(late.predict(stamp, None), in_order.predict(stamp, None)):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-9)
    assert (late.map_from_odom is None) == (not odometry)
    assert [fix.stamp_ns for fix in late.gated_at_end] == [
        fix.stamp_ns for fix in in_order.gated_at_end]


@settings(max_examples=30, deadline=None)
@given(st.permutations(range(8)), st.permutations(range(8)))
def test_refined_poses_in_any_order_equal_refined_poses_from_the_start(order, refined_order):
    path = drive(np.random.default_rng(8), 8)
    refined = [replace(fix, map_from_base=path.exact(k)[0], covariance=path.exact(k)[1])
               for k, fix in enumerate(path.fixes)]
    late = filled(path.fixes[k] for k in order)
    for k in refined_order:
        assert late.replace(path.stamps[k], *path.exact(k)) is Verdict.ACCEPTED
    same(late, filled(refined))


@pytest.mark.parametrize('seed', range(6))
def test_equals_the_reference_number_by_number(reference, seed):
    """Late fixes, gross outliers, refined poses a second late, and a ring that is pruned."""
    rng = np.random.default_rng(seed)
    path = drive(rng, 90)
    wrong = with_outliers(path, rng, 0.15)
    options = HistoryOptions(horizon=8.0)
    history, expected = PoseHistory(options), reference['MapOdom'](horizon=options.horizon)
    events = [(k + (rng.integers(1, 6) if rng.random() < 0.2 else 0), k, False)
              for k in range(90)]
    events += [(k + rng.integers(4, 8), k, True)
               for k in range(90) if k not in wrong and rng.random() < 0.4]
    # The last ones come too late for anything.
    events += [(89.5, 3, True), (89.6, 4, False)]
    seen = set()
    for _, k, is_refined in sorted(events, key=lambda event: event[0]):
        fix = path.fixes[k]
        if is_refined:
            pose, covariance = path.exact(k)
            verdict = history.replace(fix.stamp_ns, pose, covariance)
        else:
            pose, covariance = fix.map_from_base, fix.covariance
            verdict = history.add(fix)
        text = expected.add(fix.stamp_ns * 1e-9, pose, covariance, fix.odom_from_base,
                            kind='refined' if is_refined else 'fast')
        assert verdict.value == {'ok': 'accepted'}.get(text, text)
        seen.add(verdict)
        np.testing.assert_allclose(history.map_from_odom, expected.X, rtol=0, atol=1e-9)
        odom = path.odometry[k] @ perturb(np.eye(4), np.array((0.3, 0, 0, 0, 0, 0.2)))
        later = history.newest_stamp_ns + SECOND // 4
        for ours, theirs in zip(history.predict(later, odom), expected.pose(odom, later * 1e-9)):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
    assert seen >= {Verdict.ACCEPTED, Verdict.GATED, Verdict.STALE}
    assert len(history) == len(expected.E) < 50


def test_gross_outliers_are_gated_and_hardly_any_others(rng):
    path = drive(rng, 300)
    wrong = with_outliers(path, rng)
    history = PoseHistory()
    verdicts = [history.add(fix) for fix in path.fixes]
    assert len(wrong) > 40
    gated = {k for k, verdict in enumerate(verdicts) if verdict is Verdict.GATED}
    assert gated >= wrong
    assert len(gated - wrong) <= 2  # of 240, the gate refuses one in a thousand
    assert error(history.predict(path.stamps[-1], path.odometry[-1])[0], path.truth[-1]) < 0.1


def test_fusion_is_more_accurate_than_fixes_and_refined_fixes_more_so(rng):
    path = drive(rng, 300)
    fast, refined = PoseHistory(), PoseHistory()
    errors = []
    for k, fix in enumerate(path.fixes):
        for history in (fast, refined):
            history.add(fix)
        if k >= 5 and k % 5 == 0:  # one second late
            assert refined.replace(path.stamps[k - 5], *path.exact(k - 5)) is Verdict.ACCEPTED
        errors.append([error(pose, path.truth[k]) for pose in (
            fix.map_from_base, fast.predict(fix.stamp_ns, None)[0],
            refined.predict(fix.stamp_ns, None)[0])])
    single, fused, replayed = np.sqrt(np.mean(np.square(errors), axis=0))
    assert fused < 0.6 * single
    assert replayed < 0.8 * fused


def test_covariance_covers_the_error(rng):
    nees = []
    for _ in range(20):
        path = drive(rng, 40)
        history = filled(path.fixes)
        pose, covariance = history.predict(path.stamps[-1], path.odometry[-1])
        delta = difference(pose, path.truth[-1])
        nees.append(delta @ np.linalg.solve(covariance, delta))
    # 6 is exact, 20 runs scatter by 0.8; odometry's noise is meant to be taken too large.
    assert 0.5 < np.mean(nees) < 8.5


def test_refined_pose_repairs_a_wrong_fix_and_what_it_caused_to_be_rejected(rng):
    path = drive(rng, 12)
    path.fixes[0] = path.moved(0, FAR)
    history = PoseHistory()
    verdicts = [history.add(fix) for fix in path.fixes]
    assert verdicts == [Verdict.ACCEPTED] + 11 * [Verdict.GATED]
    assert len(history.gated_at_end) == 11
    # The first fix is the only thing known, so only the fix itself can be the judge of it.
    assert history.replace(path.stamps[0], *path.exact(0)) is Verdict.GATED
    wide = replace(path.fixes[0], covariance=400 * path.fixes[0].covariance)
    history.clear()
    for fix in (wide, *path.fixes[1:]):
        history.add(fix)
    assert history.replace(path.stamps[0], *path.exact(0)) is Verdict.ACCEPTED
    assert history.gated_at_end == []


def test_refined_pose_frees_fixes_that_a_wrong_one_got_gated(rng):
    path = drive(rng, 14)
    wrong = path.moved(5, (0.3, 0.3, 0, 0, 0, 0.3))
    sure = replace(wrong, covariance=path.fixes[5].covariance / 100)
    loose = HistoryOptions(gate_chi2=0.0)
    history = PoseHistory(loose)
    for fix in (*path.fixes[:5], sure):
        history.add(fix)
    history.options = HistoryOptions()
    verdicts = [history.add(fix) for fix in path.fixes[6:]]
    assert Verdict.GATED in verdicts
    assert history.replace(path.stamps[5], *path.exact(5, 0.001)) is Verdict.ACCEPTED
    assert history.gated_at_end == []
    assert error(history.predict(path.stamps[-1], None)[0], path.truth[-1]) < 0.05


def refused(path):
    """What a refined pose may be refused for: verdict, stamp, pose, covariance."""
    pose, covariance = path.exact(6)
    far = perturb(pose, np.array(FAR))
    return {
        'unknown stamp': (Verdict.UNKNOWN_FRAME, path.stamps[6] + 1, pose, covariance),
        'later than all': (Verdict.UNKNOWN_FRAME, path.stamps[-1] + 1, pose, covariance),
        'too old': (Verdict.STALE, path.stamps[0] - 20 * SECOND, pose, covariance),
        'no better': (Verdict.WORSE, path.stamps[6], pose, path.fixes[6].covariance),
        'far': (Verdict.GATED, path.stamps[6], far, covariance),
        'far, at the end': (Verdict.GATED, path.stamps[-1], far, covariance),
        'far, of the first': (Verdict.GATED, path.stamps[0], far, covariance),
    }


@pytest.mark.parametrize('fault', (
    'unknown stamp', 'later than all', 'too old', 'no better', 'far', 'far, at the end',
    'far, of the first'))
def test_refused_refined_pose_leaves_everything_bit_for_bit(rng, fault):
    path = drive(rng, 12)
    history = filled(path.fixes)
    before = pickle.dumps(history)
    verdict, *arguments = refused(path)[fault]
    assert history.replace(*arguments) is verdict
    assert pickle.dumps(history) == before


def test_refined_pose_that_later_fixes_contradict_is_refused(rng):
    """After a long gap the gate is wide; a wrong refined pose passes it, but not its followers."""
    path = drive(rng, 10, odometry=False)
    gap = 3 * SECOND
    fixes = [path.fixes[0]] + [replace(fix, stamp_ns=fix.stamp_ns + gap) for fix in path.fixes[1:]]
    history = filled(fixes)
    assert history.gated_at_end == []
    before = pickle.dumps(history)
    sideways = perturb(path.truth[1], np.array((0, 4.0, 0, 0, 0, 0)))
    covariance = path.exact(1)[1]
    assert fixes_agree(fixes[0], Fix(fixes[1].stamp_ns, sideways, covariance), HistoryOptions())
    assert history.replace(fixes[1].stamp_ns, sideways, covariance) is Verdict.GATED
    assert pickle.dumps(history) == before
    assert history.replace(fixes[1].stamp_ns, *path.exact(1)) is Verdict.ACCEPTED


def test_only_the_fixes_from_the_change_on_are_run_again(rng, monkeypatch):
    path = drive(rng, 40)
    history = filled(path.fixes[:20] + path.fixes[21:])
    steps = []
    step = PoseHistory._step
    monkeypatch.setattr(PoseHistory, '_step', lambda self, before, i: (
        steps.append(i), step(self, before, i))[1])
    history.add(path.fixes[20])
    assert steps == list(range(20, 40))
    steps.clear()
    history.replace(path.stamps[33], *path.exact(33))
    assert steps == list(range(33, 40))
    steps.clear()
    history.replace(path.stamps[33], path.truth[33], path.fixes[33].covariance)
    history.predict(path.stamps[-1], path.odometry[-1])
    assert steps == []


def test_pruned_ring_is_bounded_and_forgets_nothing_of_the_estimate(rng):
    path = drive(rng, 200)
    short, long = filled(path.fixes, HistoryOptions(horizon=2.0)), filled(
        path.fixes, HistoryOptions(horizon=1000.0))
    assert len(short) <= 12 < len(long) == 200
    same(short, long, 0)
    late = drive(rng, 1).fixes[0]
    assert short.add(replace(late, stamp_ns=path.stamps[-1] - 3 * SECOND)) is Verdict.STALE
    # A longer horizon cannot bring back what was settled.
    short.options = HistoryOptions(horizon=1000.0)
    assert short.add(replace(late, stamp_ns=path.stamps[-1] - 3 * SECOND)) is Verdict.STALE
    same(short, long, 0)


def test_horizon_of_nothing_still_follows(rng):
    path = drive(rng, 30)
    history = PoseHistory(HistoryOptions(horizon=0.0))
    assert {history.add(fix) for fix in path.fixes} == {Verdict.ACCEPTED}
    assert len(history) <= 2
    assert error(history.predict(path.stamps[-1], None)[0], path.truth[-1]) < 0.1


def test_stamp_is_taken_once(rng):
    path = drive(rng, 3)
    history = filled(path.fixes)
    before = pickle.dumps(history)
    assert history.add(path.fixes[1]) is Verdict.STALE
    assert pickle.dumps(history) == before


def test_prediction_carries_the_heading_error_along_the_lever():
    """Position error after driving: 4000 sampled poses, driven on, scatter as predicted."""
    rng = np.random.default_rng(3)
    covariance = np.diag(np.repeat((0.05, 0.02), 3) ** 2)
    covariance[0, 5] = covariance[5, 0] = 0.0004
    start = perturb(np.eye(4), np.array((1, 2, 3, 0.3, -0.2, 0.8)))
    motion = perturb(np.eye(4), np.array((6.0, 2.0, -1.0, 0.1, 0.2, 1.0)))
    options = HistoryOptions(odom_noise_trans=0.0, odom_noise_rot=0.0)
    moved, predicted = propagate(
        start, covariance, motion_between(np.eye(4), motion), 0.0, options)
    deltas = rng.multivariate_normal(np.zeros(6), covariance, 4000)
    samples = np.array([difference(moved, perturb(start, d) @ motion) for d in deltas])
    sampled = samples.T @ samples / len(samples)
    assert np.linalg.norm(sampled - predicted) < 0.06 * np.linalg.norm(predicted)
    assert np.sqrt(np.trace(predicted[:3, :3])) > 2 * np.sqrt(np.trace(covariance[:3, :3]))


@pytest.mark.parametrize('metres, radians', ((0.0, 0.0), (3.0, 0.0), (0.0, 2.0), (0.5, 2.0)))
def test_noise_of_odometry_is_what_the_options_say(metres, radians):
    motion = motion_between(np.eye(4), perturb(np.eye(4), np.array((metres, 0, 0, 0, 0, radians))))
    options = HistoryOptions(odom_noise_trans=0.1, odom_noise_rot=0.2)
    _, covariance = propagate(np.eye(4), np.zeros((6, 6)), motion, 4.0, options)
    np.testing.assert_allclose(covariance, np.diag(np.repeat((
        (0.1 * metres) ** 2 + 4e-4, (0.2 * max(metres, radians)) ** 2 + 4e-6), 3)), atol=1e-15)


def test_covariance_grows_with_time_and_with_the_way(rng):
    path = drive(rng, 5)
    history = filled(path.fixes)
    def traces(stamp, metres):
        odom = path.odometry[-1] @ perturb(np.eye(4), np.array((metres, 0, 0, 0, 0, 0.0)))
        covariance = history.predict(stamp, odom)[1]
        return np.trace(covariance[:3, :3]), np.trace(covariance[3:, 3:])
    now = path.stamps[-1]
    at_rest = [traces(now + k * SECOND, 0.0) for k in range(5)]
    driven = [traces(now + SECOND, metres) for metres in range(5)]
    assert (np.diff(at_rest, axis=0) > 0).all()
    assert (np.diff(driven, axis=0) > 0).all()


def test_without_odometry_the_newest_is_trusted_and_the_impossible_refused(rng):
    path = drive(rng, 30, odometry=False)
    history = filled(path.fixes)
    assert history.map_from_odom is None
    assert history.gated_at_end == []
    last = path.fixes[-1]
    pose, covariance = history.predict(last.stamp_ns, None)
    np.testing.assert_allclose(pose, last.map_from_base, atol=0.02)
    assert np.trace(covariance) <= np.trace(last.covariance)
    soon = history.predict(last.stamp_ns + SECOND // 5, None)
    np.testing.assert_array_equal(soon[0], pose)
    bound = 5.0 * 0.2 / 3  # a third of the way at full speed
    np.testing.assert_allclose(np.diag(soon[1] - covariance)[:3], bound ** 2, rtol=1e-9)
    away = perturb(pose, np.array((5.0, 0, 0, 0, 0, 0)))
    stamp = last.stamp_ns + SECOND // 5
    assert history.add(Fix(stamp, away, last.covariance)) is Verdict.GATED
    # The same way in more time is possible.
    assert history.add(Fix(stamp + 2 * SECOND, away, last.covariance)) is Verdict.ACCEPTED


def test_odometry_that_comes_and_goes_is_bridged_by_the_bound(rng):
    path = drive(rng, 20)
    for k in range(8, 12):
        path.fixes[k] = replace(path.fixes[k], odom_from_base=None)
    history = PoseHistory()
    assert {history.add(fix) for fix in path.fixes} == {Verdict.ACCEPTED}
    assert error(history.predict(path.stamps[-1], None)[0], path.truth[-1]) < 0.1
    expected = map_from_odom(history.predict(path.stamps[-1], None)[0], path.odometry[-1])
    np.testing.assert_allclose(history.map_from_odom, expected, atol=1e-12)


def test_gate_can_be_switched_off(rng):
    path = drive(rng, 5)
    history = filled(path.fixes, HistoryOptions(gate_chi2=0.0))
    wrong = replace(path.moved(4, FAR), stamp_ns=path.stamps[-1] + 1)
    assert history.add(wrong) is Verdict.ACCEPTED


def test_prediction_before_the_newest_fix_uses_those_up_to_its_stamp(rng):
    path = drive(rng, 10)
    history, shorter = filled(path.fixes), filled(path.fixes[:5])
    between = path.stamps[4] + SECOND // 10
    for ours, expected in zip(history.predict(between, path.odometry[4]),
                              shorter.predict(between, path.odometry[4])):
        np.testing.assert_array_equal(ours, expected)
    early, covariance = history.predict(path.stamps[0] - SECOND, path.odometry[0])
    np.testing.assert_allclose(early, path.fixes[0].map_from_base, atol=1e-9)
    assert np.trace(covariance) > np.trace(path.fixes[0].covariance)


def test_empty_history_knows_nothing():
    history = PoseHistory()
    assert history.predict(SECOND, np.eye(4)) is None
    assert history.map_from_odom is None
    assert history.newest_stamp_ns is None
    assert history.replace(SECOND, np.eye(4), np.eye(6)) is Verdict.UNKNOWN_FRAME
    filled_one = filled(drive(np.random.default_rng(0), 3).fixes)
    filled_one.clear()
    assert pickle.dumps(filled_one) == pickle.dumps(history)


def test_poses_stay_rotations_and_covariances_positive(rng):
    path = drive(rng, 1500)
    history = filled(path.fixes)
    pose, covariance = history.predict(path.stamps[-1], None)
    np.testing.assert_allclose(pose[:3, :3].T @ pose[:3, :3], np.eye(3), atol=1e-12)
    np.testing.assert_array_equal(covariance, covariance.T)
    assert np.linalg.eigvalsh(covariance).min() > 0
    np.testing.assert_allclose(
        history.map_from_odom @ path.odometry[-1], pose, atol=1e-11)


def test_agreement_does_not_depend_on_the_order(rng):
    path = drive(rng, 6)
    options = HistoryOptions()
    wrong = path.moved(5, FAR)
    for first, second, agree in ((path.fixes[0], path.fixes[5], True),
                                 (path.fixes[0], wrong, False)):
        assert fixes_agree(first, second, options) is agree
        assert fixes_agree(second, first, options) is agree


def test_inputs_stay_as_they_were(rng):
    path = drive(rng, 10)
    before = pickle.dumps(path.fixes)
    history = filled(path.fixes)
    history.replace(path.stamps[4], *path.exact(4))
    history.predict(path.stamps[-1] + SECOND, inverse(path.odometry[0]))
    assert pickle.dumps(path.fixes) == before


@pytest.mark.parametrize('name', ('horizon', 'odom_noise_trans', 'gate_chi2', 'max_speed'))
@pytest.mark.parametrize('value', (-1.0, float('nan'), float('inf')))
def test_options_that_are_no_bounds_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        HistoryOptions(**{name: value})
