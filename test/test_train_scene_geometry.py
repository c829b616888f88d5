"""Training of scene geometry: it learns, goes on after an interruption, and from positions."""

from dataclasses import replace
import math

from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.mapping import train_scene_geometry as module
from nerfmatch_ros.mapping.train_scene_geometry import (
    middle_and_extent,
    SceneGeometryTraining,
    train_scene_geometry,
)
from nerfmatch_ros.scene_geometry import SceneGeometry, SceneGeometryConfig
import numpy as np
import pytest
import torch

NETWORK = SceneGeometryConfig(channels=16, width=16, longest_side=64)
CONFIG = SceneGeometryTraining(network=NETWORK, steps=6, batch=2, bfloat16=False)


@pytest.fixture(scope='module')
def images(room):
    return synthetic_images('train', 6, default_camera(96, 64), room=room, supersample=1,
                            depth=True)


def test_the_losses_fall(images, tmp_path, monkeypatch):
    monkeypatch.setattr(module, '_WARM_UP', 5)
    seen = []
    train_scene_geometry(images, replace(CONFIG, steps=40, rate=4e-3),
                         checkpoint=tmp_path / 'state',
                         report=lambda progress, numbers: seen.append(numbers))
    assert seen[-1]['step'] == 40
    for name in ('pose', 'consistency'):
        assert seen[-1][name] < 0.9 * seen[0][name]


@pytest.mark.parametrize('dropout', [0.0, 0.3])
def test_a_training_that_was_killed_ends_as_it_would_have(images, tmp_path, monkeypatch, dropout):
    monkeypatch.setattr(module, 'CHECKPOINT_STEPS', 3)
    config = replace(CONFIG, network=replace(NETWORK, dropout=dropout))
    whole = train_scene_geometry(images, config, checkpoint=tmp_path / 'whole')

    def killed(progress, numbers):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, 'save_checkpoint', _then(module.save_checkpoint, killed))
    with pytest.raises(KeyboardInterrupt):
        train_scene_geometry(images, config, checkpoint=tmp_path / 'cut')
    monkeypatch.undo()
    resumed = train_scene_geometry(images, config, checkpoint=tmp_path / 'cut')
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, msg=name)


def test_a_finished_training_is_not_done_again(images, tmp_path):
    once = train_scene_geometry(images, CONFIG, checkpoint=tmp_path / 'state')
    seen = []
    again = train_scene_geometry(images, CONFIG, checkpoint=tmp_path / 'state',
                                 report=lambda progress, numbers: seen.append(numbers))
    assert seen == [{'step': CONFIG.steps}]
    for name, value in once.state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, msg=name)


def _then(first, second):
    def both(*arguments, **named):
        first(*arguments, **named)
        second(0, {})
    return both


def test_going_on_from_a_network_leaves_that_one_as_it_was(images, tmp_path):
    start = train_scene_geometry(images, CONFIG, checkpoint=tmp_path / 'first')
    before = {name: value.clone() for name, value in start.state_dict().items()}
    found = train_scene_geometry(images, CONFIG, start=start, checkpoint=tmp_path / 'second')
    for name, value in start.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)
    assert not torch.equal(found.point_head[-1].weight, start.point_head[-1].weight)
    assert found.config.working_focal == start.config.working_focal


def test_training_from_positions_gives_the_same_whatever_the_rotations_say(images, tmp_path):
    start = train_scene_geometry(images, CONFIG, checkpoint=tmp_path / 'first')
    config = replace(CONFIG, labels='position')
    lost = [replace(image, map_from_camera=np.block([
        [np.eye(3), image.map_from_camera[:3, 3:]], [np.zeros((1, 3)), np.ones((1, 1))]]))
        for image in images]
    found, blind = (train_scene_geometry(given, config, start=start, checkpoint=tmp_path / name)
                    for given, name in ((images, 'known'), (lost, 'lost')))
    for name, value in found.state_dict().items():
        torch.testing.assert_close(blind.state_dict()[name], value, msg=name)


def test_anchors_keep_their_rotations_beside_positions(images, tmp_path):
    start = train_scene_geometry(images, CONFIG, checkpoint=tmp_path / 'first')
    config = replace(CONFIG, labels='position', steps=2)
    upside_down = [replace(image, map_from_camera=image.map_from_camera @ np.diag((-1., -1, 1, 1)))
                   for image in images[:3]]
    found, other = (train_scene_geometry(
        images[3:], config, start=start, anchors=anchors, checkpoint=tmp_path / name)
        for anchors, name in ((images[:3], 'upright'), (upside_down, 'upside down')))
    assert not torch.equal(found.point_head[-1].weight, other.point_head[-1].weight)


def test_positions_alone_cannot_start_a_map(images, tmp_path):
    with pytest.raises(ConfigError, match='start from a network'):
        train_scene_geometry(images, replace(CONFIG, labels='position'),
                             checkpoint=tmp_path / 'state')


def test_known_depths_can_teach_the_points(images, tmp_path):
    seen = []
    losses = replace(CONFIG.losses, points=1.0)
    train_scene_geometry(images, replace(CONFIG, losses=losses, steps=10),
                         checkpoint=tmp_path / 'state',
                         report=lambda progress, numbers: seen.append(numbers))
    assert seen[-1]['points'] > 0


def test_points_without_any_depth_and_no_photographs_are_refused(images, tmp_path):
    losses = replace(CONFIG.losses, points=1.0)
    bare = [replace(image, depth=None) for image in images]
    with pytest.raises(ConfigError, match='points is 1, but no photograph has depth'):
        train_scene_geometry(bare, replace(CONFIG, losses=losses), checkpoint=tmp_path / 'state')
    with pytest.raises(DataError, match='no photographs are given'):
        train_scene_geometry([], CONFIG, checkpoint=tmp_path / 'state', anchors=images)


def test_the_network_comes_ready_to_predict(images, tmp_path):
    found = train_scene_geometry(images, CONFIG, checkpoint=tmp_path / 'state')
    assert isinstance(found, SceneGeometry) and not found.training
    assert not any(p.requires_grad for p in found.parameters())
    centres = np.stack([image.map_from_camera[:3, 3] for image in images])
    assert found.extent.item() == pytest.approx(np.linalg.norm(np.ptp(centres, axis=0)), rel=1e-5)


def test_the_middle_of_a_scene_lies_ahead_of_its_cameras():
    poses = np.tile(np.eye(4), (3, 1, 1))
    poses[:, 0, 3] = (0, 1, 2)
    middle, extent = middle_and_extent(poses)
    np.testing.assert_allclose(middle, (1, 0, 1))
    assert extent == pytest.approx(2)
    with pytest.raises(DataError, match='one place'):
        middle_and_extent(poses[:1])


@pytest.mark.parametrize('losses', [{}, {'pose': 0.0}])
def test_a_training_that_diverges_says_so(images, tmp_path, losses):
    config = replace(CONFIG, rate=1e30, steps=20, losses=replace(CONFIG.losses, **losses))
    with pytest.raises(ConfigError, match=r'step \d+ .* scene_geometry.rate 1e\+30.*lower'):
        train_scene_geometry(images, config, checkpoint=tmp_path / 'state')
    assert not (tmp_path / 'state').exists()  # which it could not go on from


def test_a_gradient_without_end_is_not_learned_from(images, tmp_path, monkeypatch):
    def steep(*given):
        losses = step_losses(*given)
        value = losses['pose']
        return {**losses, 'pose': value + (value - value.detach()).abs().sqrt()}

    step_losses = module.step_losses
    monkeypatch.setattr(module, 'step_losses', steep)
    with pytest.raises(ConfigError, match='step 1 the loss or its gradient'):
        train_scene_geometry(images, replace(CONFIG, steps=1), checkpoint=tmp_path / 'state')


@pytest.mark.parametrize('wrong', [
    {'labels': 'none'}, {'steps': 0}, {'batch': 0}, {'average': 1}, {'rate': 0.0},
    {'rate': math.nan}, {'rate': math.inf}, {'weight_decay': -0.1}, {'weight_decay': math.nan},
    {'weight_decay': math.inf}])
def test_values_that_no_training_can_work_with_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(CONFIG, **wrong)
