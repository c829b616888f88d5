"""A training step of the published matchers: their losses and the gradient of every weight."""

import functools

from nerfmatch_ros.importers.official_weights import official_config, official_state, our_name
from nerfmatch_ros.mapping.pair_dataset import Pair, PairGroup
from nerfmatch_ros.mapping.pair_loss import PairLoss
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.paper_loss import Pairs
from nerfmatch_ros.matching.paper_matcher import unit
import numpy as np
from official_parity import Fixture, FOLDER, needs_fixtures, official_weights
import pytest
import torch

pytestmark = needs_fixtures
SEEDS = range(2000)


def drawn_picture(rows, columns, seed):
    """Draw a picture (3, rows, columns) as those of the fixtures were: waves, boxes, noise."""
    random = np.random.default_rng(seed)
    v, u = np.mgrid[:rows, :columns]
    picture = np.stack([0.5 + 0.5 * np.sin(u / (7 + 3 * c) + c) * np.cos(v / (11 - 2 * c))
                        for c in range(3)], axis=-1)
    for _ in range(60):
        top, left = random.integers(0, rows), random.integers(0, columns)
        height, width = (random.integers(1 + n // 40, 2 + n // 6) for n in (rows, columns))
        box = picture[top:top + height, left:left + width]
        box[...] = 0.35 * box + 0.65 * random.random(3)
    noisy = picture + 0.02 * random.standard_normal(picture.shape)
    return torch.from_numpy(noisy.clip(0, 1)).float().permute(2, 0, 1)


def drawn_points(count, seed):
    """Draw points (n, 3) and their features (n, 256) as those of the fixtures were."""
    random = torch.Generator().manual_seed(seed)
    features = torch.randn(1, count, 256, generator=random)[0]
    points = torch.randn(1, count, 3, generator=random)[0]
    return (points * torch.tensor([3.0, 2.0, 4.0]) + torch.tensor([1.5, -0.7, 4.0]),
            torch.relu(0.7 * features + 0.14))


@functools.cache
def batch():
    """Two pairs: the stored one, and one that is drawn with the seeds after its own."""
    fixture, training = Fixture('mini_small'), Fixture('loss')
    loss = make('mini')
    picture = fixture['image'][0] * loss.matcher.backbone.deviation + loss.matcher.backbone.mean
    points, features = fixture['pt3d'][0], fixture['pt_feat'][0]
    size = picture.shape[-2:]
    seed = next((seed for seed in SEEDS if torch.allclose(
        drawn_picture(*size, seed), picture, atol=1e-4)), None)
    point_seed = next((seed for seed in SEEDS if torch.allclose(
        drawn_points(len(points), seed)[1], features, atol=1e-4)), None)
    if seed is None or point_seed is None:
        pytest.skip('the second pair of the training step is not stored and cannot be drawn again')
    second = drawn_points(len(points), point_seed + 1)
    pixels = training['train_pt2d_proj'] - 0.5  # from the corner to the centre of a pixel
    seen = torch.ones(len(points), dtype=torch.bool)
    return PairGroup([Pair(picture, points, features, pixels[0], seen),
                      Pair(drawn_picture(*size, seed + 1), *second, pixels[1], seen)], 0)


def make(kind):
    weights = official_weights(kind)
    matcher = make_matcher(official_config(weights), 256)
    matcher.load_state_dict(official_state(weights))
    return PairLoss(matcher, kind='focal', bfloat16=False)


@pytest.mark.parametrize('kind', ['mini', 'full'])
@torch.no_grad()
def test_true_pairs_are_as_far_apart_as_published(kind):
    matcher, truth, apart = make(kind).matcher, Fixture('loss')['train_conf_gt'], []
    for pair, matrix in zip(batch().pairs, truth):
        cells, points = map(unit, matcher.interact(
            matcher.encode_image(pair.image).coarse,
            matcher.encode_points(pair.points, pair.features).coarse))
        cell, point = matrix.nonzero(as_tuple=True)
        apart.append((cells[cell] - points[point]).norm(dim=-1))
    torch.testing.assert_close(torch.cat(apart).mean(), Fixture('loss')[f'{kind}/feat_l2'])


@pytest.mark.parametrize('kind', ['mini', 'full'])
def test_losses_and_gradients_of_a_training_step(kind):
    fixture, loss = Fixture('loss'), make(kind)
    matches = None
    if kind == 'full':
        matches = Pairs(*(fixture[f'full/match_{key}'].long() for key in 'bij'))
    coarse, fine = loss(batch(), matches)
    torch.testing.assert_close(coarse, fixture[f'{kind}/coarse_loss'], rtol=1e-4, atol=1e-5)
    if kind == 'full':
        torch.testing.assert_close(fine, fixture['full/fine_loss'], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(coarse + fine, fixture[f'{kind}/loss'], rtol=1e-4, atol=1e-4)
    (coarse + fine).backward()
    gradients = {name: parameter.grad for name, parameter in loss.matcher.named_parameters()}
    keys = [key for key in np.load(FOLDER / 'loss.npz').files
            if key.startswith(f'{kind}/gradnorm/')]
    for key in keys:
        ours, norm = our_name(key.removeprefix(f'{kind}/gradnorm/')), fixture[key].float()
        if ours is None:
            continue  # another name of a weight, or one without a gradient
        torch.testing.assert_close(gradients.pop(ours).norm(), norm, rtol=5e-4, atol=1e-5,
                                   msg=lambda text, key=key: f'{key}: {text}')
    assert not gradients and len(keys) > 100
