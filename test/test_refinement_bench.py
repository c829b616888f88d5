import csv
from dataclasses import dataclass, replace
import json
import math
from types import SimpleNamespace

import cv2
from fake_localizer import estimate, FakeLocalizer, moved, queries
from nerfmatch_ros import cli
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.evaluation import refinement_bench, refinement_report
from nerfmatch_ros.evaluation.refinement_bench import (
    bench_refinement,
    evenly_chosen,
    perturbations,
    perturbed,
    RefinementBenchConfig,
    REFINERS,
    schedules_of,
    summarize,
)
from nerfmatch_ros.geometry.pose import interpolate, pose_distance
import numpy as np
import pytest
import torch

# What is left of the error after a step; 'features' never has a pose, 'inerf' only from near by.
LEFT = {'match': 0.5, 'views': 0.25, 'photometric': 0.1, 'inerf': 0.8}
SECONDS = {'match': 0.1, 'views': 0.5, 'photometric': 0.2, 'features': 0.3, 'inerf': 5.0}
START_SECONDS = {'retrieval': 0.02, 'match': 0.04}
STARTS = ['retrieval', 'match', '2cm_0.5deg', '5cm_1deg', '10cm_2.5deg', '30cm_8deg']


def distance(first, second):
    metres, radians = pose_distance(torch.from_numpy(first), torch.from_numpy(second))
    return float(metres), math.degrees(radians)


@dataclass(frozen=True)
class FakeConfig:
    rounds: int = 3
    refine: tuple = ('match', 'photometric')


class FakeRefiner(FakeLocalizer):
    """Knows the true poses and closes a fixed share of the gap to them in each step."""

    map_sha256 = '0123456789abcdef'

    def __init__(self, images, fake_config=FakeConfig(), unfound=()):
        super().__init__([
            estimate(None, reason='dark') if k in unfound
            else estimate(moved(image.map_from_camera, 0.04)) for k, image in enumerate(images)])
        self.truth = [image.map_from_camera for image in images]
        self.config = fake_config
        self.clock = 0.0
        self.calls = []

    def localize(self, image, prior=None):
        assert self.config.rounds == 0, 'the start is the fast path alone'
        self.clock += START_SECONDS['match']
        return super().localize(image)

    def similar_views(self, image, count):
        self.asked.append(image)
        self.clock += START_SECONDS['retrieval']
        truth = self.truth[int(image.rgb()[0, 0, 0])]
        return np.array([moved(truth, 0, 0.4, 0, 0.2), np.eye(4)])[:count]

    def refine(self, image, map_from_camera, schedule):
        assert self.config.rounds == 3, 'the configuration of the map refines'
        self.asked.append(image)
        index = int(image.rgb()[0, 0, 0])
        self.calls.append((index, tuple(schedule), map_from_camera))
        truth, pose = self.truth[index], map_from_camera
        for step in schedule:
            self.clock += SECONDS[step]
            if step == 'features' or step == 'inerf' and distance(pose, truth)[0] > 0.2:
                return estimate(None, reason=f'{step} leads nowhere')
            pose = interpolate(torch.from_numpy(truth), torch.from_numpy(pose), LEFT[step]).numpy()
        return estimate(pose)


@pytest.fixture
def bench(monkeypatch):
    """Run a comparison on a clock that only the fake localizer moves; give report and all."""
    def run(count=4, config=None, **options):
        images = queries(count)
        localizer = FakeRefiner(images, **options)
        monkeypatch.setattr(refinement_bench, 'time',
                            SimpleNamespace(perf_counter=lambda: localizer.clock))
        attempts = bench_refinement(localizer, images, config)
        report = summarize(attempts, localizer.scene_map.extent, default=localizer.config.refine)
        return SimpleNamespace(
            report=report, results=report['results'], attempts=attempts, localizer=localizer,
            images=images)
    return run


def test_every_refiner_starts_from_every_start_on_the_same_images(bench):
    made = bench()
    assert list(made.results) == STARTS
    assert all(list(by_refiner) == list(REFINERS) for by_refiner in made.results.values())
    starts = {}
    for index, _, pose in made.localizer.calls:
        starts.setdefault(index, set()).add(pose.tobytes())
    assert {index: len(poses) for index, poses in starts.items()} == dict.fromkeys(range(4), 6)
    assert len(made.localizer.calls) == 4 * 6 * 6
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
    assert all(by_refiner['features'] == {
        'median_translation_m': None, 'median_rotation_deg': None, 'p90_translation_m': None,
        'recall': {'5cm_5deg': 0, '1pct_extent_1deg': 0}, 'refused': 1,
        'median_seconds': pytest.approx(0.3)} for by_refiner in results.values())


def test_no_start_is_not_refined_and_keeps_its_reason(bench):
    made = bench(unfound=(0, 1, 2, 3))
    lost = [attempt for attempt in made.attempts if attempt.start == 'match']
    assert len(lost) == 4 * len(REFINERS)
    assert all(attempt.reason == 'dark' and attempt.map_from_camera is None for attempt in lost)
    assert made.results['match']['views']['median_seconds'] is None
    assert made.results['match']['none']['median_seconds'] == pytest.approx(0.04)
    assert len(made.localizer.calls) == 4 * 5 * 6
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


def test_files_are_complete_and_agree(bench, tmp_path):
    made = bench(unfound=(1,))
    refinement_report.write_results(made.attempts, made.report, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        'refinement.json', 'refinement.csv', 'refinement.png'}
    assert json.loads((tmp_path / 'refinement.json').read_text()) == made.report
    rows = list(csv.DictReader((tmp_path / 'refinement.csv').open()))
    assert len(rows) == 4 * 6 * len(REFINERS)
    views = [row for row in rows if (row['start'], row['refiner']) == ('match', 'views')]
    assert [row['localized'] for row in views] == ['1', '0', '1', '1']
    assert float(views[0]['translation_error_m']) == pytest.approx(0.01)
    assert float(views[0]['seconds']) == pytest.approx(0.5)
    assert views[1]['translation_error_m'] == '' and views[1]['reason'] == 'dark'
    assert cv2.imread(str(tmp_path / 'refinement.png')).std() > 5


@pytest.mark.parametrize('left', [0.0, math.inf])
def test_exact_and_hopeless_refiners_can_be_drawn(bench, tmp_path, left):
    made = bench(count=1, config=RefinementBenchConfig(refiners=('none', 'views')))
    for by_refiner in made.results.values():
        for figures in by_refiner.values():
            value = left if math.isfinite(left) else None
            figures.update(median_translation_m=value, median_rotation_deg=value)
    refinement_report.write_results(made.attempts, made.report, tmp_path)
    assert cv2.imread(str(tmp_path / 'refinement.png')).std() > 5


def test_section_shows_every_figure_and_the_closest_in_bold(bench):
    made = bench()
    lines = refinement_report.section(made.report, 'kitchen').splitlines()
    assert lines[0] == '## kitchen'
    assert '4 images, extent 3 m, default: match, photometric' in lines[2]
    row = next(line for line in lines if line.startswith('| 10cm_2.5deg'))
    assert row == ('| 10cm_2.5deg | 10 / 2.5 | 5 / 1.25 | 2.5 / 0.625 | 1 / 0.25 | - / - | '
                   '8 / 2 | **0.5 / 0.125** | 20 / 20 |')
    inerf = '| 10cm_2.5deg | inerf | 8 | 2 | 8 | 0.00 | 0.00 | 0.00 | 5000 |'
    assert inerf in lines and len(lines) > 6 * len(REFINERS)
    table = [line.count('|') for line in lines if line.startswith('|')]
    assert set(table[:8]) == {len(REFINERS) + 3} and set(table[8:]) == {10}


def test_a_document_keeps_what_is_not_of_this_map():
    put = refinement_report.with_section
    first = put('', 'kitchen', 'old\n')
    assert first.startswith('# What refinement gains')
    both = put(first, 'facade', 'other\n')
    again = put(both.replace('# What', '# Mine: what'), 'kitchen', 'new\n')
    assert again == both.replace('# What', '# Mine: what').replace('old\n', 'new\n')
    assert put(again, 'kitchen', 'new\n') == again
    for broken in (both.replace('<!-- end of bench refine: facade -->', ''),
                   both.replace('<!-- bench refine: facade -->', '')):
        with pytest.raises(ConfigError, match='only one of the lines'):
            put(broken, 'facade', 'new\n')


@pytest.fixture
def photographs(tmp_path):
    """Folder of a data set with four queries."""
    folder = tmp_path / 'photographs'
    folder.mkdir()
    frames = []
    for index, image in enumerate(queries(4)):
        name = f'{index}.png'
        cv2.imwrite(str(folder / name), image.pixels[..., ::-1])
        frames.append(transforms_json.frame_entry(
            replace(image, name=name, split='test'), folder))
    transforms_json.write(folder / 'transforms.json', frames)
    return folder


def run(*arguments):
    """Run the verb and give its exit code."""
    return cli.main(['bench', 'refine', *map(str, arguments)])


def test_command_prints_a_table_or_json_and_writes_what_is_asked(
        photographs, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(cli, '_load', lambda folder, device: FakeRefiner(queries(4)))
    monkeypatch.setenv('COLUMNS', '200')
    document = tmp_path / 'docs' / 'refinement.md'
    arguments = ['--map', 'maps/kitchen', '--images', photographs, '--markdown', document]
    assert run(*arguments, '--output', tmp_path / 'out') == 0
    table = capsys.readouterr().out
    assert all(word in table for word in (*STARTS, *REFINERS, 'gain'))
    assert '<!-- bench refine: kitchen -->' in document.read_text()
    written = json.loads((tmp_path / 'out/refinement.json').read_text())
    assert written['queries'] == 4 and written['map_sha256'] == '0123456789abcdef'
    assert run(*arguments, '--json', '--limit', '2', '--scale-with-extent', '--refiners', 'none',
               'match+views') == 0
    report = json.loads(capsys.readouterr().out)
    assert report['queries'] == 2
    assert list(report['results']['match']) == ['none', 'match+views']
    assert '25.7cm_8deg' in report['results']  # 30 cm times 3 m / 3.5 m


def test_a_damaged_document_is_refused_before_the_work(
        photographs, monkeypatch, tmp_path, capsys):
    localizer = FakeRefiner(queries(4))
    monkeypatch.setattr(cli, '_load', lambda folder, device: localizer)
    document = tmp_path / 'refinement.md'
    document.write_text('<!-- bench refine: kitchen -->\n')
    assert run('--map', 'kitchen', '--images', photographs, '--markdown', document) == 2
    assert 'only one of the lines' in capsys.readouterr().err
    assert not localizer.calls and document.read_text() == '<!-- bench refine: kitchen -->\n'
