"""Properties of rigid motions, against scipy and finite differences."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.geometry import pose
import numpy as np
import pytest
from scipy.linalg import expm
from scipy.spatial.transform import Rotation
import torch

component = st.floats(-3, 3, allow_nan=False)
small_or_large = st.sampled_from((0.0, 1e-30, 1e-9, 1e-4, 0.3, 0.499, 0.501, 2.0, 3.1, math.pi))
direction = st.tuples(component, component, component).filter(lambda v: math.hypot(*v) > 1e-2)


def random_pose(generator, *batch):
    return pose.se3_exp(torch.randn(*batch, 6, dtype=torch.float64, generator=generator))


def scaled(vector, angle):
    vector = torch.tensor(vector, dtype=torch.float64)
    return vector / vector.norm() * angle


@settings(max_examples=50, deadline=None)
@given(direction, small_or_large)
def test_exponential_equals_scipy_and_logarithm_inverts_it(vector, angle):
    rotation_vector = scaled(vector, angle)
    rotation = pose.so3_exp(rotation_vector)
    expected = Rotation.from_rotvec(rotation_vector.numpy()).as_matrix()
    np.testing.assert_allclose(rotation, expected, atol=1e-14)
    back = pose.so3_log(rotation)
    torch.testing.assert_close(pose.so3_exp(back), rotation, atol=1e-14, rtol=0)
    if angle < 3.14:
        torch.testing.assert_close(back, rotation_vector, atol=1e-12, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(direction, small_or_large, direction)
def test_se3_exponential_is_the_matrix_exponential(vector, angle, linear):
    twist = torch.cat((torch.tensor(linear, dtype=torch.float64), scaled(vector, angle)))
    generator_matrix = np.zeros((4, 4))
    generator_matrix[:3, :3] = pose.hat(twist[3:])
    generator_matrix[:3, 3] = twist[:3]
    np.testing.assert_allclose(pose.se3_exp(twist), expm(generator_matrix), atol=1e-13)
    if angle < 3.14:
        torch.testing.assert_close(
            pose.se3_log(pose.se3_exp(twist)), twist, atol=1e-11, rtol=1e-11)


@pytest.mark.parametrize('function, size', [
    (pose.so3_exp, 3), (pose.se3_exp, 6),
    (lambda w: pose.so3_log(pose.so3_exp(w)), 3), (lambda t: pose.se3_log(pose.se3_exp(t)), 6)])
@pytest.mark.parametrize('angle', [0.0, 1e-20, 1e-6, 0.02, 0.5, 2.0, 3.1])
def test_gradients_are_finite_and_equal_finite_differences(function, size, angle, generator):
    vector = torch.randn(size, dtype=torch.float64, generator=generator)
    vector[-3:] *= angle / vector[-3:].norm()
    analytic = torch.autograd.functional.jacobian(function, vector)
    assert analytic.isfinite().all()
    steps = 1e-6 * torch.eye(size, dtype=torch.float64)
    numeric = torch.stack(
        [(function(vector + h) - function(vector - h)) / 2e-6 for h in steps], dim=-1)
    torch.testing.assert_close(analytic, numeric, atol=1e-6, rtol=1e-6)


def test_logarithm_of_half_turns_is_pi_long_with_finite_gradient():
    axes = torch.tensor([[1., 0, 0], [0, 1, 0], [0, 0, 1], [.6, .8, 0], [-.6, .48, .64]])
    axes = axes.double().requires_grad_()
    half_turns = 2 * axes[:, :, None] * axes[:, None, :] - torch.eye(3, dtype=torch.float64)
    vectors = pose.so3_log(half_turns)
    torch.testing.assert_close(vectors.norm(dim=-1), torch.full((5,), math.pi).double())
    torch.testing.assert_close(pose.so3_exp(vectors), half_turns)
    vectors.sum().backward()
    assert axes.grad.isfinite().all()


def test_distance_of_a_pose_to_itself_is_zero_with_finite_gradient(generator):
    first = random_pose(generator, 4).requires_grad_()
    metres, radians = pose.pose_distance(first, first.detach())
    assert metres.max() == 0 and radians.max() < 1e-15
    (metres + radians).sum().backward()
    assert first.grad.isfinite().all()


def test_float32_angles_are_precise_down_to_a_microradian():
    turned = pose.so3_exp(torch.tensor([0., 1e-6, 0.]))
    motion = pose.transform(turned, torch.zeros(3))
    assert motion.dtype == torch.float32
    assert float(pose.pose_distance(torch.eye(4), motion)[1]) == pytest.approx(1e-6, rel=1e-4)


def test_inverse_undoes_a_pose_and_points_follow_products(generator):
    a, b = random_pose(generator, 2, 5)
    points = torch.randn(5, 7, 3, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(pose.inverse(a) @ a, torch.eye(4).double().expand(5, 4, 4))
    torch.testing.assert_close(
        pose.transform_points(a @ b, points),
        pose.transform_points(a, pose.transform_points(b, points)))


def test_pose_difference_inverts_perturb_and_moves_along_map_axes(generator):
    a, b = random_pose(generator, 2, 5)
    delta = pose.pose_difference(a, b)
    torch.testing.assert_close(pose.perturb(a, delta), b)
    shift = torch.tensor([0., 0, 2, 0, 0, 0], dtype=torch.float64)
    moved = pose.perturb(a, shift)
    torch.testing.assert_close(moved[:, :3, 3] - a[:, :3, 3], shift[:3].expand(5, 3))
    torch.testing.assert_close(moved[:, :3, :3], a[:, :3, :3])


def test_interpolation_passes_both_ends_at_constant_speed(generator):
    a, b = random_pose(generator, 2)
    torch.testing.assert_close(pose.interpolate(a, b, 0.0), a)
    torch.testing.assert_close(pose.interpolate(a, b, 1.0), b)
    metres, radians = pose.pose_distance(a, b)
    third = pose.pose_distance(a, pose.interpolate(a, b, 1 / 3))
    torch.testing.assert_close(third, (metres / 3, radians / 3))


def test_nearest_rotation_repairs_noise_and_is_never_a_mirror(generator):
    rotation = random_pose(generator, 6)[:, :3, :3]
    noise = 1e-4 * torch.randn(6, 3, 3, dtype=torch.float64, generator=generator)
    repaired = pose.nearest_rotation(rotation + noise)
    torch.testing.assert_close(
        repaired.mT @ repaired, torch.eye(3).double().expand(6, 3, 3))
    assert (repaired - rotation).abs().max() < 1e-3
    assert torch.linalg.det(pose.nearest_rotation(-rotation)).min() > 0.999
