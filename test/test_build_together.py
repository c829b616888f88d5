"""A build by two processes makes the map that one makes, and goes on when one was killed."""

from dataclasses import replace
import os
import signal

from nerfmatch_ros.data.synthetic import SyntheticRoom
from nerfmatch_ros.mapping import build_map as module
from nerfmatch_ros.mapping import train_field, train_matcher
from nerfmatch_ros.radiance_field import renderer
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
from processes import run_together, WorkerDiedError
import pytest
from tiny_build import TINY, tiny_images

# Pieces of the same size draw the same intervals in one process and in two.
CONFIG = replace(
    TINY, held_out=0, calibration=replace(TINY.calibration, trials=1),
    depth=replace(TINY.depth, images=0),
    field_training=replace(TINY.field_training, steps=8, rays=128, depth_rays=0, rays_at_once=64,
                           bfloat16=False),
    matcher_training=replace(TINY.matcher_training, steps=4))


def build(folder, killed_at=None) -> dict:
    """Build the same tiny map; the second process ends itself when it gets to `killed_at`."""
    renderer.OPAQUE = -1.0  # nothing is opaque after so few steps
    train_field.CHECKPOINT_STEPS = train_matcher.CHECKPOINT_STEPS = 2

    def dying(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    if killed_at is not None and os.environ['RANK'] == '1':
        setattr(module, killed_at, dying)
    scene_map = module.build_map(tiny_images(SyntheticRoom(), 4), folder / 'map', CONFIG)
    return {'sha256': scene_map.sha256,
            'field': arrays(scene_map.field), 'matcher': arrays(scene_map.matcher)}


def arrays(module) -> dict[str, np.ndarray]:
    return {name: value.numpy() for name, value in module.state_dict().items()}


def test_two_processes_build_the_map_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(renderer, 'OPAQUE', -1.0)
    for trained in (train_field, train_matcher):
        monkeypatch.setattr(trained, 'CHECKPOINT_STEPS', 2)
    (tmp_path / 'one').mkdir()
    alone = build(tmp_path / 'one')
    first, second = run_together(2, build, tmp_path)
    assert first['sha256'] == second['sha256'] == SceneMap.load(tmp_path / 'map').sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map', 'one']
    # Of the matcher, images are encoded in bfloat16, where another order of sums shows.
    for part, tolerance in (('field', 0.02), ('matcher', 0.1)):
        for name, value in alone[part].items():
            np.testing.assert_allclose(first[part][name], value, atol=tolerance, err_msg=name)


def test_a_build_goes_on_after_a_process_was_killed(tmp_path):
    with pytest.raises(WorkerDiedError, match='-9'):
        run_together(2, build, tmp_path, 'train_matcher')
    assert (tmp_path / 'map.build' / 'field.safetensors').exists()
    first, second = run_together(2, build, tmp_path)
    assert first['sha256'] == second['sha256']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map']
