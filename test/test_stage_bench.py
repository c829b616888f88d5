"""Timing by stage: what is measured, in which order, and how it is summed up."""

from dataclasses import replace
from types import SimpleNamespace

from fake_localizer import estimate, moved, queries
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.evaluation import stage_recorder
from nerfmatch_ros.evaluation.stage_bench import (
    accuracy,
    bench_stages,
    medians,
    Query,
    ratios,
    Run,
    sources,
)
from nerfmatch_ros.evaluation.stage_recorder import StageCost, StageRecorder
import numpy as np
import pytest

SECONDS = {'encode': 0.3, 'match': 0.1, 'refine': 0.5}


class Time:
    """A clock that only the fake way moves; two threads work all the time."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(stage_recorder.time, 'process_time', lambda: 2 * self.now)
        monkeypatch.setattr('nerfmatch_ros.stage_clock.time', SimpleNamespace(
            perf_counter=lambda: self.now))


class FakeWay:
    """Takes known seconds for each stage, more for later images, and notes what it was given."""

    def __init__(self, time, factor=1.0, off=0.01, log=None):
        self.time, self.factor, self.off = time, factor, off
        self.clock, self.given, self.log = None, [], [] if log is None else log

    def localize(self, image, prior=None):
        index = int(image.rgb()[0, 0, 0])
        self.given.append((index, image, prior))
        self.log.append((self.factor, index))
        for name, seconds in SECONDS.items():
            with self.clock.stage(name):
                self.time.now += self.factor * seconds * (1 + index)
                if name == 'refine':
                    for _ in range(2):
                        with self.clock.stage('match'):
                            self.time.now += self.factor
        self.time.now += 0.01 * self.factor
        return estimate(moved(queries(4)[index].map_from_camera, self.off))


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


def asked(count=4):
    return [Query(image, np.eye(4)) for image in queries(count)]


def test_a_recorder_measures_both_times_and_counts_runs(time):
    recorder = StageRecorder()
    for seconds in (1.0, 2.0):
        with recorder.stage('refine'), recorder.stage('match'):
            time.now += seconds
    taken = recorder.take()
    assert taken == {'refine': StageCost(3.0, 6.0, 2), 'refine/match': StageCost(3.0, 6.0, 2)}
    assert recorder.take() == {}


def test_each_image_is_localized_in_each_way_in_turns_after_a_first_one(time):
    log = []
    ways = {'a': FakeWay(time, 1.0, log=log), 'b': FakeWay(time, 3.0, log=log)}
    runs = bench_stages(ways, asked(2), repeats=2)
    assert log == [(1.0, 0), (3.0, 0),  # not measured
                   (1.0, 0), (3.0, 0), (3.0, 1), (1.0, 1), (3.0, 0), (1.0, 0), (1.0, 1), (3.0, 1)]
    assert len(runs) == 8 and ways['a'].clock is None


def test_a_way_gets_pixels_camera_and_prior_and_nothing_of_the_truth(time):
    way = FakeWay(time)
    bench_stages({'a': way}, asked(2), repeats=1)
    for _, image, prior in way.given:
        assert image.map_from_camera is None and image.depth is None
        assert image.pixels is not None
        np.testing.assert_array_equal(prior, np.eye(4))


def test_medians_are_over_images_and_stages_keep_their_order(time):
    runs = bench_stages({'a': FakeWay(time)}, asked(3), repeats=2)
    table = medians(runs)
    assert list(table) == ['decode', 'encode', 'match', 'refine', 'refine/match', 'other', 'total']
    assert table['encode'] == {'wall': pytest.approx(0.6), 'cpu': pytest.approx(1.2), 'runs': 1}
    assert table['refine']['wall'] == pytest.approx(3.0)
    assert table['refine/match'] == {'wall': pytest.approx(2), 'cpu': pytest.approx(4), 'runs': 2}
    assert table['other']['wall'] == pytest.approx(0.01)
    # decode 0, encode .6, match .2, refine 1 + 2, other .01
    assert table['total']['wall'] == pytest.approx(3.81)


def test_the_median_of_the_repeats_counts_and_a_stage_not_run_is_zero():
    image = queries(1)[0]
    pose = estimate(image.map_from_camera)
    runs = [Run('a', image, pose, {'total': StageCost(wall, wall), **more}) for wall, more in (
        (1.0, {}), (9.0, {'retrieval': StageCost(1.0, 1.0)}), (2.0, {}))]
    table = medians(runs)
    assert table['total']['wall'] == 2.0
    assert table['retrieval'] == {'wall': 0.0, 'cpu': 0.0, 'runs': 0.0}


def test_accuracy_counts_who_has_no_pose():
    images = queries(4)
    runs = [Run('a', image, estimate(moved(image.map_from_camera, 0.03) if k else None), {})
            for k, image in enumerate(images)]
    found = accuracy(runs + runs)
    assert found['median_translation_m'] == pytest.approx(0.03)
    assert found['without_pose'] == 0.25


def test_sources_count_images():
    poses = [replace(estimate(None), source=source) for source in ('splatted', 'splatted', '')]
    runs = [Run('a', image, pose, {}) for image, pose in zip(queries(3), poses)]
    assert sources(runs + runs) == {'splatted': 2, '': 1}


def test_ratios_are_of_the_totals(time):
    ways = {'localizer': FakeWay(time), 'plain': FakeWay(time, 8.0)}
    runs = bench_stages(ways, asked(3), repeats=1)
    tables = {name: medians([run for run in runs if run.way == name]) for name in ways}
    assert ratios(tables) == {'plain': {'wall': pytest.approx(8), 'cpu': pytest.approx(8)}}


def test_what_cannot_be_measured_is_refused(time):
    way = FakeWay(time)
    with pytest.raises(ConfigError, match='0 repeats'):
        bench_stages({'a': way}, asked(), repeats=0)
    with pytest.raises(DataError, match='no images'):
        bench_stages({'a': way}, [])
    nameless = [Query(replace(queries(1)[0], map_from_camera=None))]
    with pytest.raises(DataError, match='no true pose, the first is query-000'):
        bench_stages({'a': way}, nameless)
    assert not way.given
