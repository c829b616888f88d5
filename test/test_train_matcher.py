"""Training of the matcher on the sphere: it learns, and goes on after an interruption."""

from dataclasses import replace

from nerfmatch_ros.mapping import train_matcher as module
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.engine import make_engine
from nerfmatch_ros.mapping.match_dataset import MatchDataset
from nerfmatch_ros.mapping.matching_loss import MatchingLoss
from nerfmatch_ros.mapping.train_matcher import (
    fit_feature_statistics,
    MatcherTrainingConfig,
    train_matcher,
)
from nerfmatch_ros.matching.matcher import MatcherConfig, NeRFMatcher
import numpy as np
import pytest
from sphere_scene import FRAME, sphere_images, sphere_references
import torch

CONFIG = MatcherTrainingConfig(steps=12, batch=2, points=60, fine_matches=30)
TINY = MatcherConfig(channels=32, fine_channels=8, point_hidden=32, octaves=4)


@pytest.fixture(scope='module')
def dataset():
    images = sphere_images()[:3]
    return MatchDataset(images, sphere_references(images), FRAME, AugmentationConfig())


@pytest.fixture(scope='module')
def engine():
    return make_engine('cpu')


def losses_of(matcher, batch):
    """Coarse and fine loss."""
    return MatchingLoss(matcher, jitter=CONFIG.jitter, fine_matches=CONFIG.fine_matches)(
        batch).unbind()


def fresh(**changes):
    torch.manual_seed(0)
    return NeRFMatcher(replace(TINY, **changes), 4)


def test_the_matcher_learns(dataset, tmp_path, engine):
    losses = []
    train_matcher(fresh(), [dataset], replace(CONFIG, steps=40), engine=engine,
                  checkpoint=tmp_path / 'none',
                  report=lambda done, values: losses.append(values))
    assert losses[-1]['coarse'] < losses[0]['coarse'] and losses[-1]['step'] == 40
    assert np.isfinite([values['fine'] for values in losses]).all()


def test_loss_reaches_every_parameter(dataset):
    matcher = fresh()
    batch = dataset.draw(2, 60, [0])
    coarse, fine = losses_of(matcher, batch)
    assert coarse > 0 and fine > 0
    (coarse + fine).backward()
    for name, parameter in matcher.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


def test_without_fine_stage_only_the_coarse_loss_counts(dataset):
    batch = dataset.draw(2, 60, [0])
    coarse, fine = losses_of(fresh(fine=False), batch)
    assert coarse > 0 and fine == 0


def test_images_that_see_nothing_give_no_loss(dataset):
    batch = dataset.draw(2, 60, [0])
    batch = replace(batch, seen=[s[:0] for s in batch.seen], pixels=[p[:0] for p in batch.pixels])
    coarse, fine = losses_of(fresh(), batch)
    assert coarse == 0 and fine == 0
    (coarse + fine).backward()


def test_features_are_brought_to_zero_mean_and_unit_spread(dataset):
    matcher = fresh()
    fit_feature_statistics(matcher, [dataset])
    features = torch.cat([reference.features.float() for reference in dataset.references])
    normal = (features - matcher.feature_mean) / matcher.feature_std
    assert normal.mean(0).abs().max() < 0.2
    # The last feature is constant; its spread must not become infinite.
    assert (normal.std(0)[:3] - 1).abs().max() < 0.2 and normal.isfinite().all()


class Killed(BaseException):
    """Ends a training as a kill would."""


def test_an_interrupted_training_goes_on(dataset, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(module, 'CHECKPOINT_STEPS', 4)
    path, steps = tmp_path / 'a.checkpoint', []

    def kill(done, values):
        raise Killed

    with pytest.raises(Killed):
        train_matcher(fresh(), [dataset], CONFIG, engine=engine, checkpoint=path,
                      report=kill)  # in step 10
    draw = MatchDataset.draw

    def counting(self, *args, **options):
        steps.append(1)
        return draw(self, *args, **options)

    monkeypatch.setattr(MatchDataset, 'draw', counting)
    matcher = train_matcher(fresh(), [dataset], CONFIG, engine=engine, checkpoint=path)
    assert len(steps) == 4  # of 12; the state of step 8 was kept
    assert not matcher.training


def test_several_maps_train_one_matcher(dataset, tmp_path, engine):
    matcher = train_matcher(fresh(), [dataset, dataset], replace(CONFIG, steps=3),
                            engine=engine, checkpoint=tmp_path / 'none')
    assert all(value.isfinite().all() for value in matcher.state_dict().values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')
def test_training_runs_on_cuda(dataset, tmp_path):
    matcher = train_matcher(fresh(), [dataset], replace(CONFIG, steps=3),
                            engine=make_engine('cuda:0'), checkpoint=tmp_path / 'none')
    assert all(value.isfinite().all() for value in matcher.state_dict().values())
