import csv
from dataclasses import replace
from functools import partial
import json
import math

import cv2
from fake_localizer import queries
from fake_refiner import compare, FakeRefiner, STARTS
from nerfmatch_ros import bench_verbs, cli
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.evaluation import refinement_report
from nerfmatch_ros.evaluation.refinement_bench import RefinementBenchConfig, REFINERS
import pytest


@pytest.fixture
def bench(monkeypatch):
    """Give the comparison of refiners, whose clock is the fake localizer's."""
    return partial(compare, monkeypatch)


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
    assert row == ('| 10cm_2.5deg | 10 / 2.5 | 5 / 1.25 | 2.5 / 0.625 | 1 / 0.25 | '
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
    monkeypatch.setattr(bench_verbs, 'load_map_localizer',
                        lambda folder, device: FakeRefiner(queries(4)))
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
    monkeypatch.setattr(bench_verbs, 'load_map_localizer', lambda folder, device: localizer)
    document = tmp_path / 'refinement.md'
    document.write_text('<!-- bench refine: kitchen -->\n')
    assert run('--map', 'kitchen', '--images', photographs, '--markdown', document) == 2
    assert 'only one of the lines' in capsys.readouterr().err
    assert not localizer.calls and document.read_text() == '<!-- bench refine: kitchen -->\n'
