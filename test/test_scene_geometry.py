"""Properties of the network that predicts scene geometry, with random weights."""

from dataclasses import replace

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry import pose
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.scene_geometry import (
    cell_rays,
    PredictedGeometry,
    SceneGeometry,
    SceneGeometryConfig,
)
import pytest
import torch

CAMERA = Camera('PINHOLE', 96, 64, 80, 80, 47.5, 31.5)
SMALL = SceneGeometryConfig(channels=16, width=16, longest_side=96, working_focal=80.0)


def predicted(model, pictures, camera=CAMERA):
    with torch.no_grad():
        return model.eval()(pictures, cell_rays(camera)[None])


def pictures(generator, count=2):
    return torch.rand(count, 3, CAMERA.height, CAMERA.width, generator=generator)


def geometry_of(truth, generator, cells=40):
    """What a network that knows everything would say of a pose (B, 4, 4)."""
    rays = torch.rand(len(truth), cells, 3, generator=generator) - 0.5
    rays[..., 2] = 1
    depth = 1 + 4 * torch.rand(len(truth), cells, generator=generator)
    points = pose.transform_points(truth, depth[..., None] * rays)
    return PredictedGeometry(points, depth, torch.ones_like(depth), rays)


@pytest.mark.parametrize('backbone', ['compact', 'resnet18', 'mobilenetv3_small_100'])
def test_each_cell_gets_point_depth_and_weight(backbone, generator):
    found = predicted(SceneGeometry(replace(SMALL, backbone=backbone)), pictures(generator))
    cells = 8 * 12
    assert found.map_points.shape == (2, cells, 3)
    assert found.camera_points.shape == (2, cells, 3)
    assert found.depth.shape == found.weights.shape == (2, cells)
    assert (found.depth > 0).all() and ((found.weights > 0) & (found.weights < 1)).all()


def test_points_and_depths_are_in_units_of_the_extent_about_the_centre(generator):
    model, images = SceneGeometry(SMALL), pictures(generator)
    small = predicted(model, images)
    model.centre.copy_(torch.tensor([5., -2, 1]))
    model.extent.fill_(30.0)
    large = predicted(model, images)
    torch.testing.assert_close(large.map_points, 30 * small.map_points + model.centre)
    torch.testing.assert_close(large.depth, 30 * small.depth)
    torch.testing.assert_close(large.weights, small.weights)


def test_the_depth_at_which_a_picture_looks_the_same_grows_with_the_focal_length(generator):
    model, images = SceneGeometry(SMALL), pictures(generator)
    longer = replace(CAMERA, fx=160, fy=160)
    torch.testing.assert_close(predicted(model, images, longer).depth,
                               2 * predicted(model, images).depth)


def test_camera_points_project_to_the_centres_of_their_cells(generator):
    camera = Camera('OPENCV', 96, 64, 70, 72, 45.0, 33.0, (-0.2, 0.05, 0.002, -0.001))
    found = predicted(SceneGeometry(SMALL), pictures(generator, 1), camera)
    torch.testing.assert_close(
        camera.project(found.camera_points[0]), camera.pixel_grid(8), atol=1e-3, rtol=0)


def test_rays_of_a_camera_have_unit_depth_and_end_on_the_pixel():
    rays = cell_rays(Camera('OPENCV_FISHEYE', 96, 64, 40, 40, 47.5, 31.5, (0.01, 0, 0, 0)))
    assert rays.shape == (8, 12, 3) and rays.isfinite().all()
    assert (rays[..., 2] == 1).all()


def test_the_pose_of_consistent_geometry_is_exact(generator):
    twist = torch.randn(3, 6, generator=generator)
    truth = pose.se3_exp(twist)
    found = geometry_of(truth, generator).pose()
    torch.testing.assert_close(found.rotation, truth[:, :3, :3], atol=1e-4, rtol=0)
    torch.testing.assert_close(found.translation, truth[:, :3, 3], atol=1e-4, rtol=0)
    assert not found.degenerate.any()


def test_cells_without_weight_do_not_move_the_pose(generator):
    truth = pose.se3_exp(torch.randn(1, 6, generator=generator))
    good = geometry_of(truth, generator)
    points, weights = good.map_points.clone(), good.weights.clone()
    points[:, ::3] += 10
    weights[:, ::3] = 0
    found = replace(good, map_points=points, weights=weights).pose()
    torch.testing.assert_close(found.translation, truth[:, :3, 3], atol=1e-4, rtol=0)


def test_the_pose_has_finite_gradients_everywhere(generator):
    model = SceneGeometry(SMALL)
    # An untrained network may well predict one point for all cells.
    torch.nn.init.zeros_(model.point_head[-1].weight)
    found = model(pictures(generator), cell_rays(CAMERA)[None]).pose()
    (found.rotation.sum() + found.translation.sum()).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_half_precision_of_the_features_leaves_the_geometry_in_full(generator):
    model = SceneGeometry(SMALL)
    with torch.autocast('cpu', torch.bfloat16):
        found = predicted(model, pictures(generator))
    assert found.map_points.dtype == found.depth.dtype == found.weights.dtype == torch.float32


def test_rays_of_another_picture_are_refused(generator):
    with pytest.raises(DataError, match='cell_rays'):
        SceneGeometry(SMALL)(pictures(generator), cell_rays(replace(CAMERA, width=128))[None])


@pytest.mark.parametrize('wrong', [
    {'channels': 0}, {'dropout': 1.0}, {'working_focal': -1.0}, {'longest_side': 0}])
def test_sizes_that_make_no_network_are_refused(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        replace(SMALL, **wrong)


def test_a_network_without_a_map_of_the_cells_is_refused():
    with pytest.raises(ConfigError, match='no network'):
        SceneGeometry(replace(SMALL, backbone='no_such_network'))
    with pytest.raises(ConfigError, match='pretrained'):
        SceneGeometry(replace(SMALL, pretrained=True))


def test_any_camera_is_seen_at_the_focal_length_of_the_training():
    view = SceneGeometry(SMALL).working_view(Camera('PINHOLE', 640, 480, 600, 600, 319.5, 239.5))
    assert view.camera.fx == pytest.approx(80, rel=0.02)
    assert view.camera.width % 16 == 0 and view.camera.height % 16 == 0
    low = SceneGeometry(SMALL).working_view(Camera('PINHOLE', 640, 360, 600, 450, 319.5, 179.5))
    assert (low.camera.width, low.camera.height) == (view.camera.width, view.camera.height)
    assert low.camera.fx == pytest.approx(low.camera.fy, rel=0.01)
