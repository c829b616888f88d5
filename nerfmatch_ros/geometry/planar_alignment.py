"""Motions of the plane: rigid (3 degrees of freedom) and homographies (8), fitted in closed form.

A motion is a matrix (..., 3, 3) named `target_from_source` that moves homogeneous points. The fits
are differentiable in all points, so that they can stand in a loss (L2G-NeRF, planar case).
"""

import torch
from torch import Tensor


def rigid_motion(parameters: Tensor) -> Tensor:
    """Make the rigid motions (..., 3, 3) of (..., 3): angle in radians, then translation."""
    angle, x, y = parameters.unbind(-1)
    cosine, sine = angle.cos(), angle.sin()
    zero, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = (cosine, -sine, x, sine, cosine, y, zero, zero, one)
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def homography(parameters: Tensor) -> Tensor:
    """Make the homographies (..., 3, 3) of (..., 8): the exponential of a traceless matrix.

    Any parameters give an invertible motion of determinant 1; zeros give the identity.
    """
    a, b, c, d, e, f, g, h = parameters.unbind(-1)
    rows = (a, b, c, d, e - a, f, g, h, -e)
    return torch.linalg.matrix_exp(torch.stack(rows, dim=-1).unflatten(-1, (3, 3)))


def move(motion: Tensor, points: Tensor) -> Tensor:
    """Move points (..., N, 2) by motions (..., 3, 3)."""
    moved = points @ motion[..., :2].transpose(-1, -2) + motion[..., None, :, 2]
    return moved[..., :2] / moved[..., 2:]


def fit_rigid(source: Tensor, target: Tensor) -> Tensor:
    """Fit the rigid motion (..., 3, 3) between points (..., N, 2) by least squares."""
    source_mean, target_mean = source.mean(-2), target.mean(-2)
    first, second = source - source_mean[..., None, :], target - target_mean[..., None, :]
    along = (first * second).sum((-1, -2))
    across = (first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]).sum(-1)
    turned = rigid_motion(torch.stack(
        (torch.atan2(across, along), torch.zeros_like(along), torch.zeros_like(along)), dim=-1))
    shift = target_mean - move(turned, source_mean[..., None, :])[..., 0, :]
    moved = torch.cat([turned[..., :2, :2], shift[..., None]], dim=-1)
    return torch.cat([moved, turned[..., 2:, :]], dim=-2)


def fit_homography(source: Tensor, target: Tensor) -> Tensor:
    """Fit homographies (..., 3, 3), determinant 1, by the direct linear transform (DLT).

    source, target: (..., N, 2), at least four points no three of which lie on a line. The
    algebraic error of points brought to unit spread is least (Hartley, 1997).
    """
    source_scaled, from_source = _normalised(source)
    target_scaled, from_target = _normalised(target)
    vector = _null_vector(_equations(source_scaled, target_scaled))
    fitted = torch.linalg.inv(from_target) @ vector.unflatten(-1, (3, 3)) @ from_source
    determinant = torch.linalg.det(fitted)[..., None, None]
    return fitted / (determinant.sign() * determinant.abs() ** (1 / 3))


def _normalised(points: Tensor) -> tuple[Tensor, Tensor]:
    """Centre points and scale them to unit spread; gives them and the motion (..., 3, 3)."""
    mean = points.mean(-2, keepdim=True)
    scale = 1 / (points - mean).square().sum((-1, -2), keepdim=True).div(
        points.shape[-2]).sqrt().clamp(min=torch.finfo(points.dtype).tiny)
    zero, one = torch.zeros_like(scale), torch.ones_like(scale)
    x, y = (-scale * mean)[..., :1], (-scale * mean)[..., 1:]
    rows = [torch.cat(row, dim=-1) for row in ((scale, zero, x), (zero, scale, y),
                                               (zero, zero, one))]
    return (points - mean) * scale, torch.cat(rows, dim=-2)


def _equations(source: Tensor, target: Tensor) -> Tensor:
    """Give A (..., 2 N, 9) with A h = 0 for the rows h of the homography."""
    x, y = source.unbind(-1)
    u, v = target.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    first = torch.stack((x, y, one, zero, zero, zero, -u * x, -u * y, -u), dim=-1)
    second = torch.stack((zero, zero, zero, x, y, one, -v * x, -v * y, -v), dim=-1)
    return torch.cat([first, second], dim=-2)


def _null_vector(equations: Tensor) -> Tensor:
    """Give the unit h (..., 9) with the least |A h|; its derivative is that of an eigenvector."""
    # The derivative of a full eigendecomposition divides by differences of eigenvalues that do
    # not matter here and may vanish. So h is found without gradient, and one Newton step, zero in
    # value, carries the gradient: dh = -(M - l I + h h^T)^-1 (M h - l h), orthogonal to h.
    normal = equations.transpose(-1, -2) @ equations / equations.shape[-2]
    with torch.no_grad():
        values, vectors = torch.linalg.eigh(normal)
        least, vector = values[..., :1, None], vectors[..., :1]
        identity = torch.eye(9).to(normal)
        system = normal - least * identity + vector @ vector.transpose(-1, -2)
    residual = normal @ vector - least * vector
    residual = residual - vector @ (vector.transpose(-1, -2) @ residual)
    return (vector - torch.linalg.solve(system, residual))[..., 0]
