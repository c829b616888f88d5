"""The row of the paper's tables: which scene, which limits, whose figures."""

from pathlib import Path

from nerfmatch_ros.evaluation.metrics import PoseErrors
from nerfmatch_ros.evaluation.paper_table import (
    AVERAGE,
    known_scene,
    paper_row,
    print_paper_row,
    published,
    SCENES,
)
import numpy as np
import pytest

BY_NAME = {scene.name: scene for scene in SCENES}


@pytest.mark.parametrize('paths, name', [
    ((None, Path('data/cambridge/KingsCollege')), 'KingsCollege'),
    ((None, Path('7scenes/redKitchen/images')), 'redkitchen'),
    ((Path('json/transforms_greatcourt_test.json'), Path('pictures')), 'GreatCourt'),
    ((Path('transforms_fire_train.json'), Path('data/chess')), 'fire'),
    ((None, Path('stairs/heads')), 'heads'),
    ((None, Path('my_office')), None), ((None, Path('office-2')), None),
    ((Path('transforms_kitchen_test.json'), None), None),
    ((Path('transforms_chess.json'), None), None)])
def test_scenes_are_recognised_by_whole_names(paths, name):
    scene = known_scene(*paths)
    assert (scene and scene.name) == name


def test_the_current_folder_has_a_name_and_those_above_it_say_nothing(tmp_path, monkeypatch):
    (tmp_path / 'office/chess').mkdir(parents=True)
    (tmp_path / 'office/mine').mkdir()
    monkeypatch.chdir(tmp_path / 'office/chess')
    assert known_scene(Path('.')).name == 'chess'
    monkeypatch.chdir(tmp_path / 'office/mine')
    assert known_scene(Path('.')) is None


def test_each_cambridge_scene_has_its_own_limit():
    limits = {scene.name: scene.limit_cm for scene in SCENES
              if scene.benchmark == 'Cambridge Landmarks'}
    assert limits == {'KingsCollege': 38, 'OldHospital': 22, 'ShopFacade': 15,
                      'StMarysChurch': 35, 'GreatCourt': 45}
    assert {(s.limit_cm, s.limit_deg) for s in SCENES if s.benchmark == '7-Scenes'} == {(5, 5)}
    assert {s.limit_deg for s in SCENES} == {5}


def test_recall_uses_the_limit_of_the_scene():
    errors = PoseErrors(np.array([0.10, 0.16, 0.40, np.inf]), np.array([0.1, 0.2, 6.0, np.inf]))
    shares = {name: paper_row(scene, errors)['recall'] for name, scene in BY_NAME.items()}
    assert shares['ShopFacade'] == 0.25 and shares['OldHospital'] == 0.5
    assert shares['GreatCourt'] == 0.5  # near enough, turned too far
    assert shares['chess'] == 0
    row = paper_row(BY_NAME['ShopFacade'], errors)
    assert row['queries'] == 4 and row['queries_of_benchmark'] == 103
    assert row['median_cm'] == pytest.approx(28) and row['median_deg'] == pytest.approx(3.1)


def test_averages_of_the_scenes_are_those_of_the_paper():
    """The paper's column of averages checks the figures of the scenes."""
    averages = {'NeRFMatch, NeRF+RGB': (13.3, 0.3), 'NeRFMatch, NeRF only': (14.6, 0.3),
                'NeRFMatch-Mini': (20.0, 0.4), 'HLoc (SuperPoint+SuperGlue)': (10.8, 0.2),
                'ACE': (25.0, 0.4)}
    by_method = {}
    for scene in SCENES:
        for figures in published(scene):
            if figures.of == scene.name:
                by_method.setdefault(figures.method, []).append(
                    (figures.median_cm, figures.median_deg))
    assert set(by_method) == set(averages)
    for method, rows in by_method.items():
        assert len(rows) == 5
        np.testing.assert_allclose(np.mean(rows, axis=0), averages[method], atol=0.06)


def test_an_average_is_named_as_such():
    for scene in SCENES:
        indoor = scene.benchmark == '7-Scenes'
        for figures in published(scene):
            assert figures.of == (AVERAGE if indoor else scene.name)
            assert (figures.recall is not None) == indoor


def test_the_table_shows_what_is_known(capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '200')
    errors = PoseErrors(np.array([0.10, 0.16]), np.array([0.1, 0.2]))
    print_paper_row(paper_row(BY_NAME['ShopFacade'], errors))
    text = capsys.readouterr().out
    assert '2 of 103' in text and '13.0 cm, 0.2 deg' in text and '50.0 %' in text
    assert 'within 15 cm, 5 deg' in text and '8.5 cm, 0.4 deg' in text and AVERAGE not in text
    lost = {**paper_row(BY_NAME['chess'], errors), 'median_cm': None, 'median_deg': None}
    print_paper_row(lost)
    text = capsys.readouterr().out
    assert AVERAGE in text and '78.2 %' in text
