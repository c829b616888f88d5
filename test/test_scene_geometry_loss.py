"""The losses of scene geometry: zero at the truth, and each blind to what it must not see."""

from dataclasses import replace

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry import pose
from nerfmatch_ros.mapping.scene_geometry_loss import (
    consistency_errors,
    GeometryLabels,
    pose_loss,
    reprojection_errors,
    robust,
    scene_geometry_losses,
    SceneGeometryLossConfig,
    weighted_pose,
)
from nerfmatch_ros.scene_geometry import PredictedGeometry
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

ALL = SceneGeometryLossConfig(points=1.0)
NONE = torch.tensor([False])
EXTENT = torch.tensor(2.0, dtype=torch.float64)


def truth_of(generator, count=3):
    return pose.se3_exp(torch.randn(count, 6, dtype=torch.float64, generator=generator))


def exact(truth, generator, cells=30):
    """Geometry that agrees with poses (B, 4, 4)."""
    rays = torch.rand(len(truth), cells, 3, dtype=torch.float64, generator=generator) - 0.5
    rays[..., 2] = 1
    depth = 1 + torch.rand(len(truth), cells, dtype=torch.float64, generator=generator)
    weights = torch.rand(len(truth), cells, dtype=torch.float64, generator=generator)
    return PredictedGeometry(pose.transform_points(truth, depth[..., None] * rays), depth,
                             weights, rays)


def labels_of(truth, geometry, **known):
    return GeometryLabels(truth, torch.ones_like(geometry.depth, dtype=torch.bool), **known)


def moved(geometry, generator, metres=0.1):
    noise = torch.randn(geometry.map_points.shape, dtype=torch.float64, generator=generator)
    return replace(geometry, map_points=geometry.map_points + metres * noise)


def test_all_losses_vanish_for_exact_geometry(generator):
    truth = truth_of(generator)
    geometry = exact(truth, generator)
    losses = scene_geometry_losses(
        geometry, labels_of(truth, geometry, depth=geometry.depth), EXTENT, ALL)
    assert set(losses) == {'pose', 'consistency', 'reprojection', 'points'}
    assert all(abs(loss) < 1e-7 for loss in losses.values())


@pytest.mark.parametrize('name', ['pose', 'consistency', 'reprojection', 'points'])
def test_a_loss_of_weight_zero_is_off_and_the_others_stay(name, generator):
    truth = truth_of(generator)
    geometry = moved(exact(truth, generator), generator)
    labels = labels_of(truth, geometry, depth=geometry.depth)
    every = scene_geometry_losses(geometry, labels, EXTENT, ALL)
    fewer = scene_geometry_losses(geometry, labels, EXTENT, replace(ALL, **{name: 0.0}))
    assert fewer == {key: value for key, value in every.items() if key != name}
    assert all(loss > 0.01 for loss in every.values())


def test_a_weight_scales_its_loss(generator):
    truth = truth_of(generator)
    geometry = moved(exact(truth, generator), generator)
    labels = labels_of(truth, geometry)
    once = scene_geometry_losses(geometry, labels, EXTENT, ALL)['reprojection']
    thrice = scene_geometry_losses(geometry, labels, EXTENT, replace(ALL, reprojection=3.0))
    torch.testing.assert_close(thrice['reprojection'], 3 * once)


def test_the_pose_loss_is_distance_in_extents_and_angle_in_radians(generator):
    truth = truth_of(generator, 1)
    geometry = exact(truth, generator)
    wrong = truth.clone()
    turn = Rotation.from_rotvec([0.0, 0.3, 0.0]).as_matrix()
    wrong[0, :3, :3] = wrong[0, :3, :3] @ torch.from_numpy(turn)
    wrong[0, :3, 3] += torch.tensor([0.0, 0.0, 0.5])
    found = geometry.pose()
    assert pose_loss(found, wrong, EXTENT).item() == pytest.approx(0.3 + 0.25, abs=1e-6)
    assert pose_loss(found, wrong, EXTENT, NONE).item() == pytest.approx(
        0.25, abs=1e-6)


def test_reprojection_is_measured_in_the_plane_one_metre_ahead():
    rays = torch.tensor([[[0.1, 0.0, 1.0]]], dtype=torch.float64)
    geometry = PredictedGeometry(torch.tensor([[[0.8, 0.0, 4.0]]], dtype=torch.float64),
                                 torch.full((1, 1), 4.0, dtype=torch.float64),
                                 torch.ones(1, 1, dtype=torch.float64), rays)
    errors = reprojection_errors(geometry, torch.eye(4, dtype=torch.float64)[None],
                                 torch.tensor(0.1))
    assert errors.item() == pytest.approx(0.1)
    # A point on the cell's ray but at another depth is no error of the reprojection.
    along = replace(geometry, map_points=7 * rays)
    assert reprojection_errors(along, torch.eye(4, dtype=torch.float64)[None],
                               torch.tensor(0.1)).item() == pytest.approx(0)
    assert consistency_errors(along, torch.eye(4, dtype=torch.float64)[None]).item() \
        == pytest.approx(3 * np.hypot(1, 0.1))


def test_points_behind_the_camera_are_drawn_forward():
    points = torch.tensor([[[0.2, 0.1, -3.0]]], dtype=torch.float64, requires_grad=True)
    geometry = PredictedGeometry(
        points, torch.ones(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64),
        torch.tensor([[[0.0, 0.0, 1.0]]], dtype=torch.float64))
    reprojection_errors(geometry, torch.eye(4, dtype=torch.float64)[None],
                        torch.tensor(0.1)).sum().backward()
    assert points.grad.isfinite().all() and points.grad[0, 0, 2] < 0


def test_small_errors_count_as_they_are_and_huge_ones_hardly_more_than_large_ones():
    errors = torch.tensor([0.001, 0.01, 100.0, 1000.0])
    found = robust(errors, 0.5)
    torch.testing.assert_close(found[:2], errors[:2], rtol=0.02, atol=0)
    assert found[3] < 1.5 * found[2] and found[3] > found[2]


def test_cells_that_do_not_show_the_scene_change_nothing(generator):
    truth = truth_of(generator)
    geometry = moved(exact(truth, generator), generator)
    seen = torch.ones_like(geometry.depth, dtype=torch.bool)
    seen[:, ::4] = False
    labels = GeometryLabels(truth, seen)
    points = geometry.map_points.clone()
    points[:, ::4] += 5
    before = scene_geometry_losses(geometry, labels, EXTENT, ALL)
    after = scene_geometry_losses(replace(geometry, map_points=points), labels, EXTENT, ALL)
    assert before == after


def test_cells_without_a_place_count_for_the_pose_alone(generator):
    truth = truth_of(generator)
    geometry = moved(exact(truth, generator), generator)
    labels = labels_of(truth, geometry, depth=geometry.depth)
    still = labels.seen.clone()
    still[:, ::4] = False
    points = geometry.map_points.clone()
    points[:, ::4] += 5
    before, after = (scene_geometry_losses(given, replace(labels, still=still), EXTENT, ALL)
                     for given in (geometry, replace(geometry, map_points=points)))
    assert before.pop('pose') != after.pop('pose')
    assert before == after


def test_rotations_are_never_looked_at_where_only_positions_are_known(generator):
    truth = truth_of(generator)
    geometry = moved(exact(truth, generator), generator)
    unknown = truth.clone()
    unknown[:, :3, :3] = truth_of(generator)[:, :3, :3]
    known, blind = (scene_geometry_losses(
        geometry, labels_of(poses, geometry, rotation_known=NONE.expand(3)), EXTENT, ALL)
        for poses in (truth, unknown))
    assert known == blind


def test_known_rotations_count_beside_unknown_ones(generator):
    truth = truth_of(generator)
    geometry = moved(exact(truth, generator), generator)
    unknown = truth.clone()
    unknown[1:, :3, :3] = truth_of(generator)[1:, :3, :3]
    first = torch.tensor([True, False, False])
    given, blind, turned = (scene_geometry_losses(
        geometry, labels_of(poses, geometry, rotation_known=first), EXTENT, ALL)
        for poses in (truth, unknown, truth.flip(0)))
    assert given == blind and given != turned


def test_positions_alone_still_teach_points_and_depths(generator):
    truth = truth_of(generator)
    geometry = moved(exact(truth, generator), generator)
    points = geometry.map_points.clone().requires_grad_()
    depth = geometry.depth.clone().requires_grad_()
    losses = scene_geometry_losses(
        replace(geometry, map_points=points, depth=depth),
        labels_of(truth, geometry, rotation_known=NONE.expand(3)), EXTENT,
        SceneGeometryLossConfig(pose=0.0))
    sum(losses.values()).backward()
    assert points.grad.abs().sum() > 0 and depth.grad.abs().sum() > 0


def test_without_weights_all_cells_count_alike(generator):
    truth = truth_of(generator)
    geometry = moved(exact(truth, generator), generator)
    seen = torch.ones_like(geometry.depth, dtype=torch.bool)
    alike = weighted_pose(replace(geometry, weights=torch.ones_like(geometry.weights)), seen)
    torch.testing.assert_close(weighted_pose(geometry, seen, weighted=False).translation,
                               alike.translation)
    assert not torch.allclose(weighted_pose(geometry, seen).translation, alike.translation)


def test_gradients_are_finite_where_nothing_is_wrong_and_where_all_points_are_one(generator):
    truth = truth_of(generator)
    for geometry in (exact(truth, generator),
                     replace(exact(truth, generator),
                             map_points=torch.ones(3, 30, 3, dtype=torch.float64))):
        leaves = [getattr(geometry, name).clone().requires_grad_()
                  for name in ('map_points', 'depth', 'weights')]
        losses = scene_geometry_losses(
            PredictedGeometry(*leaves, geometry.rays), labels_of(truth, geometry), EXTENT, ALL)
        sum(losses.values()).backward()
        assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_losses_that_teach_nothing_are_refused():
    with pytest.raises(ConfigError, match='switched off'):
        SceneGeometryLossConfig(pose=0, consistency=0, reprojection=0)
    with pytest.raises(ConfigError, match='pose'):
        SceneGeometryLossConfig(pose=-1)
