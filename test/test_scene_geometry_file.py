"""Scene geometry in a map: what was saved is loaded, damage is refused, other maps stay."""

from dataclasses import replace
import hashlib
import shutil

from nerfmatch_ros.errors import MapError
from nerfmatch_ros.scene_geometry import cell_rays, SceneGeometry, SceneGeometryConfig
from nerfmatch_ros.scene_map import SCENE_GEOMETRY, SceneMap, store_scene_geometry
import pytest
from safetensors.torch import load_file, save_file
from tiny_build import CAMERA
import torch
import yaml

SMALL = SceneGeometryConfig(channels=16, width=16, longest_side=80, working_focal=64.0)
CALIBRATION = {'covariance_scale': 4.0, 'limit_m': 0.3, 'limit_rad': 0.1, 'model': {
    'samples': 50, 'bias': 1.0, 'weights': {'residual_share': 0.5}}}


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    made = SceneGeometry(SMALL).eval().requires_grad_(False)
    made.centre.copy_(torch.tensor([3.0, -2.0, 1.0]))
    made.extent.fill_(6.5)
    return made


@pytest.fixture
def folder(tiny_map, tmp_path, network):
    """A copy of a map, with scene geometry."""
    folder = shutil.copytree(tiny_map, tmp_path / 'map')
    store_scene_geometry(folder, network, CALIBRATION)
    return folder


def description(folder):
    return yaml.safe_load((folder / 'map.yaml').read_text())


def seen(network):
    view = network.working_view(CAMERA).camera
    picture = torch.linspace(0, 1, 3 * view.height * view.width).view(1, 3, view.height, -1)
    return network(picture, cell_rays(view)[None])


def test_scene_geometry_is_added_to_a_map_and_nothing_else_changes(tiny_map, folder, network):
    before, after = description(tiny_map), description(folder)
    assert after['scene_geometry']['calibration'] == CALIBRATION
    assert after['sha256'].pop(SCENE_GEOMETRY) == hashlib.sha256(
        (folder / SCENE_GEOMETRY).read_bytes()).hexdigest()
    after.pop('scene_geometry')
    assert after == before
    loaded = SceneMap.load(folder)
    assert loaded.scene_geometry.config == SMALL
    assert loaded.scene_geometry_calibration == CALIBRATION
    assert loaded.scene_geometry.centre.tolist() == [3.0, -2.0, 1.0]
    assert loaded.scene_geometry.extent.item() == 6.5
    # Large weights are stored in half precision.
    torch.testing.assert_close(
        seen(loaded.scene_geometry).map_points, seen(network).map_points, atol=0.02, rtol=0)
    assert not loaded.scene_geometry.training


def test_a_map_is_saved_with_its_scene_geometry(folder, tmp_path):
    first = SceneMap.load(folder)
    first.save(tmp_path / 'again')
    second = SceneMap.load(tmp_path / 'again')
    assert second.scene_geometry_calibration == CALIBRATION
    torch.testing.assert_close(
        seen(second.scene_geometry).map_points, seen(first.scene_geometry).map_points,
        atol=0, rtol=0)


def test_a_summary_shows_scene_geometry_or_that_there_is_none(tiny_map, folder):
    without, summary = (SceneMap.load(path).summary() for path in (tiny_map, folder))
    assert without['scene_geometry'] is None and 'scene_geometry_parameters' not in without
    assert summary['scene_geometry'] == 'compact'
    assert summary['scene_geometry_parameters'] > 1000
    assert summary['scene_geometry_calibration'] == {
        'covariance_scale': 4.0, 'limit_m': 0.3, 'limit_rad': 0.1}


def test_an_older_map_has_none(tiny_map):
    assert SceneMap.load(tiny_map).scene_geometry is None
    assert 'scene_geometry' not in description(tiny_map)


def test_another_network_takes_the_place_of_the_first(folder, tiny_map, network):
    store_scene_geometry(folder, SceneGeometry(replace(SMALL, width=24)), {})
    loaded = SceneMap.load(folder)
    assert loaded.scene_geometry.config.width == 24 and loaded.scene_geometry_calibration == {}
    with pytest.raises(MapError, match='was replaced while its scene geometry was made'):
        store_scene_geometry(folder, network, {}, SceneMap.load(tiny_map).sha256)
    assert SceneMap.load(folder).scene_geometry.config.width == 24


def spoilt(folder, change):
    """Change the file of the network, and sign it as a mistaken writer would."""
    tensors = change(load_file(folder / SCENE_GEOMETRY))
    save_file(tensors, folder / SCENE_GEOMETRY)
    signed = description(folder)
    signed['sha256'][SCENE_GEOMETRY] = hashlib.sha256(
        (folder / SCENE_GEOMETRY).read_bytes()).hexdigest()
    (folder / 'map.yaml').write_text(yaml.safe_dump(signed))


@pytest.mark.parametrize('change, reason', [
    (lambda t: {**t, 'centre': t['centre'] * torch.nan}, 'centre holds NaN'),
    (lambda t: {**t, 'centre': t['centre'].int()}, 'centre is of type'),
    (lambda t: {**t, 'centre': torch.zeros(4)}, 'centre'),
    (lambda t: {key: value for key, value in t.items() if key != 'extent'}, 'extent')])
def test_weights_that_are_none_of_the_network_are_refused(folder, change, reason):
    spoilt(folder, change)
    with pytest.raises(MapError, match=reason):
        SceneMap.load(folder)


def test_a_damaged_or_missing_file_is_refused(folder):
    content = bytearray((folder / SCENE_GEOMETRY).read_bytes())
    content[-1] ^= 1
    (folder / SCENE_GEOMETRY).write_bytes(content)
    with pytest.raises(MapError, match='scene_geometry.safetensors is damaged'):
        SceneMap.load(folder)
    (folder / SCENE_GEOMETRY).unlink()
    with pytest.raises(MapError, match='missing'):
        SceneMap.load(folder)


def test_a_configuration_with_an_unknown_option_is_refused(folder):
    changed = description(folder)
    changed['scene_geometry']['config']['widht'] = 3
    (folder / 'map.yaml').write_text(yaml.safe_dump(changed))
    with pytest.raises(MapError, match='widht'):
        SceneMap.load(folder)
