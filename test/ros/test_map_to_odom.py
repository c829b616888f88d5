"""When map -> odom is sent, with which stamp, and how it moves."""

import math

from nerfmatch_ros.localization.pose_slew import SlewLimits
from nerfmatch_ros.ros.map_to_odom import MapToOdom
import numpy as np
import pytest

SECOND = 1_000_000_000
START = 1_700_000_000 * SECOND
PERIOD = SECOND // 20
TOLERANCE = 0.1
LIMITS = SlewLimits(linear=0.5, angular=0.5, snap_distance=1.0, snap_angle=0.5)


def place(x, yaw=0.0):
    pose = np.eye(4)
    pose[:2, :2] = (math.cos(yaw), -math.sin(yaw)), (math.sin(yaw), math.cos(yaw))
    pose[0, 3] = x
    return pose


class Run:
    """A MapToOdom with its clocks."""

    def __init__(self):
        self.now, self.steady = START, 50.0
        self.options = {'limits': LIMITS, 'tolerance': TOLERANCE, 'stale_timeout': 0.0}
        self.odom_from_base = None
        self.motion = MapToOdom(self.now)

    def goal(self, map_from_odom, odom_from_base=None):
        self.motion.set_goal(map_from_odom, odom_from_base, self.now, self.steady)

    def step(self, passed=PERIOD):
        self.now, self.steady = self.now + passed, self.steady + PERIOD / SECOND
        return self.motion.step(
            self.now, self.steady, lambda: self.odom_from_base, **self.options)


@pytest.fixture
def run():
    return Run()


def test_nothing_is_sent_before_the_first_goal(run):
    """Row 14: no identity before the first fix."""
    assert [run.step() for _ in range(5)] == [None] * 5


def test_the_first_goal_is_sent_at_once_and_as_it_is(run):
    run.goal(place(100))
    sent = run.step()
    np.testing.assert_array_equal(sent.map_from_odom, place(100))
    assert sent.stamp_ns == run.now + SECOND // 10 and sent.jump is None


def test_now_is_always_covered_while_no_fix_comes(run):
    """Consumers that ask for "now" find it, between any two steps, for a minute without a goal."""
    run.goal(place(0))
    newest = run.step().stamp_ns
    for _ in range(60 * 20):
        assert newest > run.now + PERIOD
        newest = run.step().stamp_ns


def test_stamps_strictly_increase_whatever_the_clock_does_short_of_a_restart(run):
    generator = np.random.default_rng(3)
    run.goal(place(0))
    last = 0
    for _ in range(2000):
        run.options['tolerance'] = float(generator.choice((0.0, 0.1, 2.0)))
        sent = run.step(int(generator.integers(-SECOND // 2, SECOND)))
        if sent is not None:
            assert sent.stamp_ns > last
            last = sent.stamp_ns


def test_a_paused_clock_sends_nothing_and_goes_on_when_it_runs_again(run):
    """Row 13: /clock paused."""
    run.goal(place(0))
    assert [run.step(0) for _ in range(3)] == [None] * 3
    first = run.step()
    assert [run.step(0) for _ in range(3)] == [None] * 3
    assert run.step().stamp_ns == first.stamp_ns + PERIOD


def test_no_clock_at_all_sends_nothing():
    """Row 13: use_sim_time without /clock, time stands at zero."""
    run = Run()
    run.now = 0
    run.motion = MapToOdom(0)
    run.goal(place(0))
    assert [run.step(0) for _ in range(5)] == [None] * 5


def test_a_clock_that_jumps_back_drops_the_goal_of_the_former_run(run):
    """Row 12: a bag that loops."""
    run.goal(place(1))
    former = run.step().stamp_ns
    assert run.step(-30 * SECOND) is None and run.step() is None
    run.goal(place(2))
    sent = run.step()
    assert sent.stamp_ns == run.now + SECOND // 10 < former
    np.testing.assert_array_equal(sent.map_from_odom, place(2))


def test_a_goal_of_the_new_run_survives_although_no_step_saw_the_jump(run):
    """Row 12: the first fix after the loop comes before the next step."""
    run.goal(place(1))
    run.step()
    run.now -= 30 * SECOND
    run.motion.clear_goal()
    run.goal(place(2))
    assert run.step().stamp_ns == run.now + SECOND // 10


def test_a_clock_that_jumps_ahead_sends_one_transform_and_no_burst(run):
    """Row 12: a suspended computer."""
    run.goal(place(0))
    run.step()
    run.goal(place(0.9))
    sent = run.step(3600 * SECOND)
    assert sent.stamp_ns == run.now + SECOND // 10
    assert sent.map_from_odom[0, 3] == pytest.approx(0.5)  # a second's motion at most
    assert run.step().stamp_ns == sent.stamp_ns + PERIOD


def test_a_correction_glides_at_the_limit_and_arrives(run):
    run.goal(place(0))
    run.step()
    run.goal(place(0.2))
    positions = [run.step().map_from_odom[0, 3] for _ in range(10)]
    steps = np.diff([0, *positions])
    np.testing.assert_allclose(steps[:8], 0.025, atol=1e-9)
    np.testing.assert_allclose(steps[8:], 0, atol=1e-9)
    assert positions[-1] == pytest.approx(0.2)


def test_the_limit_holds_for_the_base_where_it_is_now(run):
    """A turn about the base a hundred metres out: map -> odom moves by metres, the base not."""
    odom_from_base = place(100)
    before = place(0)
    after = odom_from_base @ place(0, yaw=0.3) @ np.linalg.inv(odom_from_base)
    run.odom_from_base = odom_from_base
    run.goal(before, place(-7))
    run.step()
    run.goal(after, place(-7))
    for _ in range(20):
        sent = run.step()
        assert sent.jump is None
        np.testing.assert_allclose((sent.map_from_odom @ odom_from_base)[:3, 3], (100, 0, 0),
                                   atol=1e-9)
    np.testing.assert_allclose(sent.map_from_odom, after, atol=1e-9)


def test_without_the_newest_odometry_that_of_the_goal_is_taken(run):
    odom_from_base = place(100)
    run.goal(place(0), odom_from_base)
    run.step()
    run.goal(odom_from_base @ place(0, yaw=0.3) @ np.linalg.inv(odom_from_base), odom_from_base)
    sent = run.step()
    assert sent.jump is None
    np.testing.assert_allclose((sent.map_from_odom @ odom_from_base)[:3, 3], (100, 0, 0),
                               atol=1e-9)


@pytest.mark.parametrize('goal, jump', [
    (place(3), (3.0, 0.0)), (place(0, yaw=1.0), (0.0, 1.0))])
def test_a_large_correction_is_one_jump_that_is_told_once(run, goal, jump):
    """Row 40: the snap is told once."""
    run.goal(place(0))
    run.step()
    run.goal(goal)
    sent = [run.step() for _ in range(5)]
    np.testing.assert_array_equal(sent[0].map_from_odom, goal)
    assert sent[0].jump == pytest.approx(jump)
    assert [one.jump for one in sent[1:]] == [None] * 4


def test_sending_ends_when_the_goal_is_too_old_and_resumes_with_the_next(run):
    run.options['stale_timeout'] = 0.52  # between the 10th and the 11th step
    run.goal(place(0))
    assert [run.step() is None for _ in range(12)] == [False] * 10 + [True] * 2
    run.goal(place(0))
    assert run.step() is not None


def test_after_clearing_the_next_goal_is_taken_at_once_and_is_no_jump(run):
    run.goal(place(0))
    last = run.step().stamp_ns
    run.motion.clear_goal()
    assert run.step() is None
    run.goal(place(0.5))
    sent = run.step()
    assert sent.jump is None and sent.stamp_ns > last
    np.testing.assert_array_equal(sent.map_from_odom, place(0.5))
