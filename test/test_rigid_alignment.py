"""Properties of the weighted alignment of points, against scipy and finite differences."""

from nerfmatch_ros.geometry import pose
from nerfmatch_ros.geometry.rigid_alignment import align
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch


def motion(generator, *batch):
    twist = torch.randn(*batch, 6, dtype=torch.float64, generator=generator)
    return pose.se3_exp(twist)


def cloud(generator, *shape):
    return torch.randn(*shape, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize('with_scale, scale', [(False, 1.0), (True, 2.5)])
def test_a_known_motion_is_found_exactly(with_scale, scale, generator):
    truth = motion(generator, 4)
    source = cloud(generator, 4, 9)
    truth[..., :3, 3] *= 3
    target = scale * (source @ truth[:, :3, :3].mT) + truth[:, None, :3, 3]
    found = align(source, target, with_scale=with_scale)
    torch.testing.assert_close(found.rotation, truth[:, :3, :3])
    torch.testing.assert_close(found.translation, truth[:, :3, 3])
    torch.testing.assert_close(found.scale, torch.full((4,), scale, dtype=torch.float64))
    assert not found.degenerate.any()


def test_rotation_of_noisy_weighted_points_equals_scipy(generator):
    source, target = cloud(generator, 20), cloud(generator, 20)
    weights = torch.rand(20, dtype=torch.float64, generator=generator)
    found = align(source, target, weights)
    mean = [(weights[:, None] * p).sum(0) / weights.sum() for p in (source, target)]
    expected, _ = Rotation.align_vectors(
        (target - mean[1]).numpy(), (source - mean[0]).numpy(), weights=weights.numpy())
    np.testing.assert_allclose(found.rotation, expected.as_matrix(), atol=1e-10)
    torch.testing.assert_close(found.translation, mean[1] - found.rotation @ mean[0])


def test_points_without_weight_do_not_count(generator):
    truth = motion(generator)
    source = cloud(generator, 10)
    target = pose.transform_points(truth, source)
    target[5:] += 100
    weights = torch.tensor([1.] * 5 + [0.] * 5, dtype=torch.float64)
    torch.testing.assert_close(align(source, target, weights).rotation, truth[:3, :3])


def test_mirrored_points_still_give_a_proper_rotation(generator):
    source = cloud(generator, 3, 8)
    found = align(source, source * source.new_tensor((1, 1, -1)))
    torch.testing.assert_close(
        torch.linalg.det(found.rotation), torch.ones(3, dtype=torch.float64))


def test_no_small_change_of_the_motion_fits_better(generator):
    source, target = cloud(generator, 15), cloud(generator, 15)
    found = align(source, target, with_scale=True)

    def cost(turn, shift, factor):
        rotation = found.rotation @ pose.so3_exp(turn)
        moved = factor * found.scale * source @ rotation.mT + found.translation + shift
        return ((moved - target) ** 2).sum()

    zero = torch.zeros(3, dtype=torch.float64)
    best = cost(zero, zero, 1)
    for axis in 1e-3 * torch.eye(3, dtype=torch.float64):
        for step in (axis, -axis):
            assert cost(step, zero, 1) > best and cost(zero, step, 1) > best
    assert cost(zero, zero, 1.001) > best and cost(zero, zero, 0.999) > best


@pytest.mark.parametrize('symmetric', [False, True])
def test_gradient_equals_finite_differences_even_for_symmetric_points(symmetric, generator):
    # Equal singular values, as of a cube's corners, break the gradient of a plain SVD.
    signs = torch.tensor([-1., 1], dtype=torch.float64)
    source = torch.cartesian_prod(signs, signs, signs) if symmetric else cloud(generator, 8)
    target = pose.transform_points(motion(generator), source)
    weights = torch.ones(8, dtype=torch.float64)
    if not symmetric:
        target = target + 0.3 * cloud(generator, 8)

    def parameters(source, target, weights):
        found = align(source, target, weights, with_scale=True)
        return torch.cat((found.rotation.flatten(), found.translation, found.scale[None]))

    inputs = (source, target, weights)
    analytic = torch.autograd.functional.jacobian(parameters, inputs)
    for i, (value, jacobian) in enumerate(zip(inputs, analytic)):
        direction = torch.randn(value.shape, dtype=torch.float64, generator=generator)
        ahead, behind = (parameters(*inputs[:i], value + h * direction, *inputs[i + 1:])
                         for h in (1e-6, -1e-6))
        numeric = (ahead - behind) / 2e-6
        given = (jacobian * direction).flatten(1).sum(1)
        torch.testing.assert_close(given, numeric, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize('kind', ['line', 'one point', 'no weight', 'hardly any weight'])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('size', [1e-3, 1.0, 100.0])
def test_degenerate_points_are_reported_with_finite_results(kind, dtype, size, generator):
    source = size * torch.randn(6, 3, dtype=dtype, generator=generator)
    weights = torch.ones(6, dtype=dtype)
    if kind == 'line':
        source = source[:1] * torch.arange(6, dtype=dtype)[:, None]
    elif kind == 'one point':
        source = source[:1].expand(6, 3)
    else:
        weights = weights * (0 if kind == 'no weight' else torch.finfo(dtype).tiny / 10)
    target = (source + 1).requires_grad_()
    source, weights = source.clone().requires_grad_(), weights.requires_grad_()
    found = align(source, target, weights, with_scale=True)
    assert found.degenerate
    (found.rotation.sum() + found.translation.sum() + found.scale).backward()
    assert found.rotation.isfinite().all()
    for given in (source, target, weights):
        assert given.grad.isfinite().all()


def test_points_in_a_plane_are_enough(generator):
    truth = motion(generator)
    source = cloud(generator, 6) * source_plane()
    found = align(source, pose.transform_points(truth, source))
    assert not found.degenerate
    torch.testing.assert_close(found.rotation, truth[:3, :3])


def source_plane():
    return torch.tensor([1., 1, 0], dtype=torch.float64)
