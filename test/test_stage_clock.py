"""Stages are timed by their path, summed over their runs, and forgotten when taken."""

import time

from nerfmatch_ros.stage_clock import StageClock
import pytest


def test_stages_within_stages_have_their_own_names_and_sum_up():
    clock = StageClock()
    with clock.stage('refine'):
        for _ in range(2):
            with clock.stage('match'):
                time.sleep(0.01)
    seconds = clock.take()
    assert list(seconds) == ['refine/match', 'refine']
    assert seconds['refine'] >= seconds['refine/match'] >= 0.02
    assert clock.take() == {}


def test_a_stage_that_fails_is_timed_and_left():
    clock = StageClock()
    with pytest.raises(ValueError), clock.stage('match'):
        raise ValueError
    with clock.stage('fine'):
        pass
    assert list(clock.take()) == ['match', 'fine']
