"""The localizer as a node loads it: warm on every way that its first images take."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
import shutil

from nerfmatch_ros.demo import DEMO_MAP
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.geometry_trust import GeometryCalibration
from nerfmatch_ros.localization.hybrid_localizer import HybridLocalizer
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.localization.logistic_model import LogisticModel
from nerfmatch_ros.localization.scene_geometry_localizer import SceneGeometryLocalizer
from nerfmatch_ros.ros.backend import load_localizer, warm_up, with_clock, with_parameters
from nerfmatch_ros.ros.parameters import LocalizerParameters
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
from nerfmatch_ros.scene_map import SceneMap, store_scene_geometry
from nerfmatch_ros.stage_clock import StageClock
import numpy as np
import pytest
from tiny_build import tiny_images

CALIBRATION = GeometryCalibration(4.0, 0.02, 0.01, 0.3, 0.1, LogisticModel((0.0,) * 7, 3.0, 50))


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


@pytest.mark.parametrize('name, kind', [
    ('scene_geometry', SceneGeometryLocalizer), ('hybrid', HybridLocalizer)])
def test_a_node_loads_the_localizer_that_it_names(tmp_path, name, kind):
    folder = shutil.copytree(DEMO_MAP, tmp_path / 'map')
    store_scene_geometry(folder, SceneGeometry(SceneGeometryConfig(channels=16, width=16)), {})
    made = load_localizer(folder, device='cpu', threads=None, warm=False, localizer=name)
    assert type(made) is kind
    made.clock = Counts()
    warm_up(made)
    assert made.clock.stages['geometry'] == 1
    # What concerns matching is set, and read by who matches.
    assert with_parameters(made, LocalizerParameters(map_path='m', rounds=2)).config.rounds == 2
    with pytest.raises(ConfigError, match=f"'{name}' needs a map with scene geometry"):
        load_localizer(DEMO_MAP, device='cpu', threads=None, localizer=name)


def test_a_clock_is_given_to_who_takes_one():
    localizer = Localizer.load(DEMO_MAP)
    assert localizer.clock is None, 'nobody would take the times'
    assert with_clock(localizer, 'cpu') is localizer and localizer.clock.take() == {}
    stand_in = object()
    assert with_clock(stand_in, 'cpu') is stand_in


@pytest.mark.parametrize('name', ['nerfmatch', 'scene_geometry', 'hybrid'])
def test_who_refines_a_pose_gets_what_the_map_says_whatever_its_localizer(
        tiny_map, tmp_path, room, name):
    scene_map = SceneMap.load(tiny_map)
    says = {**scene_map.localization, 'refine': ['photometric']}  # it is too small to match in
    replace(scene_map, localization={**says, 'localizer': name},
            scene_geometry=SceneGeometry(SceneGeometryConfig(channels=16, width=16)),
            scene_geometry_calibration=CALIBRATION.to_dict()).save(tmp_path / 'map')
    image = tiny_images(room)[0]
    expected = Localizer(replace(scene_map, localization=says)).refine(
        image, image.map_from_camera).map_from_camera
    localizer = load_localizer(tmp_path / 'map', device='cpu', threads=None, warm=False)
    assert localizer.config.localizer == name
    for _ in range(2):  # as the refiner node loads it, and as the localizer node then sets it
        np.testing.assert_array_equal(
            localizer.refine(image, image.map_from_camera).map_from_camera, expected)
        # Only the poses of the network alone are judged by its own limit.
        assert getattr(localizer, 'judged_limit', None) == (
            (0.3, 0.1) if name == 'scene_geometry' else None)
        with_parameters(localizer, LocalizerParameters(map_path='m', rounds=2))
        assert localizer.config.rounds == 2
