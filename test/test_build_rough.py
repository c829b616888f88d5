"""A build of rough poses: they are registered first, in a stage like any other."""

from dataclasses import replace
import math
from types import SimpleNamespace

from nerfmatch_ros.data.pose_noise import noisy
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping import build_map as building
from nerfmatch_ros.mapping.build_map import build_map
from nerfmatch_ros.mapping.register_poses import RegistrationConfig, TABLE
import numpy as np
import pytest
from tiny_build import TINY, tiny_images
import torch

CONFIG = replace(TINY, registration=RegistrationConfig(steps=('features',)))


@pytest.fixture(scope='module')
def exact(room):
    return tiny_images(room)


@pytest.fixture(scope='module')
def rough(exact):
    poses = noisy(poses_of(exact), 0.05, math.radians(2), torch.Generator().manual_seed(3))
    return [replace(image, map_from_camera=pose) for image, pose in zip(exact, poses)]


def poses_of(images):
    return np.stack([image.map_from_camera for image in images])


def test_the_map_is_made_of_the_mended_poses(exact, rough, tmp_path, monkeypatch):
    def mended(images, prior, **_):
        return SimpleNamespace(poses=poses_of(exact), numbers={'changed': True})

    monkeypatch.setattr('nerfmatch_ros.mapping.register_poses.make_consistent', mended)
    scene_map = build_map(rough, tmp_path / 'map', CONFIG, rough=True)
    np.testing.assert_allclose(scene_map.reference_poses, poses_of(exact), atol=1e-6)
    notes = scene_map.notes['registration']
    assert notes['steps'] == 'features' and notes['features']['changed']
    assert 0.02 < notes['moved_median_m'] < 0.2
    assert (tmp_path / 'map' / TABLE).exists()


def test_a_build_that_was_killed_after_the_registration_does_not_register_again(
        rough, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt
    monkeypatch.setattr(building, 'triangulate', killed)
    with pytest.raises(KeyboardInterrupt):
        build_map(rough, tmp_path / 'map', CONFIG, rough=True)
    monkeypatch.undo()
    monkeypatch.setattr('nerfmatch_ros.mapping.register_poses.make_consistent', killed)
    monkeypatch.setattr(building, 'train_field', killed)
    with pytest.raises(KeyboardInterrupt) as raised:
        build_map(rough, tmp_path / 'map', CONFIG, rough=True)
    assert 'train_field' in str(raised.traceback[-2])


def test_a_field_of_exact_poses_and_rough_ones_do_not_go_together(rough, tmp_path):
    with pytest.raises(ConfigError, match='exact poses'):
        build_map(rough, tmp_path / 'map', CONFIG, rough=True, given=object())
    assert not (tmp_path / 'map.build').exists()
