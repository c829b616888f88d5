"""`nerfmatch bench` from the map to its table, JSON and section."""

from dataclasses import replace
import json
from pathlib import Path

import cv2
from nerfmatch_ros import cli
from nerfmatch_ros.data import transforms_json
from nerfmatch_ros.data.synthetic import synthetic_images
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.evaluation import bench_report
from nerfmatch_ros.evaluation.bench import bench, BenchConfig, STRAIGHTFORWARD, WITHOUT_PRIOR
from nerfmatch_ros.evaluation.machine_rates import MachineRates
from nerfmatch_ros.evaluation.straightforward import Straightforward
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.scene_map import SceneMap
import pytest
from tiny_build import CAMERA

DEMO_MAP = Path(__file__).resolve().parents[1] / 'nerfmatch_ros' / 'demo_map'


@pytest.fixture(scope='module')
def localizer():
    return Localizer.load(DEMO_MAP)


@pytest.fixture(scope='module')
def images(room):
    return synthetic_images('test', 3, CAMERA, room=room)


@pytest.fixture(scope='module')
def report(localizer, images):
    plain = Straightforward(SceneMap.load(DEMO_MAP), replace(localizer.config, top_k=1, rounds=1))
    return bench(localizer, images[:2], BenchConfig(repeats=1, track=True), straightforward=plain)


def test_a_tracked_image_is_compared_with_and_without_prior(report):
    assert list(report['ways']) == ['localizer', STRAIGHTFORWARD, WITHOUT_PRIOR]
    stages = {way: figures['stages'] for way, figures in report['ways'].items()}
    assert 'retrieval' not in stages[STRAIGHTFORWARD]
    assert stages[WITHOUT_PRIOR]['retrieval']['runs'] == 1
    assert set(report['times_longer']) == {STRAIGHTFORWARD, WITHOUT_PRIOR}
    assert (report['mode'], report['images'], report['repeats']) == ('tracked', 2, 1)
    assert report['config']['rounds'] == 3 and len(report['map_sha256']) == 64
    for way in stages.values():
        assert way['match']['gflop'] > 0 and way['match']['ratio'] > 0
        assert way['pnp']['gflop'] is None  # of a library that nobody looks into
        inner = [stage['gflop'] or 0 for path, stage in way.items() if '/' not in path]
        assert way['total']['gflop'] == pytest.approx(sum(inner[:-1]), rel=0.01)
    # 256 samples a ray against the localizer's 24 where the map knows of something.
    assert stages[STRAIGHTFORWARD]['reference']['gflop'] > 8 * stages['localizer']['reference'][
        'gflop']
    total = stages['localizer']['total']
    assert total['wall_ms'] > stages['localizer']['encode']['wall_ms'] > 0
    json.dumps(report, allow_nan=False)


def test_a_section_has_every_stage_and_is_replaced_in_place(report, tmp_path):
    document, folder = tmp_path / 'performance.md', tmp_path / 'out'
    for _ in range(2):
        bench_report.write_report(report, output=folder, markdown=document, name='room',
                                  command='nerfmatch bench')
    bench_report.write_report({**report, 'mode': 'global'}, markdown=document, name='room')
    text = document.read_text()
    assert text.startswith(bench_report.HEAD)
    assert text.count('<!-- bench tracked: room -->') == 1
    assert text.count('<!-- bench global: room -->') == 1
    lines = text.splitlines()
    for stage in ('encode', 'reference', 'total', '&nbsp;&nbsp;match'):
        assert any(line.startswith(f'| {stage} |') for line in lines)
    assert any(line.startswith(f'- {STRAIGHTFORWARD} takes') for line in lines)
    assert {line.count('|') for line in lines if line.startswith('|')} == {
        len(bench_report.COLUMNS) + 2}
    assert json.loads((folder / 'bench_tracked.json').read_text()) == report


def test_a_broken_document_is_refused_before_the_work(tmp_path):
    document = tmp_path / 'performance.md'
    document.write_text('<!-- bench global: demo_map -->\n')
    with pytest.raises(ConfigError, match='only one of the lines'):
        bench_report.check_document(document, 'global', 'demo_map')
    bench_report.check_document(document, 'tracked', 'demo_map')


def test_the_command_times_a_map(images, tmp_path, capsys):
    folder = tmp_path / 'images'
    folder.mkdir()
    image = replace(images[0], name='0.png', path=folder / '0.png')
    cv2.imwrite(str(image.path), images[0].rgb()[..., ::-1])
    transforms_json.write(folder / 'transforms.json', [transforms_json.frame_entry(image, folder)])
    status = cli.main(['bench', '--map', str(DEMO_MAP), '--images', str(folder),
                       '--split', 'all', '--limit', '1', '--repeat', '1', '--json', '--output',
                       str(tmp_path), '--against', 'straightforward', '--device', 'cpu'])
    printed = json.loads(capsys.readouterr().out)
    assert status == 0 and list(printed['ways']) == ['localizer', STRAIGHTFORWARD]
    assert printed == json.loads((tmp_path / 'bench_global.json').read_text())


def test_the_table_is_printed(report, capsys):
    bench_report.print_report(report)
    printed = capsys.readouterr().out
    assert 'takes' in printed and 'total' in printed and 'deg' in printed


def test_the_machine_is_named_with_the_rates_that_floors_come_from():
    machine = MachineRates('cpu', 'Chip', 1, {'float32': 5e10}, {'float32': 1e11}, 5e9, 1.2e10)
    assert bench_report.machine_line(machine.to_dict()) == (
        'Chip; 1 thread; float32 100 GFLOP a CPU second; copying 12.0 GB a CPU second')
    gpu = MachineRates('cuda', 'Card', 8, {'float32': 5e13}, {'float32': 1e11}, 3e12, 1e9)
    assert bench_report.machine_line(gpu.to_dict()) == (
        'Card; 8 threads; float32 50000 GFLOP a second; copying 3000.0 GB a second')
