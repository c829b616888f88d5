"""One matcher for several maps: both get it, keep what is theirs, and work is not done twice."""

from dataclasses import replace
import shutil
from types import SimpleNamespace

from nerfmatch_ros import cli
from nerfmatch_ros.config import to_dict
from nerfmatch_ros.data.synthetic import SyntheticRoom
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.mapping import shared_matcher as module
from nerfmatch_ros.mapping.calibrate import CalibrationConfig
from nerfmatch_ros.mapping.shared_matcher import share_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.references import References
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
from processes import run_together
import pytest
from tiny_build import TINY, tiny_images
import torch

CONFIG = replace(TINY, calibration=CalibrationConfig(trials=2, photographs=1),
                 matcher_training=replace(TINY.matcher_training, steps=3, pairs_at_once=1))
PAPER = replace(CONFIG, matcher=replace(
    MatcherConfig.published(fine=True), backbone='convformer_s18', octaves=4, self_attention=1,
    point_feature='f2'))


@pytest.fixture(scope='module')
def images(room):
    return tiny_images(room)


@pytest.fixture(scope='module')
def maps(tiny_map, tmp_path_factory):
    """Two maps; the second one keeps few of its views and names no photographs held out."""
    folder = tmp_path_factory.mktemp('maps')
    shutil.copytree(tiny_map, folder / 'a')
    scene_map = SceneMap.load(tiny_map)
    old, kept = scene_map.references, [7, 2]
    views = [SimpleNamespace(points=points, features=features)
             for points, features in map(old.view, kept)]
    few = References(
        [old.names[k] for k in kept], [old.cameras[k] for k in kept], old.map_from_camera[kept],
        old.descriptors[kept], torch.tensor([0] + [len(view.points) for view in views]).cumsum(0),
        stored=views)
    replace(scene_map, frame_id='other', references=few, neighbours={'query.png': [1, 0]}, notes={
        **scene_map.notes, 'held_out': [], 'matcher_checkpoint': 'old.ckpt'}).save(folder / 'b')
    return [folder / 'a', folder / 'b']


@pytest.mark.parametrize('config', [CONFIG, PAPER], ids=['own', 'paper'])
def test_all_maps_get_the_same_matcher_and_keep_their_own(
        config, maps, images, tmp_path, caplog):
    caplog.set_level('INFO', logger='nerfmatch_ros')
    folders = share_matcher(maps, [images, images], tmp_path / 'out', config)
    assert folders == [tmp_path / 'out' / 'a', tmp_path / 'out' / 'b']
    assert not (tmp_path / 'out.build').exists()
    old, new = ([SceneMap.load(folder) for folder in group] for group in (maps, folders))
    for name, value in new[0].matcher.state_dict().items():
        assert torch.equal(value, new[1].matcher.state_dict()[name])
    for before, after in zip(old, new):
        assert after.matcher_config == config.matcher and after.frame_id == before.frame_id
        assert after.frame.scene_from_map.to_dict() == before.frame.scene_from_map.to_dict()
        assert after.localization == (before.localization if config is CONFIG
                                      else to_dict(config.localization))
        assert after.reference_names == before.reference_names
        assert after.references.holds == ('features' if config is CONFIG else 'tokens')
        np.testing.assert_array_equal(after.reference_poses, before.reference_poses)
        assert after.neighbours == before.neighbours
        for name, value in before.surface_cache.to_tensors().items():
            assert torch.equal(value, after.surface_cache.to_tensors()[name]), name
        assert 'matcher_checkpoint' not in after.notes
        for name, value in before.field.state_dict().items():
            assert torch.equal(value, after.field.state_dict()[name])
        assert after.words.shape[1] == after.matcher.token_channels
        assert after.notes['matcher_shared_by'] == ['a', 'b']
        assert np.isfinite(after.references.descriptors.numpy()).all()
        estimate = Localizer(after).localize(images[0])
        assert estimate.map_from_camera is not None or estimate.reason
    assert new[0].calibration and not new[1].calibration
    assert 'not calibrated' in caplog.text
    for stage in ('views of a', 'matcher', 'words of b', 'calibration of a'):
        assert f'{stage}: 100 %' in caplog.text


def moved(images, k, metres):
    """Give the photographs with one of them taken from elsewhere."""
    pose = images[k].map_from_camera.copy()
    pose[0, 3] += metres
    return [*images[:k], replace(images[k], map_from_camera=pose), *images[k + 1:]]


def test_photographs_of_another_place_are_refused(maps, images, tmp_path):
    def given(photographs):
        share_matcher(maps[:1], [photographs], tmp_path / 'out', CONFIG)

    with pytest.raises(DataError, match=f"'{images[4].name}' .* lies 0.010 m and 0.00 degrees"):
        given(moved(moved(images, 9, 2.0), 4, 0.01))
    turned = images[5].map_from_camera @ np.diag([-1.0, -1.0, 1.0, 1.0])
    with pytest.raises(DataError, match=f"'{images[5].name}' .* lies 0.000 m and 180.00 degrees"):
        given([*images[:5], replace(images[5], map_from_camera=turned), *images[6:]])
    camera = replace(images[2].camera, fx=images[2].camera.fx + 1)
    with pytest.raises(DataError, match=f"'{images[2].name}' .* intrinsics"):
        given([*images[:2], replace(images[2], camera=camera), *images[3:]])
    with pytest.raises(DataError, match='has no pose'):
        given([*images[:-1], replace(images[-1], map_from_camera=None)])
    assert not (tmp_path / 'out.build').exists()


def test_places_of_the_new_maps_are_checked_before_any_work(maps, images, tmp_path):
    other = tmp_path / 'out' / 'b'
    other.mkdir(parents=True)
    (other / 'letter.txt').write_text('keep me')
    with pytest.raises(DataError, match='b is not empty and holds no map'):
        share_matcher(maps, [images, images], tmp_path / 'out', CONFIG)
    shutil.rmtree(other)
    other.write_text('a file')
    with pytest.raises(DataError, match='b is a file'):
        share_matcher(maps, [images, images], tmp_path / 'out', CONFIG)
    other.unlink()
    other.symlink_to(maps[0])
    with pytest.raises(DataError, match='would replace'):
        share_matcher(maps, [images, images], tmp_path / 'out', CONFIG)
    assert not (tmp_path / 'out.build').exists()


def test_finished_work_is_not_done_again(maps, images, tmp_path, monkeypatch):
    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, '_put_together', stop)
        with pytest.raises(KeyboardInterrupt):
            share_matcher(maps, [images, images], tmp_path / 'out', CONFIG)
    with pytest.raises(DataError, match='unfinished'):
        share_matcher(maps[:1], [images], tmp_path / 'out', CONFIG)
    with pytest.raises(DataError, match='unfinished'):  # poses that are only rounded otherwise
        share_matcher(maps, [images, moved(images, 3, 1e-4)], tmp_path / 'out', CONFIG)
    for used in ('train_matcher', 'training_data'):
        monkeypatch.setattr(module, used, stop)
    folders = share_matcher(maps, [images, images], tmp_path / 'out', CONFIG)
    assert all((folder / 'map.yaml').exists() for folder in folders)


def share(maps, output) -> dict[str, np.ndarray]:
    """Give the words of the new maps, as this process reads them."""
    images = tiny_images(SyntheticRoom())
    return {folder.name: SceneMap.load(folder).words.numpy()
            for folder in share_matcher(maps, [images, images], output, CONFIG)}


def test_two_processes_share_the_work_and_one_writes(maps, tmp_path):
    first, second = run_together(2, share, maps, tmp_path / 'out')
    assert first.keys() == second.keys() == {'a', 'b'}
    for name, words in first.items():
        np.testing.assert_array_equal(second[name], words)
    assert not (tmp_path / 'out.build').exists()


def test_maps_that_cannot_share_are_refused(maps, images, tmp_path):
    with pytest.raises(ConfigError, match='2 maps and 1 sets'):
        share_matcher(maps, [images], tmp_path / 'out', CONFIG)
    with pytest.raises(ConfigError, match='same folder name'):
        share_matcher([maps[0], maps[0]], [images, images], tmp_path / 'out', CONFIG)
    with pytest.raises(DataError, match='not among the photographs'):
        share_matcher(maps, [images, images[:5]], tmp_path / 'out', CONFIG)
    with pytest.raises(DataError, match='would replace'):
        share_matcher(maps, [images, images], maps[0].parent, CONFIG)
    deep = replace(CONFIG, matcher=replace(CONFIG.matcher, point_feature='f9'))
    with pytest.raises(ConfigError, match='f1 to f3'):
        share_matcher(maps, [images, images], tmp_path / 'out', deep)


def test_a_batch_too_small_for_the_processes_is_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr(module, 'make_engine', lambda device: SimpleNamespace(
        world_size=3, is_global_zero=True, device=torch.device(device)))
    with pytest.raises(ConfigError, match='shared by 3 processes'):
        share_matcher([tmp_path / 'none'], [[]], tmp_path / 'out', CONFIG)


def test_the_verb_wants_photographs_for_each_map(tmp_path, capsys):
    assert cli.main(['train-matcher', '--maps', 'a', 'b', '--images', 'c', '--output', 'd']) == 2
    assert '2 maps and 1 folders' in capsys.readouterr().err
    assert cli.main(['train-matcher', '--maps', 'a', 'b', '--images', 'c', 'd', '--annotations',
                     'e', '--output', 'f']) == 2
    assert '2 maps and 1 annotations' in capsys.readouterr().err


def test_the_verb_reads_annotations(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr('nerfmatch_ros.data.reader.read_posed_images', lambda folder, split, **
                        given: read.append((folder.name, given['annotations'].name)))
    monkeypatch.setattr(module, 'share_matcher', lambda *given, **options: [])
    assert cli.main(['train-matcher', '--maps', 'a', 'b', '--images', 'c', 'd', '--annotations',
                     'e.json', 'f.json', '--output', str(tmp_path)]) == 0
    assert read == [('c', 'e.json'), ('d', 'f.json')]
