"""The script that measures on a GPU, at sizes that a CPU does in seconds."""

from dataclasses import replace
import importlib.util
import json
from pathlib import Path
import sys

from nerfmatch_ros.matching.matcher import Matches
import pytest
import torch

SCRIPT = Path(__file__).resolve().parents[1] / 'tools' / 'measure_gpu.py'


@pytest.fixture(scope='module')
def tool():
    described = importlib.util.spec_from_file_location('measure_gpu', SCRIPT)
    module = importlib.util.module_from_spec(described)
    sys.modules['measure_gpu'] = module  # dataclasses look there
    described.loader.exec_module(module)
    yield module
    del sys.modules['measure_gpu']


def test_the_paper_s_sizes_are_the_default(tool):
    sizes = tool.Sizes()
    assert (sizes.side, sizes.points, sizes.backbone) == (480, 3600, 'convformer_b36')
    assert sizes.mip.width == 256 and sizes.mip.coarse_samples == sizes.mip.fine_samples == 128


def test_the_whole_script_runs_small(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'REDUCED', replace(
        tool.REDUCED, side=48, views=2, images=2, repeats=1))
    document = tmp_path / 'performance.md'
    document.write_text(f'# Kept\n\n<!-- {tool.MARK} -->\nnothing yet\n'
                        f'<!-- end of {tool.MARK} -->\n\nend\n')
    monkeypatch.setattr(sys, 'argv', [
        'measure_gpu.py', '--reduced', '--device', 'cpu', '--json', str(tmp_path / 'gpu.json'),
        '--markdown', str(document)])
    tool.main()
    report = json.loads((tmp_path / 'gpu.json').read_text())
    assert set(report['tables']) == {'mini global', 'mini tracked', 'full global', 'full tracked'}
    assert {(one['model'], one['precision'], one['case']) for one in report['localization']} == {
        (model, precision, case) for model in ('mini', 'full')
        for precision in ('float32', 'bfloat16')
        for case in ('1 references', '2 references', 'tracked')}
    assert all(one['matches'] > 5 and one['same_within_1px'] > 0.5
               for one in report['agreement'] if one['model'] == 'mini')
    text = document.read_text()
    assert text.startswith('# Kept') and text.endswith('end\n') and 'nothing yet' not in text
    assert 'Reduced sizes' in text and report['notes'][0] in text
    assert 'min: tables' in capsys.readouterr().out


def test_matches_are_compared_by_point_and_place(tool):
    def matches(points, x):
        pixels = torch.stack([torch.tensor(x), torch.zeros(len(x))], dim=-1)
        return Matches(pixels, torch.tensor(points), torch.ones(len(x)), torch.ones(len(x)))
    found = tool.compared(matches([4, 7, 9, 1], [0.0, 10.0, 20.0, 30.0]),
                          matches([9, 4, 7], [20.5, 0.2, 15.0]))
    assert found['matches'] == 4 and found['same_within_1px'] == 0.5
    assert found['median_px'] == pytest.approx(0.5)
