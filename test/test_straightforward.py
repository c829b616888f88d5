"""The plain pipeline finds what the localizer finds, and spares nothing on the way."""

from dataclasses import replace
from pathlib import Path

from fake_localizer import moved
from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.evaluation.stage_recorder import StageRecorder
from nerfmatch_ros.evaluation.straightforward import Straightforward, written_out_matches
from nerfmatch_ros.geometry.pose import pose_distance
from nerfmatch_ros.localization.localizer import Localizer
from nerfmatch_ros.matching.coarse_matching import log_dual_softmax, match_log_probability
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import ImageTokens, MatcherConfig, PointTokens
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
import torch

DEMO_MAP = Path(__file__).resolve().parents[1] / 'nerfmatch_ros' / 'demo_map'


@pytest.fixture(scope='module')
def image(room):
    return synthetic_images('test', 3, default_camera(), room=room)[1]


@pytest.fixture(scope='module')
def demo_map(image):
    """The demo map, which has but two reference views, with two near the image."""
    loaded, truth = SceneMap.load(DEMO_MAP), image.map_from_camera
    poses = np.stack([moved(truth, 0.2, -0.1, 0.1, 0, 0, 0.1), moved(truth, -0.15, 0.1, 0, 0.1)])
    return replace(loaded, references=replace(loaded.references, map_from_camera=poses))


def away(estimate, image):
    metres, radians = pose_distance(torch.from_numpy(estimate.map_from_camera),
                                    torch.from_numpy(image.map_from_camera))
    return float(metres), float(radians)


def test_both_softmaxes_written_out_pair_the_same(generator):
    similarity = 8 * torch.randn(60, 45, generator=generator)
    plain = written_out_matches(similarity, 0.02)
    usual = match_log_probability(log_dual_softmax(similarity), 0.02)
    assert 10 < len(plain.cells) < 45
    assert torch.equal(plain.cells, usual.cells) and torch.equal(plain.points, usual.points)
    torch.testing.assert_close(plain.confidence, usual.confidence)
    # Equal cells share their point, as in the published code.
    similarity[3] = similarity[1]
    tied = match_log_probability(log_dual_softmax(similarity), 0.0, ties=True)
    assert torch.equal(written_out_matches(similarity, 0.0).cells, tied.cells)


def test_it_finds_the_pose_that_the_localizer_finds(demo_map, image):
    query = replace(image, map_from_camera=None)
    plain, ours = Straightforward(demo_map), Localizer(SceneMap.load(DEMO_MAP))
    plain.clock = StageRecorder()
    found = plain.localize(query)
    metres, radians = away(found, image)
    assert metres < 0.05 and radians < 0.02
    same = replace(image, map_from_camera=found.map_from_camera)
    near, turned = away(ours.localize(query), same)
    assert near < 0.05 and turned < 0.02
    stages = plain.clock.take()
    assert stages['reference'].runs == stages['match'].runs == 2
    assert stages['pnp'].runs == stages['retrieval'].runs == 1
    assert 1 <= stages['refine/reference'].runs <= plain.config.rounds


def test_a_prior_stands_in_for_the_reference_views(demo_map, image):
    plain = Straightforward(demo_map)
    plain.clock = StageRecorder()
    found = plain.localize(replace(image, map_from_camera=None), image.map_from_camera)
    stages = plain.clock.take()
    assert 'retrieval' not in stages and stages['reference'].runs == 1
    assert away(found, image)[0] < 0.05


def test_the_published_matcher_gives_the_same_matches(demo_map, generator):
    config = MatcherConfig(kind='paper', backbone='convformer_s18', point_hidden=0, window=5,
                           self_attention=1, cross_attention=1, threshold=0.0)
    torch.manual_seed(0)
    matcher = make_matcher(config, 64).eval().requires_grad_(False)
    plain = Straightforward(replace(demo_map, matcher=matcher, matcher_config=config))
    channels = matcher.token_channels
    image = ImageTokens(torch.randn(30, channels, generator=generator), None, 5, 6)
    points = PointTokens(torch.randn(20, channels, generator=generator), None)
    found, usual = plain._match_coarse(image, points), matcher.match_coarse(image, points)
    assert len(found.cells) > 3
    assert torch.equal(found.cells, usual.cells) and torch.equal(found.points, usual.points)
    torch.testing.assert_close(found.tokens, usual.tokens)
    nothing = plain._match_coarse(image, PointTokens(points.coarse[:0], None))
    assert len(nothing.cells) == 0
