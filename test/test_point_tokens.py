"""Reference views hold what a matcher makes of their points, where that is dear."""

from dataclasses import replace

from nerfmatch_ros.errors import DataError, MapError
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.mapping.build_surface_cache import surface_cache_of
from nerfmatch_ros.mapping.point_tokens import with_tokens
from nerfmatch_ros.mapping.reference_views import ReferenceView
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.scene_map import FILES, SceneMap
from nerfmatch_ros.tensor_file import read_header
import pytest
from tiny_build import tiny_images
import torch

PAPER = replace(MatcherConfig.published(fine=True), backbone='convformer_s18', octaves=4,
                self_attention=1)


@pytest.fixture(scope='module')
def scene_map(tiny_map):
    """A map of random weights whose views are stored one by one and hold features."""
    own = SceneMap.load(tiny_map)
    torch.manual_seed(0)
    matcher = make_matcher(PAPER, own.field.feature_channels).eval().requires_grad_(False)
    views = [ReferenceView(name, None, torch.from_numpy(pose), *own.references.view(k), None)
             for k, (name, pose) in enumerate(zip(own.reference_names, own.reference_poses))]
    return replace(own, matcher=matcher, matcher_config=PAPER,
                   words=torch.rand(12, matcher.token_channels),
                   references=replace(own.references, points=None, features=None, file=None,
                                      stored=views))


@pytest.fixture(scope='module')
def folder(scene_map, tmp_path_factory):
    """The same map with tokens."""
    folder = tmp_path_factory.mktemp('tokens') / 'map'
    references = with_tokens(scene_map.references, scene_map.matcher, scene_map.frame)
    replace(scene_map, references=references).save(folder)
    return folder


def test_a_saved_map_holds_the_tokens_of_each_view(scene_map, folder):
    loaded = SceneMap.load(folder)
    assert loaded.references.holds == loaded.summary()['reference_views_hold'] == 'tokens'
    assert 'features' not in read_header(folder / FILES[2])
    for k in (0, 7):
        points, tokens = loaded.references.view(k)
        own_points, features = scene_map.references.view(k)
        assert torch.equal(points, own_points) and tokens.dtype == torch.float16
        expected = scene_map.encode_points(points, features).coarse
        assert torch.equal(tokens, expected.half())


def test_a_map_with_tokens_localizes_as_one_with_features(scene_map, folder, room):
    image = tiny_images(room, 2)[1]
    config = LocalizerConfig(start='retrieval', top_k=12, rounds=0, min_inliers=4)
    loaded = replace(SceneMap.load(folder), matcher=scene_map.matcher)  # not rounded to be saved
    made = [Localizer(each, config).localize(image) for each in (scene_map, loaded)]
    assert made[0].matches > 20 and abs(made[0].matches - made[1].matches) <= 2
    first, second = ({tuple(point) for point in each.points.round(5).tolist()} for each in made)
    assert len(first & second) > 0.95 * len(first)


@pytest.mark.parametrize('attention', [0, 1])
def test_only_a_matcher_whose_points_attend_has_its_tokens_stored(scene_map, attention):
    matcher = make_matcher(replace(PAPER, self_attention=attention), 16)
    held = with_tokens(scene_map.references, matcher, scene_map.frame)
    assert held.holds == ('tokens' if attention else 'features')
    assert (held is scene_map.references) == (not attention)


def test_tokens_beyond_half_precision_are_refused(scene_map):
    matcher = make_matcher(PAPER, 16).eval().requires_grad_(False)
    matcher.point_projection.bias.fill_(1e6)
    held = with_tokens(scene_map.references, matcher, scene_map.frame)
    with pytest.raises(DataError, match='are no numbers of torch.float16'):
        held.view(3)


def test_views_with_tokens_make_no_surface_cache_of_a_field_that_needs_features(folder):
    loaded = SceneMap.load(folder)
    loaded.field.official = True
    with pytest.raises(MapError, match='hold no features'):
        surface_cache_of(loaded)
