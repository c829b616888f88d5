"""Maps on a field that was trained elsewhere."""

from dataclasses import replace
import logging
from pathlib import Path

from nerfmatch_ros import cli
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.field_file import FieldFile
from nerfmatch_ros.importers.nerfstudio import read_field
from nerfmatch_ros.importers.nerfstudio_run import read_run
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.mapping.build_map import build_map
from nerfmatch_ros.mapping.given_field import likeness, plain_psnr, with_field
from nerfmatch_ros.mapping.training_pixels import PixelSize
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
from tiny_build import CAMERA, TINY, tiny_images
import torch

FIXTURE = Path(__file__).with_name('data') / 'nerfstudio'


@pytest.fixture(scope='module')
def images(room):
    return tiny_images(room)


@pytest.fixture(scope='module')
def imported(tiny_map):
    """Give nerfstudio's random field of the fixture the frame of the room."""
    field = read_field(read_run(FIXTURE / 'nerfacto' / 'config.yml'), FIXTURE)
    return replace(field, frame=replace(
        field.frame, scene_from_map=SceneMap.load(tiny_map).frame.scene_from_map))


@pytest.fixture(scope='module')
def own(tiny_map):
    """Give the field that a build trained as one that was trained elsewhere."""
    scene_map = SceneMap.load(tiny_map)
    return FieldFile(scene_map.field_config, scene_map.field, scene_map.frame,
                     len(scene_map.field.exposure), {'program': 'tiny_build'})


def assert_same_frame(one, other):
    assert one.scene_from_map.to_dict() == other.scene_from_map.to_dict()
    assert (one.near, one.far, one.ball) == (other.near, other.far, other.ball)


def test_map_of_an_imported_field_localizes(images, imported, tmp_path, caplog):
    config = replace(TINY, matcher_training=replace(TINY.matcher_training, steps=2))
    with caplog.at_level(logging.INFO):
        made = build_map(images, tmp_path / 'map', config, given=imported)
    assert 'f1 is matched, not f3' in caplog.text
    assert made.field_config.kind == 'nerfacto'
    assert_same_frame(made.frame, imported.frame)
    summary = made.summary()
    assert summary['field_source']['program'] == 'nerfstudio'
    assert len(summary['held_out']) == 1 and summary['photograph_psnr_db'] < 25
    loaded = SceneMap.load(tmp_path / 'map')
    views = [render_view(field, imported.frame, CAMERA.scaled_to(16, 12),
                         torch.from_numpy(images[0].map_from_camera), stride=2, colour=True)
             for field in (imported.field, loaded.field)]
    # The map keeps large tensors in half precision.
    torch.testing.assert_close(views[1].colour, views[0].colour, rtol=0, atol=0.02)
    estimate = Localizer(loaded).localize(images[0])
    assert (estimate.map_from_camera is None) == bool(estimate.reason)


def test_nothing_but_the_matcher_is_trained(images, own, tmp_path, monkeypatch):
    from nerfmatch_ros.mapping import build_map as module
    for name in ('train_field', 'triangulate', 'multi_view_depth'):
        monkeypatch.setattr(module, name, None)
    made = build_map(images, tmp_path / 'map', TINY, given=own)
    weights = own.field.state_dict()
    for name, value in made.field.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert_same_frame(made.frame, own.frame)
    assert made.matcher_config.point_feature == 'f3'
    assert made.summary()['photograph_psnr_db'] > 8


def test_field_of_another_frame_is_doubted(images, own, tmp_path, caplog):
    how, camera = PixelSize(80), CAMERA.scaled_to(80, 60)
    seen = [render_view(own.field, own.frame, camera, torch.from_numpy(image.map_from_camera),
                        stride=1, colour=True).colour for image in images[:2]]
    right = [replace(image, camera=camera, depth=None, pixels=(
        255 * colour.clamp(0, 1)).round().byte().view(60, 80, 3).numpy())
        for image, colour in zip(images, seen)]
    noted = likeness(own, right, how, tmp_path / 'right.png')
    assert noted['field_source'] == own.source and noted['photograph_psnr_db'] > 40
    assert not caplog.text
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    likeness(own, [replace(image, pixels=noise) for image in right], how, tmp_path / 'wrong.png')
    assert 'are their poses in the frame' in caplog.text
    assert (tmp_path / 'wrong.png').is_file()


def test_plain_psnr_is_that_of_the_mean_colour():
    halves = np.zeros((4, 6, 3), np.uint8)
    halves[:, 3:] = 255
    assert plain_psnr(halves) == pytest.approx(20 * np.log10(2))


def test_unfinished_build_goes_on_with_the_same_field_only(images, own, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(*arguments, **options):
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(SceneMap, 'save', kill)
        with pytest.raises(Killed):
            build_map(images, tmp_path / 'map', TINY, given=own)
    moved = replace(own, frame=replace(own.frame, far=own.frame.far * 2))
    with pytest.raises(DataError, match='unfinished build of other photographs'):
        build_map(images, tmp_path / 'map', TINY, given=moved)
    assert_same_frame(build_map(images, tmp_path / 'map', TINY, given=own).frame, own.frame)


def test_feature_that_was_asked_for_is_not_replaced(imported):
    asked = replace(TINY, matcher=replace(TINY.matcher, point_feature='f2'))
    assert with_field(asked, imported).matcher.point_feature == 'f2'
    plain = replace(TINY, matcher=replace(TINY.matcher, point_feature='xyz'))
    assert with_field(plain, imported).matcher.point_feature == 'xyz'
    assert with_field(TINY, None) is TINY


def test_imported_kinds_are_not_trained(imported):
    with pytest.raises(ConfigError, match="field kind 'nerfacto' is not trained here.*--field"):
        with_field(replace(TINY, field=imported.config), None)


def test_build_takes_the_folder_of_a_field(imported, tmp_path, monkeypatch, capsys):
    from nerfmatch_ros.data import reader
    from nerfmatch_ros.mapping import build_map as module
    calls = []
    monkeypatch.setattr(module, 'build_map', lambda *given, **named: calls.append(named))
    monkeypatch.setattr(reader, 'read_posed_images', lambda *given, **named: [])
    imported.save(tmp_path / 'field')
    arguments = ['build', '--images', 'room', '--output', str(tmp_path / 'map'), '--device', 'cpu']
    assert cli.main([*arguments, '--field', str(tmp_path / 'field')]) == 0
    assert calls[0]['given'].mark() == imported.mark()
    assert cli.main([*arguments, '--field', str(tmp_path / 'none')]) == 2
    assert 'holds no field.yaml' in capsys.readouterr().err


def test_command_line_imports_a_run(tmp_path, capsys):
    arguments = ['import', 'nerfstudio', '--config', str(FIXTURE / 'bounded' / 'config.yml'),
                 '--output', str(tmp_path / 'field')]
    assert cli.main(arguments) == 2
    assert 'name its folder with --data' in capsys.readouterr().err
    assert cli.main([*arguments, '--data', str(FIXTURE)]) == 0
    assert 'model nerfacto, step 9, images 8' in capsys.readouterr().out
    assert np.isfinite(FieldFile.load(tmp_path / 'field').frame.far)
