"""The tool that measures maps of many views makes them true to their model."""

import importlib.util
import json
from pathlib import Path

from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
import torch

PATH = Path(__file__).resolve().parents[1] / 'tools' / 'measure_scale.py'


@pytest.fixture(scope='module')
def tool():
    specification = importlib.util.spec_from_file_location('measure_scale', PATH)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def larger(tool, tiny_map, tmp_path_factory):
    """A map of 30 views, made of one of 12 and read from its files."""
    folder = tmp_path_factory.mktemp('larger') / 'map'
    tool.enlarged(SceneMap.load(tiny_map), 30).save(folder)
    return SceneMap.load(folder)


def test_an_enlarged_map_repeats_views_elsewhere(tiny_map, larger):
    scene_map = SceneMap.load(tiny_map)
    assert len(larger.reference_names) == len(set(larger.reference_names)) == 30
    for k in range(30):
        points, features = larger.references.view(k)
        own_points, own_features = scene_map.references.view(k % 12)
        assert torch.equal(features, own_features)
        moved = torch.from_numpy(
            larger.reference_poses[k] - scene_map.reference_poses[k % 12])[:3, 3].float()
        torch.testing.assert_close(points - own_points, moved.expand_as(points), atol=1e-5,
                                   rtol=0)
        assert (moved.norm() > scene_map.extent) == (k >= 12)


def test_an_image_is_most_like_a_view_of_its_own_place(tool, tiny_map, larger):
    descriptors = SceneMap.load(tiny_map).references.descriptors
    found = (larger.references.descriptors @ descriptors.T).argmax(0)
    assert (found < 12).float().mean() > 0.8


def test_images_are_those_the_field_shows_near_views(tool, tiny_map):
    scene_map = SceneMap.load(tiny_map)
    made = tool.rendered_images(scene_map, 3)
    assert len(made['pictures']) == len(json.loads(str(made['cameras']))) == 3
    away = np.linalg.norm(made['poses'][:, None, :3, 3] - scene_map.reference_poses[:, :3, 3],
                          axis=-1).min(1)
    assert (away > 0).all() and (away < 0.1 * scene_map.extent).all()


def test_one_run_measures_prints_and_writes(tool, tiny_map, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('sys.argv', [
        'measure_scale', '--map', str(tiny_map), '--name', 'tiny', '--views', '20',
        '--images', '2', '--top-k', '2', '--retrieval', '300', '--output',
        str(tmp_path / 'out'), '--markdown', str(tmp_path / 'scale.md'),
        '--folder', str(tmp_path)])
    (tmp_path / 'scale.md').write_text(
        '# Title\n\n<!-- tiny: begin -->\nold\n<!-- tiny: end -->\nend\n')
    tool.main()
    report = json.loads((tmp_path / 'out' / 'scale.json').read_text())
    assert [row['views'] for row in report['rows']] == [20]
    for row in report['rows']:
        assert row['load_s'] > 0 and row['process_mb'] > 50 and row['disk_mb'] > 0
        assert 0 < row['match_ms'] < row['total_ms']
    assert report['retrieval'][0]['shared'] == 1 and not report['retrieval'][0]['grouped']
    text = (tmp_path / 'scale.md').read_text()
    assert text.startswith('# Title') and text.endswith('end\n') and 'old' not in text
    assert '| 20 |' in text and (tmp_path / 'scale_tiny.png').stat().st_size > 5000
    assert 'Retrieval alone' in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {'out', 'scale.md', 'scale_tiny.png'}


def test_more_than_the_disk_may_take_is_refused_before_any_work(tool, tiny_map, monkeypatch):
    monkeypatch.setattr(
        'sys.argv', ['measure_scale', '--map', str(tiny_map), '--views', '10000000'])
    monkeypatch.setattr(tool, 'rendered_images', None)
    with pytest.raises(SystemExit, match='give fewer'):
        tool.main()
