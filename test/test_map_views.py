"""What an image is matched with: where it comes from, and that it says so."""

from dataclasses import replace

from nerfmatch_ros.localization.localizer import LocalizerConfig
from nerfmatch_ros.localization.map_views import MapViews
from nerfmatch_ros.radiance_field.surface_cache import sorted_cache
import numpy as np
import pytest
from sphere_scene import CAMERA, pose_at, sphere_images, sphere_references
from test_localizer import distance, make, moved, query, TRUTH
import torch

CPU = torch.device('cpu')


@pytest.fixture(scope='module')
def references():
    return sphere_references(sphere_images())


def cached(references, scene_map, *, keep=lambda points: points[:, 0] > -9.0):
    """Give a map a surface cache of what its reference views show."""
    points = torch.cat([view.points for view in references])
    return replace(scene_map, surface_cache=sorted_cache(points[keep(points)], 0.1))


def views(references, **options):
    scene_map = cached(references, make(references)[0].scene_map, **options)
    return MapViews(scene_map, CPU), scene_map.working_view(CAMERA)


def test_a_pose_is_looked_from_by_splatting(references):
    made, view = views(references)
    seen = made.at(pose_at(0.05, 0.02, 0.01), view, 0.4)
    assert seen.source == 'splatted' and len(seen.points) == len(seen.tokens.coarse)
    in_camera = (seen.points - torch.tensor([0.05, 0.02, 0.01]))
    assert (in_camera[:, 2] > 0).all()
    cells = (view.camera.height // 8) * (view.camera.width // 8)
    assert 0.4 * cells <= len(seen.points) <= cells


def test_what_the_cache_covers_too_little_of_is_rendered_and_said(references):
    made, view = views(references, keep=lambda points: points[:, 0] > 0.8)
    seen = made.at(pose_at(0.0, 0.0, 0.0), view, 0.4)
    assert seen.source.startswith('rendered: the surface cache covers ')
    assert seen.source.endswith(' % of the view')
    reach = torch.linalg.norm(seen.points, dim=1)
    assert (reach.max() - reach.min()) < 0.05 * reach.max()  # the sphere itself, to a sample


def test_a_map_without_a_surface_cache_is_rendered_and_says_so(references):
    scene_map = make(references)[0].scene_map
    seen = MapViews(scene_map, CPU).at(
        pose_at(0.0, 0.0, 0.0), scene_map.working_view(CAMERA), 0.4)
    assert seen.source == 'rendered: the map has no surface cache'


def test_surface_and_reference_views_are_encoded_once(references):
    made, _ = views(references)
    assert made.surface() is made.surface() and made.surface().source == 'surface'
    together, again = (made.references([0, 2]) for _ in range(2))
    assert [seen.source for seen in together] == ['reference views']
    assert torch.equal(together[0].points, again[0].points)
    assert len(together[0].points) == len(references[0].points) + len(references[2].points)


def localizer_with_cache(references, **config):
    from nerfmatch_ros.localization.localizer import Localizer
    localizer, matcher = make(references)
    return Localizer(cached(references, localizer.scene_map), LocalizerConfig(**config)), matcher


def test_a_good_prior_is_looked_from_once(references):
    localizer, matcher = localizer_with_cache(references)
    estimate = localizer.localize(query(), moved(TRUTH, 0.01, -0.01, 0.01, 0.005, 0, 0.005))
    assert len(matcher.offered) == 1 and estimate.source == 'splatted'
    metres, radians = distance(estimate)
    assert metres < 0.04 and radians < 0.02


def test_a_prior_in_single_precision_is_one_too(references):
    localizer, _ = localizer_with_cache(references)
    prior = moved(TRUTH, 0.01, -0.01, 0.01, 0.005, 0, 0.005)
    found = [localizer.localize(query(), given).map_from_camera
             for given in (prior, prior.astype(np.float32))]
    np.testing.assert_allclose(*found, atol=1e-3)


def test_the_least_coverage_is_that_of_the_configuration_in_use(references):
    localizer, _ = localizer_with_cache(references)
    localizer.config = replace(localizer.config, least_coverage=1.0)
    assert localizer.localize(query(), TRUTH).source.startswith('rendered: the surface cache ')


def test_from_a_poor_prior_it_looks_again(references):
    localizer, matcher = localizer_with_cache(references)
    estimate = localizer.localize(query(), moved(TRUTH, 0.2, -0.1, 0.1, 0.2, 0, 0.2))
    assert len(matcher.offered) >= 2
    assert distance(estimate)[0] < 0.04


def test_splatting_and_rendering_lead_to_the_same_pose(references):
    splatted, _ = localizer_with_cache(references)
    rendered, _ = localizer_with_cache(references, least_coverage=1.0)
    prior = moved(TRUTH, 0.02, -0.01, 0.01, 0.01, 0, 0.01)
    one, other = (localizer.localize(query(), prior) for localizer in (splatted, rendered))
    assert one.source == 'splatted' and other.source.startswith('rendered: ')
    np.testing.assert_allclose(one.map_from_camera, other.map_from_camera, atol=0.03)
