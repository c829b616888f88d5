"""Motions of the plane: their fits find what moved the points, and pass gradients on."""

import math

from nerfmatch_ros.geometry.planar_alignment import (
    fit_homography,
    fit_rigid,
    homography,
    move,
    rigid_motion,
)
import pytest
import torch

FITS = {'rigid': (fit_rigid, rigid_motion, 3), 'homography': (fit_homography, homography, 8)}


def motions(kind, count, generator, size=0.3):
    _, make, numbers = FITS[kind]
    draws = torch.randn(count, numbers, generator=generator, dtype=torch.float64)
    return make(size * draws)


def points(count, generator):
    return 2 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 1


def grid():
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    return torch.cartesian_prod(axis, axis)


@pytest.mark.parametrize('kind', FITS)
def test_the_motion_that_moved_points_is_found(kind, generator):
    motion, source = motions(kind, 6, generator), points(12, generator).expand(6, -1, -1)
    torch.testing.assert_close(FITS[kind][0](source, move(motion, source)), motion)


@pytest.mark.parametrize('kind', FITS)
def test_zero_parameters_are_no_motion(kind):
    identity = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(FITS[kind][1](torch.zeros(FITS[kind][2]).double()), identity)


@pytest.mark.parametrize('kind', FITS)
def test_no_small_change_of_the_fit_is_better(kind, generator):
    fit, make, numbers = FITS[kind]
    source = points(30, generator)
    noise = 0.02 * torch.randn(30, 2, generator=generator, dtype=torch.float64)
    target = move(motions(kind, 1, generator)[0], source) + noise
    fitted = fit(source, target)

    def error(motion):
        return (move(motion, source) - target).square().mean().item()

    if kind == 'homography':  # algebraic error: close to the best geometric one, not equal
        assert error(fitted) < 1.2 * 2 * 0.02 ** 2
        return
    steps = 1e-3 * torch.randn(50, numbers, generator=generator, dtype=torch.float64)
    assert all(error(make(step) @ fitted) > error(fitted) for step in steps)


@pytest.mark.parametrize('kind', FITS)
def test_gradients_agree_with_finite_differences(kind, generator):
    source = points(6, generator).requires_grad_()
    noise = 0.05 * torch.randn(6, 2, generator=generator, dtype=torch.float64)
    target = (move(motions(kind, 1, generator)[0], source.detach()) + noise).requires_grad_()
    assert torch.autograd.gradcheck(FITS[kind][0], (source, target), atol=1e-4)


@pytest.mark.parametrize('kind', FITS)
def test_gradients_are_finite_for_an_even_grid_that_has_not_moved(kind):
    source = grid()
    target = source.clone().requires_grad_()
    weight = torch.arange(9.0, dtype=torch.float64).view(3, 3)
    (FITS[kind][0](source, target) * weight).sum().backward()
    assert target.grad.isfinite().all() and target.grad.abs().max() > 0


def test_a_quarter_turn_moves_as_it_says():
    motion = rigid_motion(torch.tensor([math.pi / 2, 3.0, 0.0]))
    moved = move(motion, torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(moved, torch.tensor([[3.0, 1.0]]))


def test_homographies_keep_lines_and_have_determinant_one(generator):
    motion = motions('homography', 20, generator)
    torch.testing.assert_close(torch.linalg.det(motion), torch.ones(20).double())
    line = torch.tensor([[-0.5, -0.5], [0.0, 0.1], [0.5, 0.7]], dtype=torch.float64)
    moved = move(motion, line.expand(20, -1, -1))
    first, second = moved[:, 1] - moved[:, 0], moved[:, 2] - moved[:, 0]
    area = first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]
    torch.testing.assert_close(area, torch.zeros(20).double(), atol=1e-9, rtol=0)
