"""Two processes train a matcher like one, also after one of them was killed."""

from dataclasses import replace
import os
import signal

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping import train_matcher as module
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.engine import make_engine
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig, training_data
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
import numpy as np
from processes import run_together, WorkerDiedError
import pytest
from sphere_scene import FRAME, sphere_images, sphere_references
import torch

# Rounding to half precision depends on the order of sums.
CONFIG = MatcherTrainingConfig(steps=30, batch=3, points=60, fine_matches=30, bfloat16=False)
PAIRS = replace(CONFIG, batch=3, pairs_at_once=1, rate=4e-4, weight_decay=0.0, steps=20)
FULL = replace(MatcherConfig.published(fine=True), backbone='convformer_s18', octaves=4,
               self_attention=1)
KINDS = {'own': (MatcherConfig(channels=32, fine_channels=8, point_hidden=32, octaves=4), CONFIG),
         'paper': (FULL, PAIRS)}


def train(folder, kind, killed=None) -> tuple[list, dict[str, np.ndarray]]:
    """Losses now and then and the weights in the end; the process `killed` ends in step 20."""
    engine = make_engine('cpu')
    module.CHECKPOINT_STEPS = 10
    matcher_config, config = KINDS[kind]
    images = sphere_images()[:3]
    dataset = training_data(images, sphere_references(images), FRAME, kind, config,
                            AugmentationConfig())
    curve = []

    def report(done, numbers):
        curve.append([numbers['coarse'], numbers['fine']])
        if engine.global_rank == killed and numbers['step'] == 20:
            os.kill(os.getpid(), signal.SIGKILL)

    torch.manual_seed(engine.global_rank)  # the first process's weights count
    matcher = make_matcher(matcher_config, 4)
    module.train_matcher(matcher, [dataset], config, engine=engine,
                         checkpoint=folder / 'checkpoint', report=report)
    return curve, {name: value.numpy() for name, value in matcher.state_dict().items()}


@pytest.mark.parametrize('kind', KINDS)
def test_two_processes_learn_what_one_learns(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(module, 'CHECKPOINT_STEPS', 10)
    for name in ('one', 'two'):
        (tmp_path / name).mkdir()
    alone = train(tmp_path / 'one', kind)
    first, second = run_together(2, train, tmp_path / 'two', kind)
    np.testing.assert_allclose(first[0], alone[0], rtol=0.01 if kind == 'own' else 1e-4)
    assert first[0] == second[0]
    for name, value in first[1].items():
        np.testing.assert_array_equal(second[1][name], value, err_msg=name)


def test_a_training_goes_on_after_a_worker_was_killed(tmp_path):
    for name in ('whole', 'killed'):
        (tmp_path / name).mkdir()
    whole = run_together(2, train, tmp_path / 'whole', 'own')
    with pytest.raises(WorkerDiedError, match='-9'):
        run_together(2, train, tmp_path / 'killed', 'own', 1)
    assert (tmp_path / 'killed' / 'checkpoint').exists()
    for other, resumed in zip(whole, run_together(2, train, tmp_path / 'killed', 'own')):
        assert len(resumed[0]) < len(other[0]) == 3
        for name, value in other[1].items():
            np.testing.assert_array_equal(resumed[1][name], value, err_msg=name)


@pytest.mark.parametrize('kind', KINDS)
def test_a_batch_that_cannot_be_shared_is_refused(kind, tmp_path):
    class Crowd:
        """An engine of four processes."""

        world_size = 4

    matcher_config, config = KINDS[kind]  # three images or groups
    with pytest.raises(ConfigError, match='cannot be shared by 4'):
        module.train_matcher(make_matcher(matcher_config, 4), [], config, engine=Crowd(),
                             checkpoint=tmp_path / 'none')
    module.check_shares(config, kind, 3)


def test_groups_of_pairs_are_what_is_shared():
    pairs = replace(PAIRS, batch=5, pairs_at_once=2)
    module.check_shares(pairs, 'paper', 3)
    with pytest.raises(ConfigError, match='5 pairs in groups of 2 cannot be shared by 4'):
        module.check_shares(pairs, 'paper', 4)


def train_half_blind(folder) -> dict[str, np.ndarray]:
    """Weights after some steps in which the images of the second process see nothing."""
    engine = make_engine('cpu')
    matcher_config, config = KINDS['own']
    images = sphere_images()[:3]
    dataset = training_data(images, sphere_references(images), FRAME, 'own', config,
                            AugmentationConfig())
    draw = dataset.draw

    def drawn(*args, **options):
        batch = draw(*args, **options)
        if engine.global_rank == 0:
            return batch
        return replace(batch, seen=[seen[:0] for seen in batch.seen],
                       pixels=[pixels[:0] for pixels in batch.pixels])

    dataset.draw = drawn
    matcher = make_matcher(matcher_config, 4)
    module.train_matcher(matcher, [dataset], replace(config, steps=3), engine=engine,
                         checkpoint=folder / 'checkpoint')
    return {name: value.numpy() for name, value in matcher.state_dict().items()}


def test_a_process_whose_images_see_nothing_keeps_pace(tmp_path):
    first, second = run_together(2, train_half_blind, tmp_path)
    for name, value in first.items():
        assert np.isfinite(value).all()
        np.testing.assert_allclose(second[name], value, rtol=1e-5, atol=1e-6, err_msg=name)
