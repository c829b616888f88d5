"""A build by two processes makes the map that one makes, and goes on when one was killed."""

from dataclasses import replace
import os
import signal
from unittest import mock

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
    # Four steps of the warm-up are to move weights far more than another order of sums does.
    matcher_training=replace(TINY.matcher_training, steps=4, rate=0.1, bfloat16=False))


def build(folder, killed_at=None) -> dict:
    """Build the same tiny map; the second process ends itself when it gets to `killed_at`."""
    renderer.OPAQUE = -1.0  # nothing is opaque after so few steps
    train_field.CHECKPOINT_STEPS = train_matcher.CHECKPOINT_STEPS = 2

    def dying(*args, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    weights = {}

    def watched(matcher, *args, **options):
        weights['parameters'] = [name for name, _ in matcher.named_parameters()]
        weights['start'] = arrays(matcher)
        train_matcher.train_matcher(matcher, *args, **options)
        # This process's own, before the first one's are loaded.
        weights['end'] = arrays(matcher)

    with mock.patch.object(module, 'train_matcher', watched):
        if killed_at is not None and os.environ['RANK'] == '1':
            setattr(module, killed_at, dying)
        scene_map = module.build_map(tiny_images(SyntheticRoom(), 4), folder / 'map', CONFIG)
    return {'sha256': scene_map.sha256, 'field': arrays(scene_map.field),
            'matcher': arrays(scene_map.matcher), **weights}


def arrays(module) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in module.state_dict().items()}


def test_two_processes_build_the_map_of_one(tmp_path, monkeypatch):
    monkeypatch.setattr(renderer, 'OPAQUE', -1.0)
    for trained in (train_field, train_matcher):
        monkeypatch.setattr(trained, 'CHECKPOINT_STEPS', 2)
    (tmp_path / 'one').mkdir()
    alone = build(tmp_path / 'one')
    first, second = run_together(2, build, tmp_path)
    assert first['sha256'] == second['sha256'] == SceneMap.load(tmp_path / 'map').sha256
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map', 'one']
    for name, value in alone['field'].items():
        np.testing.assert_allclose(first['field'][name], value, atol=0.02, err_msg=name)
    # Adam makes steps of one size even where a gradient is next to nothing, so that single entries
    # may differ by what they moved; on average a weight must not.
    for name in alone['parameters']:
        start, end = alone['start'][name], alone['end'][name]
        assert np.abs(end - start).mean() > 0.003, name
        np.testing.assert_allclose(  # the map stores large tensors in half precision
            first['matcher'][name], first['end'][name], rtol=1e-3, atol=1e-6, err_msg=name)
        for process in (first, second):
            assert np.abs(process['end'][name] - end).mean() < 0.0015, name


def test_a_build_goes_on_after_a_process_was_killed(tmp_path):
    with pytest.raises(WorkerDiedError, match='-9'):
        run_together(2, build, tmp_path, 'train_matcher')
    assert (tmp_path / 'map.build' / 'field.safetensors').exists()
    first, second = run_together(2, build, tmp_path)
    assert first['sha256'] == second['sha256']
    assert sorted(path.name for path in tmp_path.iterdir()) == ['map']
