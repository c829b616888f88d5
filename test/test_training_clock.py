"""The training clock: steps or minutes, going on after an interruption."""

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.training_clock import TrainingClock
import pytest


@pytest.fixture
def time(monkeypatch):
    """A clock that stands still until it is moved: time[0] seconds."""
    now = [100.0]
    monkeypatch.setattr('time.monotonic', lambda: now[0])
    return now


def run(clock, time, seconds, most=10 ** 6):
    clock.pause()
    steps = 0
    while clock.running and steps < most:
        time[0] += seconds
        clock.tick()
        steps += 1
    return steps


def test_without_minutes_the_steps_count(time):
    clock = TrainingClock(steps=7)
    assert clock.progress == 0 and run(clock, time, 60.0) == 7
    assert clock.progress == 1 and not clock.running


def test_with_minutes_a_slow_machine_ends_by_time_and_a_fast_one_by_steps(time):
    fast = TrainingClock(steps=50, minutes=2)
    assert run(fast, time, 1.0) == 50
    slow = TrainingClock(steps=50, minutes=2)
    assert run(slow, time, 10.0) == pytest.approx(12, abs=2)
    assert fast.progress == slow.progress == 1


def test_pauses_are_left_out(time):
    clock = TrainingClock(steps=1000, minutes=2)
    clock.tick()
    time[0] += 30
    clock.tick()
    assert clock.progress == pytest.approx(0.25)
    clock.pause()
    time[0] += 1000
    clock.tick()
    assert clock.progress == pytest.approx(0.25)


@pytest.mark.parametrize('minutes', [None, 1.0])
def test_an_interrupted_training_goes_on(time, minutes):
    whole = TrainingClock(steps=40, minutes=minutes)
    needed = run(whole, time, 1.5)
    first = TrainingClock(steps=40, minutes=minutes)
    done = run(first, time, 1.5, most=13)
    second = TrainingClock(steps=40, minutes=minutes)
    second.restore(first.state())
    assert second.progress == first.progress and second.step == 13
    time[0] += 5000
    assert done + run(second, time, 1.5) == pytest.approx(needed, abs=1)


@pytest.mark.parametrize('steps, minutes', [(0, None), (-1, 2.0), (5, 0.0), (5, -1.0),
                                            (5, float('nan'))])
def test_trainings_without_end_or_beginning_are_refused(steps, minutes):
    with pytest.raises(ConfigError, match='must be positive'):
        TrainingClock(steps=steps, minutes=minutes)
