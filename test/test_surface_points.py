"""Thinning of points, and which of them the map's views agree on."""

from dataclasses import replace

from nerfmatch_ros.mapping.surface_points import (
    one_per_voxel,
    points_shown,
    surface_points,
    thin,
)
import pytest
from sphere_scene import sphere_images, sphere_references
import torch


def test_one_point_of_each_voxel_is_kept_the_first(generator):
    points = torch.rand(500, 3, generator=generator) * 4 - 2
    chosen = one_per_voxel(points, 0.5)
    cells = [tuple(cell) for cell in torch.floor(points / 0.5).long().tolist()]
    first = sorted(cells.index(cell) for cell in set(cells))
    assert chosen.tolist() == first


@pytest.mark.parametrize('count', [50, 300, 999])
def test_thinning_gives_about_the_count_evenly(generator, count):
    # Nine tenths of the points crowd in a corner.
    points = torch.rand(3000, 3, generator=generator)
    points[:2700] *= 0.3
    chosen = thin(points, count)
    assert 0.6 * count < len(chosen) <= count and len(chosen.unique()) == len(chosen)
    assert (points[chosen] < 0.3).all(-1).float().mean() < 0.75


def test_few_points_are_all_kept(generator):
    assert thin(torch.rand(20, 3, generator=generator), 20).tolist() == list(range(20))
    assert len(thin(torch.zeros(0, 3), 5)) == 0


def test_points_that_coincide_are_thinned_to_one():
    assert thin(torch.ones(50, 3), 10).tolist() == [0]


def test_an_outlier_does_not_thin_the_rest_away(generator):
    points = torch.rand(3000, 3, generator=generator)
    points[7] = 1e5
    assert len(thin(points, 300)) > 150


@pytest.fixture(scope='module')
def references():
    return sphere_references(sphere_images())


def test_the_surface_is_that_of_the_field_with_its_features(references):
    surface = surface_points(references, 200)
    assert 100 < len(surface.points) <= 200
    torch.testing.assert_close(surface.points.norm(dim=-1), torch.full_like(
        surface.points[:, 0], 2.0), atol=0.02, rtol=0)
    torch.testing.assert_close(surface.features[:, :3].float(), surface.points * 0.5,
                               atol=2e-3, rtol=0)


def test_points_that_one_view_alone_sees_are_left_out(references):
    floater = references[0].points.clone()
    floater[:10] *= 0.5  # hangs in the air before the wall
    spoilt = [replace(references[0], points=floater), *references[1:]]
    surface = surface_points(spoilt, 10 ** 6)
    assert (surface.points.norm(dim=-1) > 1.9).all()


def test_a_single_view_and_no_features_suffice():
    references = sphere_references(sphere_images()[:1], feature_layer=None)
    surface = surface_points(references, 1000)
    assert len(surface.points) == len(references[0].points) and surface.features is None


def test_views_are_asked_how_many_points_they_show():
    references = sphere_references(sphere_images())
    surface = surface_points(references, 400)
    shown = points_shown(surface.points, references)
    assert len(shown) == len(references) and (shown > 30).all()
    assert points_shown(surface.points, references, most=2).tolist() == shown[[0, -1]].tolist()
    half = points_shown(surface.points[::2], references)
    assert (half < 0.7 * shown).all() and (half > 0.3 * shown).all()
    away = surface.points + torch.tensor([0.0, 0.0, 100.0])
    assert points_shown(away, references).tolist() == [0] * len(references)
