"""New views of a map's field: near the way of the photographs, with the depth that they show."""

from types import SimpleNamespace

from nerfmatch_ros.data.synthetic import default_camera
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping import rendered_views
from nerfmatch_ros.mapping.rendered_views import new_pose, render_new_views, views_to_measure
from nerfmatch_ros.radiance_field.renderer import render_view
from nerfmatch_ros.scene_geometry import SceneGeometryConfig
from nerfmatch_ros.scene_map import SceneMap
import numpy as np
import pytest
import torch


@pytest.fixture(scope='module')
def scene_map(tiny_map):
    return SceneMap.load(tiny_map)


def test_views_hold_what_the_field_shows_from_their_poses(scene_map, monkeypatch):
    monkeypatch.setattr(rendered_views, '_LEAST_KNOWN', 0.0)  # the map is hardly trained
    camera = default_camera(64, 48)
    first, second = render_new_views(scene_map, camera, 2)
    assert first.camera == camera and first.rgb().shape == (48, 64, 3)
    assert not np.allclose(first.map_from_camera, second.map_from_camera)
    shown = render_view(scene_map.field, scene_map.frame, camera,
                        torch.from_numpy(second.map_from_camera), stride=1, colour=True)
    known = second.depth_map().reshape(-1) > 0
    assert known.any()
    np.testing.assert_allclose(second.depth_map().reshape(-1)[known],
                               shown.depth.numpy()[known], rtol=1e-4)


def test_views_of_which_the_field_knows_little_are_left_out(scene_map, monkeypatch):
    monkeypatch.setattr(rendered_views, '_LEAST_KNOWN', 1.1)
    assert render_new_views(scene_map, default_camera(64, 48), 2) == []


def test_new_poses_lie_near_the_way_between_neighbours():
    poses = np.tile(np.eye(4), (10, 1, 1))
    poses[:, 0, 3] = np.arange(10)
    random = np.random.default_rng(0)
    drawn = np.stack([new_pose(poses, random) for _ in range(50)])
    assert (np.abs(drawn[:, 1:3, 3]) < 4).all() and (drawn[:, 0, 3] > -3).all()
    assert len(np.unique(drawn[:, 0, 3].round(3))) == 50
    torch.testing.assert_close(torch.from_numpy(np.linalg.det(drawn[:, :3, :3])),
                               torch.ones(50, dtype=torch.float64))


def test_a_map_of_one_view_still_gives_poses():
    assert new_pose(np.eye(4)[None], np.random.default_rng(0)).shape == (4, 4)


def test_a_negative_number_of_views_is_refused(scene_map):
    with pytest.raises(ConfigError, match='-1 rendered views'):
        render_new_views(scene_map, default_camera(64, 48), -1)


def test_views_to_measure_with_are_none_that_a_training_saw(scene_map, monkeypatch):
    monkeypatch.setattr(rendered_views, '_LEAST_KNOWN', 0.0)
    network = SimpleNamespace(config=SceneGeometryConfig(longest_side=64))
    measured = views_to_measure(scene_map, network, 2)
    assert max(measured[0].camera.width, measured[0].camera.height) == 64
    for seed in (0, 1):
        for seen in render_new_views(scene_map, measured[0].camera, 2, seed=seed):
            assert not any(np.allclose(seen.map_from_camera, view.map_from_camera)
                           for view in measured)
