from dataclasses import replace
from functools import partial
import math

from fake_localizer import queries
from fake_refiner import (
    compare,
    distance,
    FakeConfig,
    FakeRefiner,
    LEFT,
    SECONDS,
    START_SECONDS,
    STARTS,
)
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.evaluation.refinement_bench import (
    bench_refinement,
    evenly_chosen,
    perturbations,
    perturbed,
    RefinementBenchConfig,
    REFINERS,
    schedules_of,
)
import numpy as np
import pytest


@pytest.fixture
def bench(monkeypatch):
    """Give the comparison of refiners, whose clock is the fake localizer's."""
    return partial(compare, monkeypatch)


def test_every_refiner_starts_from_every_start_on_the_same_images(bench):
    made = bench()
    assert list(made.results) == STARTS
    assert all(list(by_refiner) == list(REFINERS) for by_refiner in made.results.values())
    starts = {}
    for index, _, pose in made.localizer.calls:
        starts.setdefault(index, set()).add(pose.tobytes())
    assert {index: len(poses) for index, poses in starts.items()} == dict.fromkeys(range(4), 6)
    assert len(made.localizer.calls) == 4 * 6 * (len(REFINERS) - 1)
    assert made.report['queries'] == 4


def test_errors_are_those_that_the_refiner_leaves(bench):
    results = bench().results
    for start, metres in (('retrieval', 0.4), ('match', 0.04), ('2cm_0.5deg', 0.02),
                          ('30cm_8deg', 0.3)):
        for refiner, left in {'none': 1, **LEFT, 'default': 0.05}.items():
            found = results[start][refiner]
            if refiner == 'inerf' and metres > 0.2:
                assert found['median_translation_m'] is None and found['refused'] == 1
                continue
            assert found['median_translation_m'] == pytest.approx(metres * left, rel=1e-5)
            assert found['p90_translation_m'] == pytest.approx(metres * left, rel=1e-5)
            assert found['refused'] == 0
    assert results['30cm_8deg']['views']['median_rotation_deg'] == pytest.approx(2, rel=1e-5)
    assert results['2cm_0.5deg']['none']['recall'] == {'5cm_5deg': 1, '1pct_extent_1deg': 1}
    assert results['5cm_1deg']['none']['recall']['5cm_5deg'] == 1
    assert results['10cm_2.5deg']['none']['recall']['5cm_5deg'] == 0
    # 4 cm is more than 1 % of the 3 m of this map.
    assert results['match']['none']['recall'] == {'5cm_5deg': 1, '1pct_extent_1deg': 0}


def test_refusals_have_infinite_error_and_count(bench):
    results = bench(unfound=(1,)).results
    assert results['match']['none']['refused'] == results['match']['views']['refused'] == 0.25
    assert results['match']['views']['recall']['5cm_5deg'] == 0.75
    assert results['match']['views']['median_translation_m'] == pytest.approx(0.01)
    assert results['match']['views']['p90_translation_m'] is None
    assert results['retrieval']['views']['refused'] == 0  # from there the image has a start
    assert results['30cm_8deg']['inerf'] == {
        'median_translation_m': None, 'median_rotation_deg': None, 'p90_translation_m': None,
        'recall': {'5cm_5deg': 0, '1pct_extent_1deg': 0}, 'refused': 1,
        'median_seconds': pytest.approx(5.0)}


def test_no_start_is_not_refined_and_keeps_its_reason(bench):
    made = bench(unfound=(0, 1, 2, 3))
    lost = [attempt for attempt in made.attempts if attempt.start == 'match']
    assert len(lost) == 4 * len(REFINERS)
    assert all(attempt.reason == 'dark' and attempt.map_from_camera is None for attempt in lost)
    assert made.results['match']['views']['median_seconds'] is None
    assert made.results['match']['none']['median_seconds'] == pytest.approx(0.04)
    assert len(made.localizer.calls) == 4 * 5 * (len(REFINERS) - 1)
    assert made.report['gain']['match'] == {'translation': None, 'rotation': None}


def test_times_are_those_of_the_refinement_alone(bench):
    for start, by_refiner in bench().results.items():
        seconds = {name: figures['median_seconds'] for name, figures in by_refiner.items()}
        found = START_SECONDS.get(start)
        expected = {'none': found, **SECONDS, 'default': 0.1 + 0.2}
        assert seconds == {name: value if value is None else pytest.approx(value)
                           for name, value in expected.items()}


def test_gain_is_the_ratio_of_medians(bench):
    made = bench()
    assert list(made.report['gain']) == STARTS
    assert made.report['gain']['10cm_2.5deg'] == {
        'translation': pytest.approx(20), 'rotation': pytest.approx(20)}
    assert made.report['default_schedule'] == ['match', 'photometric']
    alone = bench(config=RefinementBenchConfig(refiners=('none', 'match')))
    assert alone.report['gain'] == {}


def test_equal_schedules_run_once_and_an_empty_one_is_the_start(bench):
    chosen = RefinementBenchConfig(refiners=('match', 'none', 'default'))
    made = bench(config=chosen)
    assert len({schedule for _, schedule, _ in made.localizer.calls}) == 2
    images = queries(2)
    same = FakeRefiner(images, FakeConfig(refine=('match',)))
    bench_refinement(same, images, chosen)
    assert [schedule for _, schedule, _ in same.calls] == [('match',)] * 2 * 6
    idle = FakeRefiner(images, FakeConfig(refine=()))
    attempts = bench_refinement(idle, images, RefinementBenchConfig(refiners=('none', 'default')))
    assert not idle.calls
    for first, second in zip(attempts[::2], attempts[1::2]):
        np.testing.assert_array_equal(first.map_from_camera, second.map_from_camera)


def test_steps_are_joined_by_plus():
    schedules = schedules_of(('none', 'match+photometric', 'default'), ['views'])
    assert schedules == {
        'none': (), 'match+photometric': ('match', 'photometric'), 'default': ('views',)}


def test_the_truth_serves_the_start_only(bench):
    made = bench()
    assert made.localizer.asked
    for image in made.localizer.asked:
        assert image.map_from_camera is None and image.depth_map() is None
    truths = {image.map_from_camera.tobytes() for image in made.images}
    assert truths.isdisjoint(pose.tobytes() for _, _, pose in made.localizer.calls)
    assert made.localizer.config == FakeConfig()


def test_configuration_comes_back_when_the_start_fails():
    images = queries(1)
    localizer = FakeRefiner(images)
    localizer.answers = []
    with pytest.raises(IndexError):
        bench_refinement(localizer, images)
    assert localizer.config == FakeConfig()


def test_perturbation_has_its_lengths_in_scattered_directions():
    truth = queries(3)[1].map_from_camera
    poses = [perturbed(truth, 0.3, 8.0, (0, k)) for k in range(200)]
    for pose in poses:
        assert distance(pose, truth) == pytest.approx((0.3, 8.0), rel=1e-5)
    offsets = np.array([pose[:3, 3] - truth[:3, 3] for pose in poses]) / 0.3
    assert np.linalg.norm(offsets.mean(axis=0)) < 0.2
    np.testing.assert_allclose(offsets.T @ offsets / 200, np.eye(3) / 3, atol=0.12)


def test_a_start_depends_on_its_image_and_the_seed_alone():
    def starts(images, seed=0):
        config = RefinementBenchConfig(refiners=('none',), seed=seed)
        attempts = bench_refinement(FakeRefiner(queries(4)), images, config)
        return {(attempt.image.name, attempt.start): attempt.map_from_camera.tobytes()
                for attempt in attempts}
    images = queries(4)
    every, last = starts(images), starts(images[3:])
    assert last == {key: pose for key, pose in every.items() if key[0] == 'query-003'}
    assert len(set(every.values())) == len(every)
    other = starts(images, seed=1)
    changed = {start for name, start in every if every[name, start] != other[name, start]}
    assert changed == set(STARTS[2:])


def test_perturbations_follow_the_extent_where_asked():
    config = RefinementBenchConfig()
    assert list(perturbations(config, 35.0)) == STARTS[2:]
    scaled = perturbations(replace(config, scale_with_extent=True), 35.0)
    assert list(scaled) == ['20cm_0.5deg', '50cm_1deg', '100cm_2.5deg', '300cm_8deg']
    assert scaled['300cm_8deg'] == pytest.approx((3.0, 8.0))
    with pytest.raises(ConfigError, match='extent of the map is 0 m'):
        perturbations(replace(config, scale_with_extent=True), 0.0)


def test_a_limit_spreads_over_all_images():
    images = queries(10)
    assert evenly_chosen(images, None) == evenly_chosen(images, 10) == images
    names = [image.name for image in evenly_chosen(images, 4)]
    assert names == ['query-000', 'query-003', 'query-006', 'query-009']
    assert len(evenly_chosen(images, 1)) == 1
    with pytest.raises(ConfigError, match='limit of 0'):
        evenly_chosen(images, 0)


@pytest.mark.parametrize(('values', 'words'), [
    ({'refiners': ()}, 'at least one'),
    ({'refiners': ('match', 'match')}, 'each once'),
    ({'refiners': ('match+',)}, 'match\\+'),
    ({'perturbations': ((-0.1, 1.0),)}, '-0.1 m'),
    ({'perturbations': ((math.nan, 1.0),)}, 'nan m'),
    ({'perturbations': ((0.1, 180.0),)}, '180 degrees'),
])
def test_nonsense_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        RefinementBenchConfig(**values)


def test_images_without_truth_are_refused():
    with pytest.raises(DataError, match='no images'):
        bench_refinement(FakeRefiner([]), [])
    image = queries(1)[0]
    localizer = FakeRefiner([image])
    with pytest.raises(DataError, match='query-000'):
        bench_refinement(localizer, [replace(image, map_from_camera=None)])
