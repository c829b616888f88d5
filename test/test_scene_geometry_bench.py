"""Comparing ways to train scene geometry: the same data, nothing done twice, honest figures."""

from dataclasses import replace
import json

from nerfmatch_ros import scene_geometry_bench
from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.evaluation.metrics import pose_errors
from nerfmatch_ros.mapping.build_folder import MARK
from nerfmatch_ros.mapping.train_scene_geometry import SceneGeometryTraining
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
from nerfmatch_ros.scene_geometry_bench import (
    bench_positions,
    bench_scene_geometry,
    errors_of,
    parted,
    variant_named,
)
import numpy as np
import pytest

CONFIG = SceneGeometryTraining(
    network=SceneGeometryConfig(channels=16, width=16, longest_side=64), steps=2, batch=2)


class _CutShort(Exception):
    """A stand-in for the training was interrupted."""


@pytest.fixture(scope='module')
def images(room):
    return synthetic_images('train', 6, default_camera(96, 64), room=room, supersample=1)


@pytest.fixture
def trained(monkeypatch):
    """Stand for the training; the configurations that it was asked for."""
    class Asked(list):
        def __init__(self):
            self.options = []

    asked = Asked()

    def stand_in(images, config, *, report, **options):
        asked.append(config)
        asked.options.append(options)
        report(1.0, {'step': config.steps})
        return SceneGeometry(config.network).eval().requires_grad_(False)

    monkeypatch.setattr(scene_geometry_bench, 'train_scene_geometry', stand_in)
    return asked


def test_each_row_of_the_ablation_adds_a_loss(trained, images, tmp_path):
    bench_scene_geometry(images[:4], images[4:], ['pose loss', '+ consistency', '+ reprojection',
                                                  'without weights'], CONFIG, tmp_path)
    losses = [config.losses for config in trained]
    assert [(bool(loss.pose), bool(loss.consistency), bool(loss.reprojection), loss.weighted)
            for loss in losses] == [(True, False, False, True), (True, True, False, True),
                                    (True, True, True, True), (True, True, True, False)]


def test_any_other_name_is_a_backbone(trained, images, tmp_path):
    report = bench_scene_geometry(images[:4], images[4:], ['mobilenetv3_small_100'], CONFIG,
                                  tmp_path)
    assert trained[0].network.backbone == 'mobilenetv3_small_100'
    assert trained[0].losses == CONFIG.losses
    assert report['results']['mobilenetv3_small_100']['parameters'] > 100_000
    with pytest.raises(ConfigError, match='no name'):
        variant_named('')


def test_positions_go_on_from_poses_and_keep_these_as_anchors(trained, images, tmp_path):
    known, new, test = parted(split(images), 0.5)
    report = bench_positions(known, new, test, CONFIG, tmp_path)
    assert list(report['results']) == [
        'poses of the known', '+ more steps with these', '+ positions of the new']
    labels = [config.labels for config in trained]
    assert labels.count('position') == 1 and labels[-1] == 'position'
    last = trained.options[-1]
    assert last['anchors'] == known and last['start'] is not None
    count = len(trained)
    assert bench_positions(known, new, test, CONFIG, tmp_path) == report
    assert len(trained) == count  # nothing is done twice
    with pytest.raises(DataError, match='known holds a training of other photographs'):
        bench_positions(known[:1], new, test, CONFIG, tmp_path)
    assert len(trained) == count


def test_a_data_set_is_parted_in_its_order(images):
    known, new, test = parted(split(images), 0.5)
    assert [image.name for image in known] == [image.name for image in images[:2]]
    assert [image.name for image in new] == [image.name for image in images[3:5]]
    assert [image.name for image in test] == [images[5].name]
    with pytest.raises(ConfigError, match='between 0 and 1'):
        parted(images, 1.0)


def split(images):
    """Every third photograph is to measure with."""
    return [replace(image, split='test' if k % 3 == 2 else 'train')
            for k, image in enumerate(images)]


def test_finished_variants_are_kept(trained, images, tmp_path):
    reports = [bench_scene_geometry(images[:4], images[4:], ['pose loss'], CONFIG, tmp_path)
               for _ in range(2)]
    assert len(trained) == 1 and reports[0] == reports[1]
    with pytest.raises(DataError, match='another --output'):
        bench_scene_geometry(images[:4], images[4:], ['pose loss'], replace(CONFIG, steps=3),
                             tmp_path)


@pytest.mark.parametrize('other', ['learned', 'measured', 'minutes'])
def test_figures_of_another_bench_are_refused(trained, images, tmp_path, other):
    bench_scene_geometry(images[:3], images[4:], ['pose loss'], CONFIG, tmp_path, minutes=2)
    train, test = images[:4] if other == 'learned' else images[:3], images[4:]
    with pytest.raises(DataError, match='pose_loss holds a training of other .* --output'):
        bench_scene_geometry(train, test[1:] if other == 'measured' else test, ['pose loss'],
                             CONFIG, tmp_path, minutes=3 if other == 'minutes' else 2)
    assert len(trained) == 1


def test_what_was_cut_short_goes_on_with_its_own_photographs_alone(images, tmp_path, monkeypatch):
    asked = []

    def cut(given, config, *, checkpoint, **options):
        asked.append(given)
        checkpoint.write_bytes(b'a state')
        raise _CutShort

    monkeypatch.setattr(scene_geometry_bench, 'train_scene_geometry', cut)
    for _ in range(2):
        with pytest.raises(_CutShort):
            bench_scene_geometry(images[:4], images[4:], ['pose loss'], CONFIG, tmp_path)
    with pytest.raises(DataError, match='other photographs'):
        bench_scene_geometry(images[1:4], images[4:], ['pose loss'], CONFIG, tmp_path)
    assert asked == [images[:4]] * 2


def test_a_folder_in_which_nothing_was_kept_is_free(images, tmp_path, monkeypatch):
    asked = []

    def at_once(given, config, **options):
        asked.append(given)
        raise _CutShort

    monkeypatch.setattr(scene_geometry_bench, 'train_scene_geometry', at_once)
    for train in (images[:4], images[:3]):
        with pytest.raises(_CutShort):
            bench_scene_geometry(train, images[4:], ['pose loss'], CONFIG, tmp_path)
    assert asked == [images[:4], images[:3]]


def test_figures_that_say_not_what_they_are_of_are_refused(trained, images, tmp_path):
    bench_scene_geometry(images[:4], images[4:], ['pose loss'], CONFIG, tmp_path)
    (tmp_path / 'pose_loss' / MARK).unlink()
    with pytest.raises(DataError, match=r'result.json does not say .* give another --output'):
        bench_scene_geometry(images[:4], images[4:], ['pose loss'], CONFIG, tmp_path)


def test_what_no_variant_can_be_trained_with_is_refused_before_any_is(trained, images, tmp_path):
    for variants, words in ((('pose loss', 'resnet99'), 'no network .resnet99'),
                            (('pose loss', '+ consistency', 'pose loss'), "'pose loss' and 'pose"),
                            (('pose loss', 'pose_loss'), "'pose loss' and 'pose_loss'")):
        with pytest.raises(ConfigError, match=words):
            bench_scene_geometry(images[:4], images[4:], variants, CONFIG, tmp_path)
    bench_scene_geometry(images[:4], images[4:], ['pose loss'], CONFIG, tmp_path)
    with pytest.raises(DataError, match='holds a training of other'):
        bench_scene_geometry(images[:3], images[4:], ['+ consistency', 'pose loss'], CONFIG,
                             tmp_path)
    assert len(trained) == 1


def test_figures_without_an_end_are_none_in_json(trained, images, tmp_path, monkeypatch):
    monkeypatch.setattr(scene_geometry_bench, 'errors_of', lambda network, images: (
        pose_errors([None] * 2, [image.map_from_camera for image in images]), 1.0))
    report = bench_scene_geometry(images[:4], images[4:], ['pose loss'], CONFIG, tmp_path)
    result = report['results']['pose loss']
    assert result['median_m'] is None and result['within_goal'] == 0
    assert scene_geometry_bench.cells(result)[0] == '-'

    def refuse(text):
        raise AssertionError(f'{text} is no JSON')

    for path in (tmp_path / 'scene_geometry.json', tmp_path / 'pose_loss' / 'result.json'):
        json.loads(path.read_text(), parse_constant=refuse)


def test_what_measures_must_not_have_trained(trained, images, tmp_path):
    with pytest.raises(DataError, match='to train and to measure'):
        bench_scene_geometry(images, images[4:], ['pose loss'], CONFIG, tmp_path)
    with pytest.raises(DataError, match='left to measure'):
        bench_scene_geometry(images, [], ['pose loss'], CONFIG, tmp_path)
    with pytest.raises(DataError, match='left to train'):
        bench_scene_geometry([], images, ['pose loss'], CONFIG, tmp_path)
    unposed = [replace(images[5], map_from_camera=None)]
    with pytest.raises(DataError, match='no pose'):
        bench_scene_geometry(images[:4], unposed, ['pose loss'], CONFIG, tmp_path)
    assert not trained


@pytest.mark.parametrize('part, words', [
    (0, 'to learn poses from'), (1, 'to learn positions from'), (2, 'to measure with')])
def test_positions_need_photographs_of_every_part(trained, images, tmp_path, part, words):
    parts = [images[:2], images[2:4], images[4:]]
    parts[part] = []
    with pytest.raises(DataError, match=f'left {words}'):
        bench_positions(*parts, CONFIG, tmp_path)
    with pytest.raises(DataError, match='to train and to measure'):
        bench_positions(images[:2], images[2:5], images[4:], CONFIG, tmp_path)
    assert not trained


def test_errors_are_those_of_the_poses_that_the_network_sees(images):
    network = SceneGeometry(CONFIG.network).eval().requires_grad_(False)
    network.point_head[-1].weight.normal_()  # as made, it sees all points in one place
    errors, milliseconds = errors_of(network, images[:2])
    assert milliseconds > 0
    moved = [replace(image, map_from_camera=_shifted(image.map_from_camera)) for image in images]
    others, _ = errors_of(network, moved[:2])
    assert np.all(others.translation > errors.translation + 50)
    np.testing.assert_allclose(others.rotation, errors.rotation)


def _shifted(pose):
    pose = pose.copy()
    pose[:3, 3] += 100
    return pose


def test_a_training_in_earnest_fills_a_row_and_its_section(images, tmp_path):
    config = replace(CONFIG, rate=1.0)  # so that the points part from each other in two steps
    report = bench_scene_geometry(images[:4], images[4:], ['+ reprojection'], config,
                                  tmp_path / 'out')
    result = report['results']['+ reprojection']
    assert result['steps'] == 2 and result['median_m'] > 0 and 0 <= result['within_goal'] <= 1
    file = tmp_path / 'scene_geometry.md'
    for name in ('kitchen', 'hall', 'kitchen'):
        scene_geometry_bench.write_section(report, file, name, 'nerfmatch bench scene-geometry')
    text = file.read_text()
    assert text.count('## kitchen') == 1 and text.count('## hall') == 1
    assert text.count('| + reprojection |') == 2
