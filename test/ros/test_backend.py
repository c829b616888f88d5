"""The localizer as a node loads it: warm on every way that its first images take."""

from collections import Counter
from contextlib import contextmanager

from nerfmatch_ros.demo import DEMO_MAP
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.ros.backend import load_localizer, warm_up, with_clock
from nerfmatch_ros.stage_clock import StageClock


class Counts:
    """Stands in for a clock and counts how often each stage ran."""

    def __init__(self):
        self.stages = Counter()

    @contextmanager
    def stage(self, name):
        self.stages[name] += 1
        yield


def test_the_warm_up_looks_from_a_pose_and_searches_the_whole_map():
    localizer = Localizer.load(DEMO_MAP)
    localizer.clock = Counts()
    warm_up(localizer)
    stages = localizer.clock.stages
    assert stages['encode'] == stages['reference'] == 1
    assert stages['match'] == stages['fine'] == stages['pnp'] == 2


def test_the_time_of_loading_is_told_by_its_parts():
    clock = StageClock()
    load_localizer(DEMO_MAP, device='cpu', threads=None, warm=False, clock=clock)
    assert set(clock.take()) == {'import', 'load'}


def test_a_clock_is_given_to_who_takes_one():
    localizer = Localizer.load(DEMO_MAP)
    assert localizer.clock is None, 'nobody would take the times'
    assert with_clock(localizer, 'cpu') is localizer and localizer.clock.take() == {}
    stand_in = object()
    assert with_clock(stand_in, 'cpu') is stand_in
