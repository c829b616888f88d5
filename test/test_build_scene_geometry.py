"""Scene geometry as a stage of a build: trained, measured, kept in the map, and gone on with."""

from dataclasses import replace
import math

from nerfmatch_ros import cli
from nerfmatch_ros.config import to_dict
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.localizer import LocalizerConfig
from nerfmatch_ros.localization.make_localizer import load_localizer
from nerfmatch_ros.localization.scene_geometry_localizer import SceneGeometryLocalizer
from nerfmatch_ros.mapping import build_map as build_module
from nerfmatch_ros.mapping import scene_geometry_stage
from nerfmatch_ros.mapping.build_map import build_map, BuildConfig
from nerfmatch_ros.mapping.calibrate_scene_geometry import GeometryCalibrationConfig
from nerfmatch_ros.mapping.scene_geometry_stage import (
    CALIBRATION,
    SceneGeometryStage,
    train_stage,
    with_scene_geometry,
)
from nerfmatch_ros.mapping.train_scene_geometry import SceneGeometryTraining
from nerfmatch_ros.mapping.update_map import UpdateStages
from nerfmatch_ros.scene_geometry import SceneGeometryConfig
from nerfmatch_ros.scene_map import SceneMap
import pytest
from tiny_build import TINY, tiny_images
import torch

SMALL = SceneGeometryStage(enabled=True, training=SceneGeometryTraining(
    network=SceneGeometryConfig(channels=16, width=16, longest_side=64), steps=40, batch=2,
    rate=0.02, bfloat16=False), calibration=GeometryCalibrationConfig(new_views=2))


class Killed(BaseException):
    """Ends a build from within, as a kill would: nothing may catch it."""


@pytest.fixture(scope='module')
def images(room):
    return tiny_images(room)


@pytest.fixture(scope='module')
def folder(images, tmp_path_factory):
    """A map with scene geometry, whose build was killed after that was trained."""
    folder = tmp_path_factory.mktemp('geometry') / 'map'
    config = replace(TINY, scene_geometry=SMALL,
                     localization=replace(TINY.localization, localizer='scene_geometry'))

    def kill(*_, **__):
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_module, 'assemble_map', kill)
        with pytest.raises(Killed):
            build_map(images, folder, config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scene_geometry_stage, 'train_scene_geometry', kill)  # it is done
        build_map(images, folder, config)
    return folder


def test_a_build_gives_the_map_a_second_localizer(folder, images):
    scene_map = SceneMap.load(folder)
    summary = scene_map.summary()
    assert summary['scene_geometry'] == 'compact'
    assert summary['scene_geometry_calibration']['covariance_scale'] >= 1
    localizer = load_localizer(folder)
    assert isinstance(localizer, SceneGeometryLocalizer)  # the map says so
    estimate = localizer.localize_and_refine(images[0])
    assert (estimate.map_from_camera is None) == bool(estimate.reason)
    assert 0 < estimate.probability < 1


def test_an_update_drops_scene_geometry_that_does_not_know_what_is_new(folder):
    stages = UpdateStages.__new__(UpdateStages)
    stages.old = SceneMap.load(folder)
    assert stages.old.localization['localizer'] == 'scene_geometry'
    assert stages._as_built(12).localization.localizer == 'nerfmatch'


def silent(name):
    return lambda done, numbers=None: None


def trained(images, work, held):
    train_stage(images, held, SMALL, work=work, device='cpu', minutes=None, bar=silent)


def measured(folder, images, work, held):
    """Give the map in a folder with the network and its calibration out of a work folder."""
    return with_scene_geometry(SceneMap.load(folder), [images[k] for k in held], SMALL, work=work,
                               bar=silent)


def test_what_is_held_out_is_never_trained_on_and_measured_with(
        folder, images, tmp_path, monkeypatch):
    seen = {}

    def train(photographs, *args, **options):
        seen['trained'] = [image.name for image in photographs]
        return original(photographs, *args, **options)

    def measure(scene_map, network, photographs, *args, **options):
        seen['measured'] = [image.name for image in photographs]
        return calibrate(scene_map, network, photographs, *args, **options)

    original = scene_geometry_stage.train_scene_geometry
    calibrate = scene_geometry_stage.calibrate_with_map
    monkeypatch.setattr(scene_geometry_stage, 'train_scene_geometry', train)
    monkeypatch.setattr(scene_geometry_stage, 'calibrate_with_map', measure)
    trained(images, tmp_path, [3, 4])
    measured(folder, images, tmp_path, [3, 4])
    names = [image.name for image in images]
    assert seen == {'trained': names[:3] + names[5:], 'measured': names[3:5]}


def test_stages_that_are_done_are_not_done_again(folder, images, tmp_path, monkeypatch):
    trained(images, tmp_path, [3])
    whole = measured(folder, images, tmp_path, [3])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        'scene_geometry.json', 'scene_geometry.safetensors', CALIBRATION]
    monkeypatch.setattr(scene_geometry_stage, 'train_scene_geometry', None)
    monkeypatch.setattr(scene_geometry_stage, 'calibrate_with_map', None)
    trained(images, tmp_path, [3])
    again = measured(folder, images, tmp_path, [3])
    for name, value in whole.scene_geometry.state_dict().items():
        torch.testing.assert_close(again.scene_geometry.state_dict()[name], value)
    assert again.scene_geometry_calibration == whole.scene_geometry_calibration != {}


def test_without_held_out_photographs_there_is_no_calibration(folder, images, tmp_path, caplog):
    trained(images, tmp_path, [])
    assert measured(folder, images, tmp_path, []).scene_geometry_calibration == {}
    assert 'not calibrated' in caplog.text


def test_scene_geometry_takes_its_share_of_the_minutes():
    assert SceneGeometryStage().split_minutes(60.0) == (None, 60.0)
    assert replace(SMALL, minutes_share=0.25).split_minutes(60.0) == (15.0, 45.0)
    assert SMALL.split_minutes(None) == (None, None)
    for share in (0.0, 1.0, math.nan):
        with pytest.raises(ConfigError, match='minutes_share'):
            SceneGeometryStage(minutes_share=share)


def test_a_map_cannot_name_a_localizer_that_it_will_not_have():
    with pytest.raises(ConfigError, match='--scene-geometry'):
        BuildConfig(localization=LocalizerConfig(localizer='hybrid'))


@pytest.mark.parametrize('written, share', [
    ('', 0.3), ('scene_geometry: {minutes_share: 0.4}', 0.4)])
def test_the_option_of_the_command_switches_it_on(monkeypatch, tmp_path, images, written, share):
    calls = []
    monkeypatch.setattr(build_module, 'build_map', lambda *given, **_: calls.append(given[2]))
    monkeypatch.setattr('nerfmatch_ros.data.reader.read_posed_images', lambda *_, **__: images)
    (tmp_path / 'c.yaml').write_text(written)
    arguments = ['build', '--images', str(tmp_path), '--output', str(tmp_path / 'map'),
                 '--config', str(tmp_path / 'c.yaml')]
    assert cli.main([*arguments, '--scene-geometry']) == cli.main(arguments) == 0
    assert [config.scene_geometry.enabled for config in calls] == [True, False]
    assert {config.scene_geometry.minutes_share for config in calls} == {share}
    assert to_dict(calls[0])['scene_geometry']['training']['network']['backbone'] == 'compact'


def test_an_update_is_told_to_leave_it_out(tmp_path, capsys):
    assert cli.main(['build', '--images', str(tmp_path), '--update', str(tmp_path / 'map'),
                     '--scene-geometry']) == 2
    assert 'leave --scene-geometry out' in capsys.readouterr().err


@pytest.mark.parametrize('changes, message', [
    ({'network': SceneGeometryConfig(backbone='resnet99')}, 'resnet99'),
    ({'labels': 'position'}, "labels is 'position'")])
def test_options_that_no_training_can_work_with_are_refused_before_the_field(
        images, tmp_path, changes, message):
    stage = replace(SMALL, training=replace(SMALL.training, **changes))
    with pytest.raises(ConfigError, match=message):
        build_map(images, tmp_path / 'map', replace(TINY, scene_geometry=stage))
    assert not list(tmp_path.iterdir())
