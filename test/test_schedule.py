"""Schedules of refinement: which pose, which matches and which alignment are left at the end."""

import math

from fake_localizer import estimate, moved
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.alignment import Alignment
from nerfmatch_ros.localization.schedule import checked_schedule, run_schedule
import numpy as np
import pytest

START = np.eye(4)


def step_by(metres, log):
    """Give a step that matches and moves along x, and one that aligns and moves along y."""
    def match(pose):
        log.append(('match', pose[:3, 3].tolist()))
        return estimate(moved(pose, metres))

    def align(pose):
        log.append(('photometric', pose[:3, 3].tolist()))
        return Alignment(moved(pose, 0, metres), '', covariance=np.eye(6))
    return {'match': match, 'photometric': align}


def refused(reason, kind=PoseEstimate):
    if kind is PoseEstimate:
        return lambda pose: PoseEstimate(None, reason, None, 3, 80, math.nan)
    return lambda pose: Alignment(None, reason)


def test_each_step_starts_where_the_one_before_ended():
    log = []
    found = run_schedule(START, ('match', 'photometric', 'match'), step_by(0.1, log))
    np.testing.assert_allclose([start for _, start in log],
                               [(0, 0, 0), (0.1, 0, 0), (0.1, 0.1, 0)])
    np.testing.assert_allclose(found.map_from_camera[:3, 3], (0.2, 0.1, 0))
    assert found.reason == '' and found.matched.inliers == 50
    assert found.aligned is None  # what was aligned before the last match says nothing of its pose


def test_an_alignment_goes_with_the_matches_before_it():
    found = run_schedule(START, ('match', 'photometric'), step_by(0.1, []))
    np.testing.assert_allclose(found.matched.map_from_camera[:3, 3], (0.1, 0, 0))
    np.testing.assert_allclose(found.aligned.map_from_camera[:3, 3], (0.1, 0.1, 0))
    np.testing.assert_array_equal(found.map_from_camera, found.aligned.map_from_camera)


def test_a_first_match_that_fails_ends_the_schedule():
    steps = {**step_by(0.1, []), 'match': refused('too few')}
    for schedule in (('match', 'photometric'), ('photometric', 'match')):
        found = run_schedule(START, schedule, steps)
        assert found.map_from_camera is None and found.reason == 'too few'
        assert found.matched is None and found.aligned is None


def test_a_later_match_that_fails_takes_back_what_was_aligned():
    answers = iter([estimate(moved(START, 0.1)), refused('lost sight')(None)])
    steps = {**step_by(0.1, []), 'match': lambda pose: next(answers)}
    found = run_schedule(START, ('match', 'photometric', 'match'), steps)
    np.testing.assert_allclose(found.map_from_camera[:3, 3], (0.1, 0, 0))
    assert found.aligned is None and found.matched.map_from_camera is not None


def test_an_alignment_that_fails_is_left_out_unless_nothing_else_is_there():
    steps = {**step_by(0.1, []), 'photometric': refused('flat picture', Alignment)}
    found = run_schedule(START, ('match', 'photometric'), steps)
    np.testing.assert_allclose(found.map_from_camera[:3, 3], (0.1, 0, 0))
    assert found.aligned is None
    alone = run_schedule(START, ('photometric',), steps)
    assert alone.map_from_camera is None and alone.reason == 'flat picture'


def test_the_start_is_left_as_it_was():
    start = START.copy()
    run_schedule(start, ('match', 'photometric'), step_by(0.1, []))
    np.testing.assert_array_equal(start, START)


def test_an_unknown_step_is_named():
    assert checked_schedule(['match', 'inerf']) == ('match', 'inerf')
    with pytest.raises(ConfigError, match="'photo' is unknown; use match"):
        checked_schedule(('match', 'photo'))
    with pytest.raises(ConfigError, match='is a string'):
        checked_schedule('match')
