"""What an assembled map is told about how images find their first pose."""

from dataclasses import replace

from analytic_field import SphereField
from nerfmatch_ros.localization.localizer import Localizer, LocalizerConfig
from nerfmatch_ros.mapping.assemble_map import assemble_map, start_that_serves
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.scene_map import SceneMap
import pytest
from sphere_scene import FRAME, sphere_images, sphere_references
from tiny_build import TINY
import torch


def test_a_map_whose_views_show_too_few_points_starts_from_retrieved_views(caplog):
    config = LocalizerConfig(min_inliers=30)
    enough = torch.tensor([120] * 18 + [40])  # one view in a corner decides nothing
    assert start_that_serves(config, enough) is config and not caplog.text
    few = torch.tensor([500] * 16 + [110] * 4)
    assert start_that_serves(config, few) == replace(config, start='retrieval')
    assert 'no more than 110 points' in caplog.text and 'should show 120' in caplog.text


def test_who_starts_from_retrieved_views_is_told_nothing(caplog):
    config = LocalizerConfig(start='retrieval')
    assert start_that_serves(config, torch.tensor([3])) is config and not caplog.text


@pytest.mark.parametrize('points, start', [(400, 'global'), (25, 'retrieval')])
def test_an_assembled_map_starts_where_its_surface_suffices(points, start, tmp_path):
    images = sphere_images()
    field = SphereField()
    matcher = make_matcher(replace(TINY.matcher, point_feature='f2'), field.feature_channels)
    config = replace(TINY, surface_points=points, surface_cache_points=0, matcher=matcher.config)
    made = assemble_map(images, sphere_references(images), field,
                        matcher.eval().requires_grad_(False), FRAME, config)
    assert isinstance(made, SceneMap) and made.localization['start'] == start
    assert Localizer(made).config.start == start
