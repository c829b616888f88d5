"""Tokens of a surface cache: those of the matcher, each computed once."""

from dataclasses import replace

from nerfmatch_ros.localization.surface_tokens import SurfaceTokens
from nerfmatch_ros.radiance_field.surface_cache import cached_points
from nerfmatch_ros.scene_map import SceneMap
import pytest
import torch


@pytest.fixture
def scene_map(tiny_map):
    return SceneMap.load(tiny_map)


@pytest.fixture
def encoded(scene_map, monkeypatch):
    """Numbers of points that the matcher was asked to encode, call by call."""
    counts = []
    encode = scene_map.matcher.encode_points
    monkeypatch.setattr(scene_map.matcher, 'encode_points', lambda points, features: (
        counts.append(len(points)), encode(points, features))[1])
    return counts


def expected(scene_map, index):
    points, features = cached_points(scene_map.surface_cache, index, scene_map.field,
                                     scene_map.frame, scene_map.matcher_config.feature_layer)
    return points, scene_map.encode_points(points, features)


@pytest.mark.parametrize('inference', [False, True])
def test_tokens_are_those_of_the_matcher_to_half_precision(scene_map, inference):
    tokens = SurfaceTokens(scene_map)
    with torch.inference_mode(inference):
        for index in (torch.arange(0, 60, 3), torch.arange(10, 50, 2), torch.tensor([7, 7, 2])):
            points, found = tokens(index)
            wanted_points, wanted = expected(scene_map, index)
            assert torch.equal(points, wanted_points)
            for name in ('coarse', 'fine'):
                one, other = getattr(found, name), getattr(wanted, name)
                assert one.dtype == torch.float32
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3 * other.abs().max())


def test_each_token_is_computed_once(scene_map, encoded):
    tokens = SurfaceTokens(scene_map)
    tokens(torch.arange(100))
    tokens(torch.arange(50, 130))
    tokens(torch.arange(130))
    assert encoded == [100, 30]
    tokens.fill()
    tokens(torch.arange(len(scene_map.surface_cache)))
    assert sum(encoded) == len(scene_map.surface_cache)


def test_nothing_to_look_at_is_no_trouble(scene_map):
    points, found = SurfaceTokens(scene_map)(torch.zeros(0, dtype=torch.int64))
    assert len(points) == len(found.coarse) == len(found.fine) == 0


def test_points_that_attend_to_one_another_are_encoded_together_each_time(scene_map, encoded):
    tokens = SurfaceTokens(replace(
        scene_map, matcher_config=_attending(scene_map.matcher_config)))
    tokens.fill()
    assert encoded == [] and not tokens.kept
    for _ in range(2):
        points, found = tokens(torch.arange(40))
    assert encoded == [40, 40]
    assert torch.equal(found.coarse, expected(scene_map, torch.arange(40))[1].coarse)


def _attending(config):
    """Give a configuration that says so, of a matcher that need not."""
    changed = replace(config)
    object.__setattr__(changed, 'self_attention', 3)
    return changed
