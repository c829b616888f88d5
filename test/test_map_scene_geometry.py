"""Scene geometry of a map that exists: given anew, and carried on with positions alone."""

from dataclasses import replace
import shutil

from nerfmatch_ros import cli
from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.mapping import map_scene_geometry, rendered_views
from nerfmatch_ros.mapping.calibrate_scene_geometry import GeometryCalibrationConfig
from nerfmatch_ros.mapping.map_scene_geometry import train_for_map
from nerfmatch_ros.mapping.train_scene_geometry import SceneGeometryTraining
from nerfmatch_ros.scene_geometry import SceneGeometryConfig
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
import torch

TRAINING = SceneGeometryTraining(
    network=SceneGeometryConfig(channels=16, width=16, longest_side=64), steps=3, batch=2)
QUICK = GeometryCalibrationConfig(variations=1, new_views=1)


class Killed(BaseException):
    """Ends a training as a kill would."""


@pytest.fixture(scope='module')
def images(room):
    return synthetic_images('train', 12, default_camera(96, 64), room=room, supersample=1)


@pytest.fixture(scope='module')
def taught(tiny_map, images, tmp_path_factory):
    """A map with scene geometry, and the figures of its training; leave it as it is."""
    folder = tmp_path_factory.mktemp('taught') / 'map'
    shutil.copytree(tiny_map, folder)
    return folder, train_for_map(folder, images, TRAINING, calibration=QUICK)


@pytest.fixture
def copied(taught, tmp_path):
    return shutil.copytree(taught[0], tmp_path / 'map')


def weights_of(folder):
    return SceneMap.load(folder).scene_geometry.point_head[-1].weight


def test_a_map_gets_scene_geometry_and_nothing_else_changes(taught, tiny_map):
    folder, figures = taught
    old, new = SceneMap.load(tiny_map), SceneMap.load(folder)
    assert old.scene_geometry is None and new.scene_geometry is not None
    torch.testing.assert_close(new.words, old.words)
    assert figures['images'] + figures['held_out'] == 12 and figures['held_out'] > 0
    assert [path.name for path in folder.parent.iterdir()] == ['map']


def test_positions_alone_carry_it_on_whatever_the_orientations_say(copied, images, tmp_path):
    before = weights_of(copied).clone()
    other = shutil.copytree(copied, tmp_path / 'other')
    lost = [replace(image, map_from_camera=np.block([
        [np.eye(3), image.map_from_camera[:3, 3:]], [np.zeros((1, 3)), np.ones((1, 1))]]))
        for image in images]
    training = replace(TRAINING, labels='position')
    figures = train_for_map(copied, images, training)
    train_for_map(other, lost, training)
    assert figures == {'images': 12, 'anchors': 0, 'held_out': 0, 'rendered': 0,
                       'labels': 'position', 'went_on': True}
    torch.testing.assert_close(weights_of(copied), weights_of(other))
    assert not torch.equal(weights_of(copied), before)


def test_what_is_unfinished_goes_on_with_the_same_photographs_alone(copied, images, monkeypatch):
    train = map_scene_geometry.train_scene_geometry

    def killed(*arguments, checkpoint, **options):
        train(*arguments, checkpoint=checkpoint, **options)
        assert checkpoint.exists()
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(map_scene_geometry, 'train_scene_geometry', killed)
        train_for_map(copied, images, TRAINING, calibration=QUICK)
    with pytest.raises(DataError, match='unfinished build of other photographs'):
        train_for_map(copied, images[:-1], TRAINING, calibration=QUICK)
    train_for_map(copied, images, TRAINING, calibration=QUICK)
    assert [path.name for path in copied.parent.iterdir()] == ['map']


def test_what_was_measured_stays_where_positions_cannot_measure(copied, images):
    before = SceneMap.load(copied).scene_geometry_calibration
    train_for_map(copied, images, replace(TRAINING, labels='position'))
    assert SceneMap.load(copied).scene_geometry_calibration == before


def test_anchors_are_learned_and_kept_apart_from_what_measures(copied, images):
    figures = train_for_map(copied, images[:4], replace(TRAINING, labels='position'),
                            anchors=images, calibration=QUICK)
    assert figures['anchors'] + figures['held_out'] == 12 and figures['held_out'] > 0


def test_views_of_the_field_can_be_learned_as_well(copied, images, monkeypatch):
    monkeypatch.setattr(rendered_views, '_LEAST_KNOWN', 0.0)  # the map is hardly trained
    training = replace(TRAINING, losses=replace(TRAINING.losses, points=1.0))
    figures = train_for_map(copied, images, training, rendered=2, calibration=QUICK)
    assert figures['rendered'] == 2
    assert figures['images'] == 12 - figures['held_out'] + 2


def test_positions_need_a_network_to_go_on_from(tiny_map, images):
    with pytest.raises(ConfigError, match='--labels pose first'):
        train_for_map(tiny_map, images, replace(TRAINING, labels='position'))
    with pytest.raises(ConfigError, match='go on from'):
        train_for_map(tiny_map, images, TRAINING, go_on=True)


def test_the_verb_says_what_is_missing(tiny_map, tmp_path, capsys):
    assert cli.main(['train-scene-geometry', '--map', str(tmp_path / 'none'), '--images',
                     str(tmp_path), '--minutes', '0']) == 2
    assert '--minutes 0' in capsys.readouterr().err


def test_photographs_named_like_those_that_measure_are_learned_all_the_same(copied, images):
    new = [replace(image, pixels=image.pixels.copy()) for image in images]
    figures = train_for_map(copied, new, replace(TRAINING, labels='position'), anchors=images,
                            calibration=QUICK)
    assert figures['images'] == 12 and figures['anchors'] == 12 - figures['held_out'] < 12


def test_a_training_without_photographs_of_its_own_is_refused(copied, images):
    held = images[:3]
    with pytest.raises(DataError, match='give others'):
        train_for_map(copied, [], replace(TRAINING, labels='position'), anchors=held)


def test_another_network_than_that_to_go_on_from_is_refused(copied, images):
    other = replace(TRAINING, network=replace(TRAINING.network, channels=32))
    with pytest.raises(ConfigError, match='channels is 32, but the network of .* has 16'):
        train_for_map(copied, images, other, go_on=True)
    default = replace(TRAINING, network=SceneGeometryConfig())
    assert train_for_map(copied, images, default, go_on=True, calibration=QUICK)['went_on']
    assert SceneMap.load(copied).scene_geometry.config.channels == 16


def test_the_points_of_the_field_are_learned_where_they_are_asked_for(copied, images, monkeypatch):
    learned = []
    train = map_scene_geometry.train_scene_geometry

    def watched(photographs, *arguments, **options):
        learned.extend(photographs)
        return train(photographs, *arguments, **options)

    monkeypatch.setattr(map_scene_geometry, 'train_scene_geometry', watched)
    train_for_map(copied, images, TRAINING, calibration=QUICK)
    assert all(image.depth is images[0].depth is None for image in learned)
    learned.clear()
    training = replace(TRAINING, losses=replace(TRAINING.losses, points=1.0))
    train_for_map(copied, images, training, calibration=QUICK)
    assert learned and all((image.depth_map() > 0).any() for image in learned)
