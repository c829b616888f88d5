"""Corrections reach the body as a small straight motion, or as one counted jump."""

import math

from drive import planar
from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.pose_slew import slew, SlewLimits
from nerfmatch_ros.localization.rigid_motion import difference, distance, perturb
import numpy as np
import pytest

component = st.floats(-1, 1, allow_nan=False)
delta = st.tuples(*6 * [component]).map(np.array)
DEFAULT = SlewLimits()
OFF = SlewLimits(linear=0.0)


def glide(now, goal, body, dt, limits=DEFAULT, most=2000):
    """Repeat the step; give the bodies on the way and whether any step was a jump."""
    bodies, jumped = [now @ body], False
    for _ in range(most):
        now, snapped = slew(now, goal, body, dt, limits)
        bodies.append(now @ body)
        jumped |= snapped
        if (now == goal).all():
            return bodies, jumped
    raise AssertionError('the goal is never reached')


@settings(max_examples=60, deadline=None)
@given(delta, delta, delta, st.sampled_from((0.01, 0.05, 0.2)))
def test_body_glides_within_the_limits_or_jumps_once(start, change, body, dt):
    limits = SlewLimits()
    now = perturb(np.eye(4), start)
    body = perturb(np.eye(4), np.array((40, -30, 1, 1, 1, 1)) * body)
    # The goal moves the body by `change`; map_from_odom itself moves by much more.
    goal = perturb(now @ body, change) @ np.linalg.inv(body)
    metres, radians = distance(now @ body, goal @ body)
    bodies, jumped = glide(now, goal, body, dt)
    assert jumped == (metres > limits.snap_distance or radians > limits.snap_angle)
    if jumped:
        assert len(bodies) == 2
        return
    for first, second in zip(bodies, bodies[1:]):
        step = distance(first, second)
        assert step[0] <= limits.linear * dt + 1e-9
        assert step[1] <= limits.angular * dt + 1e-7
    longest = max(metres / limits.linear, radians / limits.angular)
    assert len(bodies) - 1 <= math.ceil(longest / dt + 1e-6) + 1


def test_thirty_degrees_far_from_the_origin_move_the_body_straight_by_a_small_step():
    """Interpolating map_from_odom itself would swing the body out by metres on the way."""
    body = planar(100, 0, 0)
    now = planar(0, 0, 0)
    goal = planar(100.2, 0, math.radians(30)) @ np.linalg.inv(body)
    limits = SlewLimits(snap_angle=1.0)
    bodies, jumped = glide(now, goal, body, 0.05, limits)
    assert not jumped
    places = np.array([pose[:3, 3] for pose in bodies])
    np.testing.assert_allclose(places[:, 1:], 0, atol=1e-9)
    assert (np.diff(places[:, 0]) >= 0).all()
    assert np.diff(places[:, 0]).max() <= 0.5 * 0.05 + 1e-9
    headings = [math.atan2(pose[1, 0], pose[0, 0]) for pose in bodies]
    np.testing.assert_allclose(np.diff(headings)[:-1], 0.025, atol=1e-9)
    naive = 0.5 * (now[:3, 3] + goal[:3, 3]) + planar(0, 0, math.radians(15))[:3, :3] @ body[:3, 3]
    assert abs(naive[0] - 100.1) > 3


def test_large_corrections_jump_and_say_so():
    now, body = planar(0, 0, 0), planar(5, 0, 0)
    for goal in (planar(1.1, 0, 0), planar(5, 0, 0.6) @ planar(-5, 0, 0)):
        reached, snapped = slew(now, goal, body, 0.05, SlewLimits())
        assert snapped
        np.testing.assert_array_equal(reached, goal)


def test_switched_off_every_correction_is_made_at_once():
    now, body = planar(0, 0, 0), planar(5, 0, 0)
    small, large = planar(0.3, 0, 0.01), planar(3, 0, 0)
    for goal, far in ((small, False), (large, True)):
        reached, snapped = slew(now, goal, body, 0.05, OFF)
        np.testing.assert_array_equal(reached, goal)
        assert snapped is far


def test_turns_may_have_no_limit_of_their_own():
    goal = planar(0, 0, 0.3)
    reached, _ = slew(np.eye(4), goal, np.eye(4), 0.05, SlewLimits(angular=0.0))
    np.testing.assert_array_equal(reached, goal)


@pytest.mark.parametrize('dt', (0.0, -1.0))
def test_without_time_nothing_moves(dt):
    now, goal = planar(0, 0, 0), planar(0.5, 0, 0.1)
    still, snapped = slew(now, goal, planar(9, 9, 1), dt, SlewLimits())
    assert not snapped
    np.testing.assert_array_equal(still, now)


def test_at_the_goal_it_stays_and_the_inputs_too():
    now, body = planar(1, 2, 0.5), planar(7, -3, 1)
    kept = now.copy(), body.copy()
    same, snapped = slew(now, now, body, 0.05, SlewLimits())
    assert not snapped
    np.testing.assert_array_equal(same, now)
    slew(now, planar(1.2, 2, 0.6), body, 0.05, SlewLimits())
    np.testing.assert_array_equal(now, kept[0])
    np.testing.assert_array_equal(body, kept[1])


def test_while_the_body_drives_the_correction_still_arrives():
    now, goal = planar(0, 0, 0), planar(0.4, -0.3, 0.01)
    for k in range(40):
        body = planar(10 + 0.1 * k, 0, 0.02 * k)
        before = now @ body
        now, snapped = slew(now, goal, body, 0.05, SlewLimits())
        assert not snapped
        assert np.linalg.norm(difference(before, now @ body)[:3]) <= 0.025 + 1e-9
    np.testing.assert_array_equal(now, goal)


@pytest.mark.parametrize('name', ('linear', 'angular', 'snap_distance', 'snap_angle'))
@pytest.mark.parametrize('value', (-0.1, float('nan'), float('inf')))
def test_limits_that_are_none_are_refused(name, value):
    with pytest.raises(ConfigError, match=name):
        SlewLimits(**{name: value})
