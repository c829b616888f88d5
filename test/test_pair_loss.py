"""The loss of training pairs: it teaches every part of the network and is what its name says."""

from dataclasses import replace

from nerfmatch_ros.mapping.pair_dataset import PairDataset, PairGroup
from nerfmatch_ros.mapping.pair_loss import PairLoss
from nerfmatch_ros.matching.coarse_matching import log_dual_softmax
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.matching.paper_loss import focal_loss, true_pairs
import pytest
from sphere_scene import POSES, sphere_images, sphere_references
import torch

FULL = replace(MatcherConfig.published(fine=True), backbone='convformer_s18', octaves=4,
               self_attention=1)
MINI = replace(MatcherConfig.published(fine=False), backbone='convformer_s18')


@pytest.fixture(scope='module')
def group():
    images = sphere_images(poses=POSES[:2])
    return PairDataset(images, sphere_references(images), self_pairs=1).draw(2, 2, [0])[0]


def loss_of(config, kind='focal', features=4):
    torch.manual_seed(0)
    return PairLoss(make_matcher(config, features), kind=kind)


@pytest.mark.parametrize('kind', ['focal', 'log'])
@pytest.mark.parametrize('config', [FULL, MINI], ids=['full', 'mini'])
def test_the_loss_reaches_every_parameter(group, config, kind):
    loss = loss_of(config, kind)
    coarse, fine = loss(group)
    assert coarse > 0 and (fine > 0) == config.fine
    (coarse + fine).backward()
    for name, parameter in loss.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@torch.no_grad()
def test_the_coarse_loss_is_that_of_the_scores_that_matching_uses(group):
    loss = loss_of(FULL).eval()
    matcher, scores = loss.matcher, []
    for pair in group.pairs:
        cells, points = matcher.interact(matcher.encode_image(pair.image).coarse,
                                         matcher.encode_points(pair.points, pair.features).coarse)
        scores.append(log_dual_softmax(matcher.similarity(cells, points)))
    truth = true_pairs([pair.pixels for pair in group.pairs],
                       [pair.visible for pair in group.pairs], [(8, 10)] * 2, 8)
    assert len(truth) > 40
    # The networks of a training run in half precision.
    torch.testing.assert_close(loss(group)[0], focal_loss(scores, truth, clamp=1e-6), rtol=0.02,
                               atol=1e-3)


def test_one_pair_is_learned_by_heart(group):
    loss = loss_of(FULL)
    optimizer = torch.optim.Adam(loss.parameters(), 4e-4)
    alone, losses = PairGroup(group.pairs[:1], 0), []
    for _ in range(15):
        optimizer.zero_grad()
        losses.append(loss(alone)[0])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


@torch.no_grad()
def test_images_of_several_sizes_may_be_one_group(group):
    cut = replace(group.pairs[1], image=group.pairs[1].image[:, :48, :64])
    for kind in ('focal', 'log'):
        losses = loss_of(FULL, kind)(PairGroup([group.pairs[0], cut], 1))
        assert losses.isfinite().all()


def test_an_image_that_sees_nothing_gives_a_finite_loss(group):
    blind = replace(group.pairs[0], visible=torch.zeros_like(group.pairs[0].visible))
    for kind in ('focal', 'log'):
        loss = loss_of(FULL, kind)
        losses = loss(PairGroup([blind], 0))
        losses.sum().backward()
        assert losses.isfinite().all() and losses[1] == 0
        assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
