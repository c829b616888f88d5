"""Surface caches: what is put in comes out, sorted; what cannot be one is refused."""

from dataclasses import replace
import math

from analytic_field import SphereField
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.radiance_field.surface_cache import (
    cached_points,
    sorted_cache,
    SurfaceCache,
    TILE,
)
import pytest
from sphere_scene import FRAME
import torch


@pytest.fixture
def points(generator):
    return torch.rand(3000, 3, generator=generator) * 5 - 2


@pytest.fixture
def cache(points, generator):
    normals = torch.nn.functional.normalize(torch.randn(3000, 3, generator=generator), dim=-1)
    return sorted_cache(points, 0.05, normals=normals, colour=(points + 2) / 5,
                        features=points.repeat(1, 2))


def test_sorting_keeps_each_point_with_what_belongs_to_it(points, cache):
    row = cache.points[:, 0].sort().indices
    assert torch.equal(cache.points[row], points[points[:, 0].sort().indices])
    torch.testing.assert_close(cache.colour / 255.0, (cache.points + 2) / 5, atol=0.002, rtol=0)
    assert torch.equal(cache.features, cache.points.repeat(1, 2).half())
    lengths = (cache.normals / 127.0).norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths), atol=0.01, rtol=0)


def test_tiles_are_cubes_and_their_boxes_hold_their_points(cache):
    starts = cache.tile_starts.tolist()
    tiles = set()
    for tile, (start, end) in enumerate(zip(starts, starts[1:])):
        inside = cache.points[start:end]
        assert torch.equal(cache.tile_boxes[tile, 0], inside.amin(0))
        assert torch.equal(cache.tile_boxes[tile, 1], inside.amax(0))
        tiles.add(tuple(torch.floor(inside[0] / (TILE * 0.05)).long().tolist()))
        assert (cache.tile_boxes[tile, 1] - cache.tile_boxes[tile, 0] <= TILE * 0.05).all()
    assert len(tiles) == len(starts) - 1


def test_a_cache_returns_from_its_tensors_as_it_was(cache):
    again = SurfaceCache.from_tensors(cache.to_tensors())
    assert again.voxel == cache.voxel
    for name, value in cache.to_tensors().items():
        assert torch.equal(value, again.to_tensors()[name]), name
    without = replace(cache, features=None)
    assert SurfaceCache.from_tensors(without.to_tensors()).features is None


def test_an_empty_cache_is_one():
    empty = SurfaceCache.from_tensors(sorted_cache(torch.zeros(0, 3), 0.1).to_tensors())
    assert len(empty) == 0 and empty.tile_boxes.shape == (0, 2, 3)


def poisoned(tensor):
    tensor = tensor.clone()
    tensor[7] = math.nan
    return tensor


@pytest.mark.parametrize('name, change, message', [
    ('points', poisoned, 'points of the surface cache hold NaN'),
    ('points', lambda t: t[:, :2].contiguous(), r'\(3000, 2\)'),
    ('points', lambda t: t.half(), 'float16'),
    ('features', poisoned, 'features of the surface cache hold NaN'),
    ('features', lambda t: t[:-1], 'features'),
    ('normals', lambda t: t.float(), 'normals'),
    ('colour', lambda t: t[:-1], 'colour'),
    ('voxel', lambda t: 0 * t, 'voxel'),
    ('voxel', lambda t: t / 0, 'voxel'),
    ('voxel', lambda t: torch.cat((t, t)), 'voxel'),
    ('tile_starts', lambda t: t[:-1], 'tile_starts'),
    ('tile_starts', lambda t: t.flip(0), 'tile_starts'),
    ('tile_starts', lambda t: t.int(), 'tile_starts'),
    ('tile_starts', lambda t: t[:0], 'tile_starts'),
    ('tile_starts', None, "lacks .*'tile_starts'"),
])
def test_what_is_no_cache_is_refused(cache, name, change, message):
    tensors = cache.to_tensors()
    value = tensors.pop(name)
    if change is not None:
        tensors[name] = change(value)
    with pytest.raises(DataError, match=message):
        SurfaceCache.from_tensors(tensors)


def test_features_come_from_the_cache_or_else_from_the_field(cache):
    index = torch.tensor([5, 3, 2999])
    field = SphereField()
    points, features = cached_points(cache, index, field, FRAME, 2)
    assert torch.equal(points, cache.points[index])
    assert torch.equal(features, cache.features[index])
    points, features = cached_points(replace(cache, features=None), index, field, FRAME, 2)
    assert torch.equal(features, field.point_features(FRAME.to_scene(points), 2))
    assert cached_points(cache, index, field, FRAME, None)[1] is None
