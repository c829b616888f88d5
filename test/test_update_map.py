"""Updating a map end to end: the old one stays, a killed update goes on, others are refused."""

from dataclasses import replace
import shutil

from nerfmatch_ros import cli
from nerfmatch_ros.data.synthetic import (
    CHANGES,
    default_camera,
    pictures_of,
    SyntheticRoom,
    visit_trajectory,
    write_dataset,
)
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.files import file_sha256
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.localization.rigid_motion import perturb
from nerfmatch_ros.mapping import map_life, map_reach
from nerfmatch_ros.mapping import train_field as field_module
from nerfmatch_ros.mapping import update_map as update_module
from nerfmatch_ros.mapping.calibrate import CalibrationConfig
from nerfmatch_ros.mapping.changes import ChangeConfig
from nerfmatch_ros.mapping.map_life import inherit
from nerfmatch_ros.mapping.map_reach import frame_for
from nerfmatch_ros.mapping.multi_view_depth import MultiViewDepthConfig
from nerfmatch_ros.mapping.rehearsal import RehearsalConfig
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig
from nerfmatch_ros.mapping.update_config import UpdateConfig
from nerfmatch_ros.mapping.update_map import update_map, UpdateStages
from nerfmatch_ros.radiance_field.scene_frame import SceneFrame
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
from tiny_build import TINY, TINY_MIP
import torch

QUICK = UpdateConfig(
    minutes=None, held_out=2, changes=ChangeConfig(stride=4, window=5, cells=24),
    rehearsal=RehearsalConfig(views=4), depth=MultiViewDepthConfig(longest_side=64, depths=16),
    field_training=replace(TINY.field_training, steps=8, rays=128),
    matcher_training=MatcherTrainingConfig(steps=3, batch=2, points=60, fine_matches=20),
    calibration=CalibrationConfig(trials=2))


class Killed(BaseException):
    """Ends an update from within, as a kill would: nothing may catch it."""


@pytest.fixture(scope='module')
def truth():
    room = SyntheticRoom(added=CHANGES)
    return pictures_of(visit_trajectory(12), default_camera(80, 60), room, 'images/train')


@pytest.fixture
def photographs(truth, monkeypatch):
    """New photographs in a frame of their own; the tiny map cannot find them, so it is told."""
    monkeypatch.setattr(map_reach, 'BEYOND', 9.0)  # few points are triangulated, and poorly
    given_from_map = perturb(np.eye(4), np.array((3.0, -1, 0.5, 0.1, 0.2, 2)))
    monkeypatch.setattr(UpdateStages, 'localized', lambda stages, images, report: (
        [None, *(image.map_from_camera for image in truth[1:])],
        ['too few matches', *[''] * (len(truth) - 1)]))
    return [replace(image, map_from_camera=given_from_map @ image.map_from_camera)
            for image in truth]


@pytest.fixture
def old(tiny_map, tmp_path):
    return shutil.copytree(tiny_map, tmp_path / 'old')


def contents(folder):
    return {path.name: file_sha256(path) for path in sorted(folder.iterdir())}


def test_an_updated_map_holds_old_and_new_views_in_the_old_frame(
        old, photographs, truth, tmp_path):
    before, was = contents(old), SceneMap.load(old)
    made = update_map(old, photographs, tmp_path / 'new', QUICK)
    assert contents(old) == before
    names = made.reference_names
    # 12 new ones, whose names were taken, and what is left of 4 rehearsed.
    assert names[:12] == [f'images/train_{k:04d}~2.jpg' for k in range(12)]
    assert 1 <= len(names) - 12 == made.notes['views_rehearsed'] <= 4
    assert set(names[12:]) <= set(was.reference_names)
    np.testing.assert_allclose(made.reference_poses[:12], np.stack(
        [image.map_from_camera for image in truth]), atol=1e-6)
    assert made.notes['placed_by'] == 'aligned' and made.notes['updated_from'] == was.sha256
    assert made.working_focal == was.working_focal
    assert made.frame.scene_from_map.scale == was.frame.scene_from_map.scale
    assert len(made.words) == len(was.words)
    assert made.notes['held_out_psnr_db'] > 0 and len(made.notes['held_out']) == 2
    changed = [name for name, value in made.field.state_dict().items()
               if name not in was.field.state_dict()
               or not torch.equal(value, was.field.state_dict()[name])]
    assert changed  # it learned
    assert not (tmp_path / 'new.build').exists() and (tmp_path / 'new' / 'field.png').exists()


STOPS = {
    'field': (field_module, 'save_checkpoint'), 'after the field': (map_life, 'repainted'),
    'matcher': (map_life, 'train_matcher'), 'saving': (SceneMap, 'save'),
    'after saving': (SceneMap, 'save')}


@pytest.mark.parametrize('stop', STOPS)
def test_a_killed_update_leaves_the_old_map_and_goes_on(
        stop, old, photographs, monkeypatch):
    monkeypatch.setattr(field_module, 'CHECKPOINT_STEPS', 3)
    before, module, name = contents(old), *STOPS[stop]
    original = getattr(module, name)

    def stopping(*args, **options):
        if stop in ('field', 'after saving'):
            original(*args, **options)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(module, name, stopping)
        update_map(old, photographs, None, QUICK)
    work = old.with_name('old.build')
    assert work.exists()
    if stop != 'after saving':
        assert contents(old) == before
    steps, tick = [], field_module.TrainingClock.tick
    monkeypatch.setattr(field_module.TrainingClock, 'tick',
                        lambda clock: (steps.append(1), tick(clock)))
    made = update_map(old, photographs, None, QUICK)
    assert len(steps) == {'field': 5 + 3, 'after the field': 3, 'matcher': 3}.get(stop, 0)
    assert made.notes['new_images'] == 12 and not work.exists()
    assert contents(old) != before  # the new map took its place


def test_what_a_finished_update_left_behind_is_not_taken_for_the_next_one(
        old, photographs, monkeypatch):
    save = SceneMap.save

    def stopping(*args):
        save(*args)
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(SceneMap, 'save', stopping)
        update_map(old, photographs, None, QUICK)
    first = SceneMap.load(old)
    made = update_map(old, photographs, None, replace(QUICK, new_share=0.4))
    assert made.notes['updated_from'] == first.sha256 and (old / 'field.png').exists()


def test_the_frame_of_the_old_map_stays_noted(old, photographs, tmp_path):
    poses = {'from': '/tf', 'frame': 'odom', 'up': '+z, as REP 105 has it'}
    was = SceneMap.load(old)
    replace(was, notes={**was.notes, 'poses': poses}).save(tmp_path / 'noted')
    made = update_map(tmp_path / 'noted', photographs, tmp_path / 'new', QUICK)
    assert made.notes['poses'] == poses


def test_an_unfinished_update_is_refused_with_other_photographs(old, photographs, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(UpdateStages, 'sparse_points', lambda *_: (_ for _ in ()).throw(Killed))
        update_map(old, photographs, None, QUICK)
    with pytest.raises(DataError, match='unfinished build of other'):
        update_map(old, photographs[:-1], None, QUICK)
    with pytest.raises(DataError, match='unfinished build of other'):
        update_map(old, photographs, None, replace(QUICK, new_share=0.4))


def test_photographs_of_another_place_change_nothing(old, truth, monkeypatch):
    monkeypatch.setattr(UpdateStages, 'localized', lambda stages, images, report: (
        [None] * len(images), ['only 3 inliers'] * len(images)))
    before = contents(old)
    with pytest.raises(DataError, match='0 of 12 photographs .*only 3 inliers'):
        update_map(old, truth, None, QUICK)
    assert contents(old) == before
    with pytest.raises(DataError, match='at least 4 photographs, 3 given'):
        update_map(old, truth[:3], None, QUICK)
    with pytest.raises(ConfigError, match='new_share is 1'):
        replace(QUICK, new_share=1.0)


def test_a_field_inherits_all_but_what_belongs_to_photographs(old):
    was = SceneMap.load(old)
    field = was.field_config.make(3)
    inherit(field, was.field)
    own = field.state_dict()
    assert own['exposure'].shape == (3, 6) and not own['exposure'].any()
    for name, value in was.field.state_dict().items():
        assert name == 'exposure' or torch.equal(own[name], value)


def test_a_field_with_appearances_begins_with_their_middle():
    was, field = TINY_MIP.field.make(4), TINY_MIP.field.make(2)
    inherit(field, was)
    middle = was.state_dict()['appearance.weight'].mean(0)
    assert torch.allclose(field.state_dict()['appearance.weight'], middle.expand(2, -1))


def test_a_larger_place_gets_a_larger_field(old, truth):
    was = SceneMap.load(old)
    assert frame_for(was, truth, np.zeros((0, 3))) is was.frame
    assert frame_for(was, truth, np.array([[1.0, 1.0, 1.0]] * 50)) is was.frame
    away = replace(truth[0], map_from_camera=perturb(
        truth[0].map_from_camera, np.array((20.0, 0, 0, 0, 0, 0))))
    larger = frame_for(was, [away], np.array([[22.0, 1.0, 1.0]] * 50))
    assert isinstance(larger, SceneFrame) and isinstance(larger.scene_from_map, Similarity)
    assert np.abs(larger.scene_from_map.apply(away.map_from_camera[:3, 3])).max() < 1
    metres = larger.far / larger.scene_from_map.scale
    assert metres == pytest.approx(was.frame.far / was.frame.scene_from_map.scale)




def test_the_verbs_refuse_what_leads_nowhere(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('nerfmatch_ros.data.reader.read_posed_images', lambda *_, **__: [])
    asked = {
        'no --output is given': ['build', '--images', 'a'],
        'leave --field': ['build', '--images', 'a', '--update', 'm', '--field', 'f'],
        'at least 4 photographs, 0 given': ['build', '--images', 'a', '--update', str(tmp_path)],
        '--minutes -1.0 leaves': ['merge', 'a', 'b', '--output', 'c', '--minutes', '-1'],
        'give two maps and another folder': ['merge', 'a', 'a', '--output', 'c']}
    for error, arguments in asked.items():
        assert cli.main(arguments) == 2
        assert error in capsys.readouterr().err


def test_the_verb_hands_photographs_to_the_map_with_their_poses_or_without(
        tmp_path, truth, monkeypatch, capsys):
    write_dataset(tmp_path / 'new', 4, 1, default_camera(80, 60), supersample=1)
    (tmp_path / 'quick.yaml').write_text('new_share: 0.4')
    asked = []
    monkeypatch.setattr(update_module, 'update_map', lambda *given, **options: asked.append(
        (*given, options['minutes'])))
    arguments = ['build', '--update', str(tmp_path / 'map'), '--images', str(tmp_path / 'new'),
                 '--config', str(tmp_path / 'quick.yaml'), '--minutes', '3', '--device', 'cpu']
    assert cli.main(arguments) == 0
    assert cli.main([*arguments, '--poses', 'none', '--output', str(tmp_path / 'other')]) == 0
    for (folder, images, output, config, minutes), name in zip(asked, ('map', 'other')):
        assert folder == tmp_path / 'map' and output == (tmp_path / name).resolve()
        assert len(images) == 4 and config == UpdateConfig(new_share=0.4) and minutes == 3
        assert all((image.map_from_camera is None) == (name == 'other') for image in images)
    pictures = tmp_path / 'pictures'
    shutil.copytree(tmp_path / 'new' / 'images', pictures)
    arguments[arguments.index('--images') + 1] = str(pictures)
    assert cli.main([*arguments, '--poses', 'none']) == 2
    assert 'give its intrinsics by --camera' in capsys.readouterr().err
