import threading

from hypothesis import given, settings, strategies
from nerfmatch_ros.ros.statistics import (
    DropCounter,
    Percentiles,
    Rate,
    StageTimes,
    Summary,
)
import numpy as np
import pytest


def test_drops_are_counted_by_kind_most_frequent_first():
    drops = DropCounter()
    for kind in ('stale', 'dark', 'stale'):
        drops.add(kind)
    assert list(drops.counts().items()) == [('stale', 2), ('dark', 1)]
    assert drops.total == 3
    drops.counts()['stale'] = 7
    assert drops.counts()['stale'] == 2


def test_no_drop_is_lost_between_threads():
    drops = DropCounter()
    threads = [threading.Thread(target=lambda: [drops.add('stale') for _ in range(5000)])
               for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert drops.counts() == {'stale': 20000}


def test_without_samples_there_is_no_summary():
    assert Percentiles().summary() is None


@settings(deadline=None, derandomize=True)
@given(strategies.lists(strategies.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_percentiles_are_samples_that_so_many_do_not_exceed(samples):
    ring = Percentiles(size=40)
    for sample in samples:
        ring.add(sample)
    kept = np.array(samples[-40:])
    summary = ring.summary()
    assert summary == Summary(
        np.percentile(kept, 50, method='inverted_cdf'),
        np.percentile(kept, 95, method='inverted_cdf'), kept.max())


@pytest.mark.parametrize('sample', [float('nan'), float('inf')])
def test_a_sample_that_is_not_finite_is_left_out(sample):
    ring = Percentiles()
    ring.add(1.0)
    ring.add(sample)
    assert ring.summary() == Summary(1.0, 1.0, 1.0)


def test_stages_have_percentiles_of_their_own_and_those_without_samples_none():
    times = StageTimes('total', 'decode')
    times.add('localize/match', 0.25)
    times.add('decode', 0.5)
    times.add('decode', 1.5)
    assert times.summaries() == {
        'decode': Summary(0.5, 1.5, 1.5), 'localize/match': Summary(0.25, 0.25, 0.25)}
    assert list(times.summaries()) == ['decode', 'localize/match']
    assert times.summary('decode') == times.summaries()['decode']
    assert times.summary('total') is None and times.summary('never heard of') is None


def test_a_stage_may_appear_while_the_stages_are_listed():
    times, listed = StageTimes(), []
    ended = threading.Event()

    def look():
        while not ended.is_set():
            listed.append(len(times.summaries()))

    thread = threading.Thread(target=look)
    thread.start()
    for k in range(2000):
        times.add(f'stage {k}', 1.0)
    ended.set()
    thread.join()
    assert listed == sorted(listed) and len(times.summaries()) == 2000


@pytest.mark.parametrize('hertz', [0.5, 5.0, 30.0, 1000.0])
@pytest.mark.parametrize('start', [0.0, 0.37, 12345.678])
def test_a_steady_stream_has_its_rate(hertz, start):
    rate = Rate(window=5.0)
    times = start + np.arange(int(12 * hertz)) / hertz
    for now in times:
        rate.add(now)
    now = times[-1]
    assert rate.per_second(now) == pytest.approx(hertz, abs=0.21)  # one event more or less in 5 s


def test_a_rate_is_right_soon_after_the_start():
    rate = Rate(window=5.0)
    for now in np.arange(100.0, 101.0, 0.1):
        rate.add(now)
    assert rate.per_second(101.0) == pytest.approx(10.0)


def test_a_stream_that_ends_comes_to_zero_and_goes_on_after_a_pause():
    rate = Rate(window=5.0)
    assert rate.per_second(3.0) == 0.0
    for now in np.arange(0.0, 10.0, 0.1):
        rate.add(now)
    assert 4.0 < rate.per_second(12.5) < 6.0
    assert rate.per_second(16.0) == 0.0
    rate.add(100.0)
    assert 0.0 < rate.per_second(100.0) <= 1.0


def test_a_flood_takes_no_memory():
    rate = Rate(window=5.0)
    for now in np.arange(0.0, 60.0, 0.001):
        rate.add(now)
    assert len(rate._buckets) <= 11
