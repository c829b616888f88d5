"""Reference views that were used are kept until others need their room."""

from dataclasses import replace

from nerfmatch_ros.errors import MapError
from nerfmatch_ros.localization.reference_cache import ReferenceCache
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.scene_map import SceneMap
import pytest
import torch

DEVICES = ['cpu', *(['cuda'] if torch.cuda.is_available() else [])]


@pytest.fixture(scope='module')
def scene_map(tiny_map):
    return SceneMap.load(tiny_map)


def with_paper_matcher(scene_map, holds):
    """Give the map another matcher, of random weights, and views that hold tokens or features."""
    config = replace(MatcherConfig.published(fine=True), backbone='convformer_s18', octaves=4,
                     self_attention=1)
    torch.manual_seed(0)
    matcher = make_matcher(config, scene_map.field.feature_channels).eval().requires_grad_(False)
    changed = replace(scene_map, matcher=matcher, matcher_config=config)
    if holds == 'features':
        return changed
    tokens = [changed.encode_points(*scene_map.references.view(k)).coarse for k in range(12)]
    return replace(changed, references=replace(
        scene_map.references, features=torch.cat(tokens).half(), holds='tokens'))


def anew(scene_map, k, device):
    points, features = scene_map.references.view(k)
    return points, scene_map.encode_points(points.to(device), features.to(device))


def size_of(encoded):
    points, tokens = encoded
    return sum(part.nbytes for part in (points, tokens.coarse, tokens.fine) if part is not None)


@pytest.mark.parametrize('device', DEVICES)
def test_a_view_is_what_encoding_it_anew_gives(tiny_map, device):
    scene_map = SceneMap.load(tiny_map).to(device)
    cache = ReferenceCache(scene_map, device)
    for k in (3, 11, 3):
        points, tokens = cache.get(k)
        expected_points, expected = anew(scene_map, k, device)
        assert points.device.type == tokens.coarse.device.type == device
        assert torch.equal(points.cpu(), expected_points)
        assert torch.equal(tokens.coarse, expected.coarse)
        assert torch.equal(tokens.fine, expected.fine)
    assert (cache.hits, cache.misses, len(cache)) == (1, 2, 2)


def test_a_view_that_is_kept_is_not_read_again(scene_map, monkeypatch):
    cache = ReferenceCache(scene_map)
    first = cache.get(5)
    monkeypatch.setattr(SceneMap, 'encode_points', None)
    monkeypatch.setattr(type(scene_map.references), 'view', None)
    assert cache.get(5) is first


def test_what_was_used_longest_ago_goes_first_and_the_budget_holds(scene_map):
    sizes = [size_of(ReferenceCache(scene_map).get(k)) for k in range(12)]
    budget = sizes[2] + sizes[4] + sizes[6]
    cache = ReferenceCache(scene_map, budget_bytes=budget)
    for k in (2, 4, 6, 2):
        cache.get(k)
    assert cache.bytes == budget and all(k in cache for k in (2, 4, 6))
    cache.get(7)
    assert 4 not in cache and 2 in cache and 7 in cache
    for k in [*range(12), *range(11, -1, -1)]:
        cache.get(k)
        assert cache.bytes == sum(sizes[j] for j in range(12) if j in cache) <= budget
    cache.clear()
    assert cache.bytes == len(cache) == 0


@pytest.mark.parametrize('share', [0, 0.99])
def test_without_room_views_are_given_and_not_kept(scene_map, share):
    whole = ReferenceCache(scene_map).get(1)
    cache = ReferenceCache(scene_map, budget_bytes=int(share * size_of(whole)))
    points, tokens = cache.get(1)
    assert torch.equal(points, whole[0]) and torch.equal(tokens.coarse, whole[1].coarse)
    assert 1 not in cache and cache.bytes == 0


def test_several_views_are_given_as_one_set(scene_map):
    cache = ReferenceCache(scene_map)
    points, tokens = cache.get_together([4, 1])
    parts = [cache.get(k) for k in (4, 1)]
    assert torch.equal(points, torch.cat([part[0] for part in parts]))
    assert torch.equal(tokens.coarse, torch.cat([part[1].coarse for part in parts]))
    assert torch.equal(tokens.fine, torch.cat([part[1].fine for part in parts]))
    whole = scene_map.encode_points(points, torch.cat(
        [scene_map.references.view(k)[1] for k in (4, 1)]))
    torch.testing.assert_close(tokens.coarse, whole.coarse)


def test_tokens_that_the_map_holds_are_not_encoded(scene_map, monkeypatch):
    features, tokens = (with_paper_matcher(scene_map, holds) for holds in ('features', 'tokens'))
    expected = ReferenceCache(features).get(2)[1].coarse
    monkeypatch.setattr(SceneMap, 'encode_points', None)
    found = ReferenceCache(tokens).get(2)[1]
    assert found.fine is None and found.coarse.dtype == torch.float32
    assert torch.equal(found.coarse, expected.half().float())
    points, both = ReferenceCache(tokens).get_together([2, 3])
    assert both.fine is None and len(both.coarse) == len(points)


@pytest.mark.parametrize('holds', ['features', 'tokens'])
def test_tokens_are_kept_in_the_precision_asked_for(scene_map, holds):
    changed = with_paper_matcher(scene_map, holds)
    exact, half = (ReferenceCache(changed, dtype=kind) for kind in (None, torch.float16))
    assert half.get(2)[1].coarse.dtype == torch.float16 and half.bytes < exact.get(2)[0].nbytes \
        + exact.bytes
    assert torch.equal(half.get(2)[1].coarse, exact.get(2)[1].coarse.half())
    own = ReferenceCache(scene_map, dtype=torch.bfloat16).get(2)[1]
    assert own.coarse.dtype == own.fine.dtype == torch.bfloat16


def test_a_damaged_view_is_refused_each_time(scene_map):
    references = scene_map.references
    points = references.points.clone()
    points[references.starts[5]] = torch.nan
    cache = ReferenceCache(replace(
        scene_map, references=replace(references, points=points)))
    cache.get(4)
    for _ in range(2):
        with pytest.raises(MapError, match='holds NaN'):
            cache.get(5)
    assert 5 not in cache


def test_the_answer_is_the_same_whatever_was_asked_before(scene_map):
    orders = [[0, 1, 2, 0, 3], [3, 2, 1, 0, 1, 2, 3]]
    caches = [ReferenceCache(scene_map, budget_bytes=size_of(ReferenceCache(scene_map).get(0)) * 2)
              for _ in orders]
    for cache, order in zip(caches, orders):
        for k in order:
            cache.get(k)
    for k in range(4):
        first, second = (cache.get(k)[1].coarse for cache in caches)
        assert torch.equal(first, second)
