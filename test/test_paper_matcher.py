"""The published network: what it must do whatever its weights are."""

from dataclasses import replace

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.matching.fine_matching import window_features
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import cell_centres, ImageTokens, MatcherConfig, PointTokens
from nerfmatch_ros.matching.paper_matcher import FineHeatMap, heat_map, PaperMatcher
import pytest
import torch
import torch.nn.functional as F

FULL = replace(MatcherConfig.published(fine=True), backbone='convformer_s18', octaves=4,
               self_attention=1)
MINI = replace(MatcherConfig.published(fine=False), backbone='convformer_s18')


def make(config, features=128):
    torch.manual_seed(0)
    return make_matcher(config, features).eval()


def planted(generator, count=20):
    """Cells and points of which point k looks like cell order[k]."""
    cells = F.normalize(torch.randn(48, 128, generator=generator), dim=-1)
    order = torch.randperm(48, generator=generator)[:count]
    return ImageTokens(cells, None, 6, 8), PointTokens(cells[order], None), order


@pytest.mark.parametrize('config', [FULL, MINI, replace(FULL, official=True)],
                         ids=['full', 'mini', 'official'])
@torch.no_grad()
def test_images_and_points_of_one_view_are_matched(config, generator):
    matcher = make(config, features=16)
    assert isinstance(matcher, PaperMatcher) and matcher.map_points and matcher.per_view
    image = matcher.encode_image(torch.rand(3, 48, 64, generator=generator))
    assert image.coarse.shape == (48, matcher.token_channels) and image.rows == 6
    points = matcher.encode_points(torch.rand(30, 3, generator=generator),
                                   torch.rand(30, 16, generator=generator).half())
    matches = matcher.match(image, points)
    assert 0 < len(matches.pixels) <= 30 and matches.confidence.min() > 0
    assert matches.pixel_std.isnan().all() == (not config.fine)
    best = matcher.match(image, points, mutual=False)
    assert len(best.pixels) == 48
    assert {*matches.points.tolist()} <= {*best.points.tolist()}
    nothing = matcher.match(image, matcher.encode_points(torch.zeros(0, 3), torch.zeros(0, 16)))
    assert nothing.pixels.shape == (0, 2)


def test_planted_matches_are_found(generator):
    matcher = make(MINI)
    image, points, order = planted(generator)
    matches = matcher.match(image, points)
    assert sorted(matches.points.tolist()) == list(range(20))
    torch.testing.assert_close(matches.pixels, cell_centres(order[matches.points], 8))


def test_what_is_masked_finds_no_partner_that_is_not(generator):
    matcher = make(MINI)
    image, points, order = planted(generator)
    cell_mask, point_mask = torch.ones(48), torch.ones(20)
    cell_mask[order[:5]], point_mask[10:14] = 0, 0
    matches = matcher.match(image, points, cell_mask=cell_mask, point_mask=point_mask)
    cells = ((matches.pixels - 3.5) / 8).long()
    allowed = cell_mask[cells[:, 1] * 8 + cells[:, 0]] == point_mask[matches.points]
    assert allowed.all()
    found = matches.points[point_mask[matches.points] == 1]
    assert {*range(5, 10), *range(14, 20)} <= {*found.tolist()}


def test_the_heat_map_is_the_softmax_over_the_window(generator):
    windows = torch.randn(3, 9, 4, generator=generator, dtype=torch.float64)
    points = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    found = heat_map(windows, points)
    for k in range(3):
        weights = [torch.exp(windows[k, p] @ points[k] / 2) for p in range(9)]
        std = 0
        for axis, at in enumerate(([-1, 0, 1] * 3, [-1, -1, -1, 0, 0, 0, 1, 1, 1])):
            mean, square = (sum(w * a ** power for w, a in zip(weights, at)) / sum(weights)
                            for power in (1, 2))
            torch.testing.assert_close(found.mean[k, axis], mean)
            std = std + (square - mean ** 2).sqrt()
        torch.testing.assert_close(found.std[k], std)


def test_our_fine_stage_gives_the_pixels_that_the_window_shows(generator):
    matcher = make(FULL)
    cells = torch.arange(48)
    fine = torch.randn(1, 64, 24, 32, generator=generator)
    windows, middles = matcher.windows(fine, cells)
    _, positions, inside = window_features(
        fine, torch.zeros_like(cells), cell_centres(cells, 8), 5)
    for index in range(25):
        corner = torch.tensor([index % 5, index // 5]) / 2 - 1
        found = FineHeatMap(corner.expand(48, 2), torch.zeros(48))
        torch.testing.assert_close(matcher.fine_pixels(found, cells, middles, 8)[0],
                                   positions[:, index])
    assert (windows[~inside] == 0).all() and not inside.all()
    assert ((middles - cell_centres(cells, 8)).abs() <= 1).all()


def test_the_official_window_begins_at_the_cell_and_counts_from_its_centre(generator):
    matcher = make(replace(FULL, official=True))
    fine = torch.randn(1, 64, 24, 32, generator=generator)
    windows, middles = matcher.windows(fine, torch.tensor([11]))  # row 1, column 3
    torch.testing.assert_close(windows[0, 12], fine[0, :, 4, 12])
    found = FineHeatMap(torch.tensor([[1.0, -0.5]]), torch.tensor([0.2]))
    pixels, std = matcher.fine_pixels(found, torch.tensor([11]), middles, 8)
    torch.testing.assert_close(pixels, torch.tensor([[27.5 + 5, 11.5 - 2.5]]))
    torch.testing.assert_close(std, torch.tensor([1.0]))


@torch.no_grad()
def test_a_batch_of_images_is_its_images_one_by_one(generator):
    matcher = make(FULL)
    images = torch.rand(2, 3, 32, 40, generator=generator)
    tokens, fine = matcher.encode_images(images)
    for k in range(2):
        alone = matcher.encode_image(images[k])
        torch.testing.assert_close(tokens[k], alone.coarse, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(fine[k], alone.fine[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('changes, word', [
    ({'kind': 'papers'}, 'papers'), ({'backbone': 'resnet18'}, 'resnet18'),
    ({'point_feature': 'xyz'}, 'xyz'), ({'point_hidden': 8}, 'point_hidden'),
    ({'window': 4}, 'window'), ({'window': 0}, 'window'), ({'threshold': 1.0}, 'threshold'),
    ({'self_attention': -1}, 'self_attention')])
def test_networks_that_cannot_be_are_refused(changes, word):
    with pytest.raises(ConfigError, match=word):
        replace(FULL, **changes)


@pytest.mark.parametrize('changes', [{'self_attention': 1}, {'cross_attention': 1},
                                     {'official': True}])
def test_what_belongs_to_the_published_network_is_refused_elsewhere(changes):
    with pytest.raises(ConfigError, match='paper'):
        MatcherConfig(**changes)
