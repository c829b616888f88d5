"""The matcher: shapes of every variant, planted matches found again, positions of cells."""

from dataclasses import replace

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.matching.fine_matching import window_features
from nerfmatch_ros.matching.matcher import (
    cell_centres,
    ImageTokens,
    MatcherConfig,
    NeRFMatcher,
    PointTokens,
)
import pytest
import torch
import torch.nn.functional as F

TINY = MatcherConfig(channels=32, fine_channels=8, point_hidden=24, octaves=4)


def make(**changes):
    torch.manual_seed(0)
    return NeRFMatcher(replace(TINY, **changes), 16).eval()


@pytest.mark.parametrize('changes', [
    {}, {'fine': False}, {'point_feature': 'xyz'}, {'point_feature': 'encoded_xyz'},
    {'point_encoding': False}, {'point_hidden': 0},
], ids=str)
def test_every_variant_encodes_and_matches(changes, generator):
    matcher = make(**changes)
    image = matcher.encode_image(torch.rand(3, 48, 64, generator=generator))
    assert image.coarse.shape == (48, 32) and (image.rows, image.columns) == (6, 8)
    points = matcher.encode_points(torch.rand(30, 3, generator=generator),
                                   torch.rand(30, 16, generator=generator))
    assert points.coarse.shape == (30, 32)
    matches = make(**changes, threshold=1e-9).match(image, points)
    assert 0 < len(matches.pixels) <= 30 and matches.pixels.shape[1] == 2
    assert matches.pixel_std.isnan().all() == (not matcher.config.fine)


def test_cell_centres_are_those_of_the_camera_grid():
    grid = Camera('PINHOLE', 64, 48, 50, 50, 31, 23).pixel_grid(8)
    torch.testing.assert_close(cell_centres(torch.arange(48), 8), grid)


@pytest.mark.parametrize('name', ['g3', 'f', 'fine', '', 'f-1'])
def test_unknown_point_features_are_refused(name):
    with pytest.raises(ConfigError, match='point_feature'):
        NeRFMatcher(MatcherConfig(point_feature=name), 16)


def planted(generator, count=20):
    """Tokens in which point k lies in cell order[k], at the fine position `truth` (k, 2)."""
    rows, columns, channels = 6, 8, 24
    cells = F.normalize(torch.randn(rows * columns, 32, generator=generator), dim=-1)
    order = torch.randperm(rows * columns, generator=generator)[:count]
    fine = torch.zeros(1, channels, 4 * rows, 4 * columns)
    wanted = torch.eye(channels)[:count]
    centres = cell_centres(order, columns)
    offset = torch.randint(-1, 3, (count, 2), generator=generator)
    at = (centres / 2).floor().long() + offset
    for k, (u, v) in enumerate(at.tolist()):
        fine[0, k, v, u] = 1
    image = ImageTokens(cells, fine, rows, columns)
    return image, PointTokens(cells[order], wanted), at * 2 + 0.5


def test_planted_matches_are_found_at_their_place(generator):
    matcher = make(fine_channels=24)
    with torch.no_grad():
        matcher.log_scale.fill_(4.0)
        matcher.log_fine_scale.fill_(4.0)
    image, points, truth = planted(generator)
    matches = matcher.match(image, points)
    assert sorted(matches.points.tolist()) == list(range(20))
    assert (matches.pixels - truth[matches.points]).abs().max() < 0.1
    assert (matches.confidence > 0.5).all() and matches.pixel_std.max() < 0.5


def test_without_fine_stage_matches_lie_in_the_middle_of_cells(generator):
    matcher = make(fine=False)
    with torch.no_grad():
        matcher.log_scale.fill_(4.0)
    image, points, truth = planted(generator)
    matches = matcher.match(image, points)
    assert ((matches.pixels - 3.5) % 8 == 0).all()
    assert (matches.pixels - truth[matches.points]).abs().max() <= 4


def test_fine_stage_reads_the_matched_cell(generator):
    image, _, truth = planted(generator)
    centres = cell_centres(torch.arange(48), 8)
    _, positions, _ = window_features(
        image.fine, torch.zeros(48, dtype=torch.int64), centres, TINY.window)
    assert ((positions - truth[0]).abs().sum(-1) == 0).any()


def test_no_points_give_no_matches(generator):
    matcher = make()
    image = matcher.encode_image(torch.rand(3, 32, 32, generator=generator))
    points = matcher.encode_points(torch.zeros(0, 3), torch.zeros(0, 16))
    assert len(matcher.match(image, points).pixels) == 0


def test_half_precision_features_are_taken(generator):
    matcher = make()
    points, features = torch.rand(9, 3, generator=generator), torch.rand(9, 16)
    torch.testing.assert_close(matcher.encode_points(points, features.half()).coarse,
                               matcher.encode_points(points, features).coarse,
                               atol=1e-2, rtol=1e-2)


def test_features_are_normalised_by_their_statistics(generator):
    matcher = make(point_encoding=False)
    features = torch.rand(9, 16, generator=generator)
    plain = matcher.encode_points(torch.zeros(9, 3), features)
    matcher.feature_mean.fill_(5.0)
    matcher.feature_std.fill_(3.0)
    shifted = matcher.encode_points(torch.zeros(9, 3), 3 * features + 5)
    torch.testing.assert_close(shifted.coarse, plain.coarse, atol=1e-5, rtol=1e-4)


def test_the_order_of_points_does_not_matter(generator):
    matcher = make()
    points = torch.rand(20, 3, generator=generator)
    features = torch.rand(20, 16, generator=generator)
    order = torch.randperm(20, generator=generator)
    there = matcher.encode_points(points[order], features[order]).coarse
    torch.testing.assert_close(
        there, matcher.encode_points(points, features).coarse[order], atol=1e-5, rtol=1e-4)
