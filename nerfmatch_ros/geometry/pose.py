"""Rigid motions: exponential and logarithm of SO(3) and SE(3), distance, perturbation.

A pose is a matrix (..., 4, 4) named `target_from_source`. Everything follows the dtype and device
of its inputs and has finite gradients everywhere, the identity and rotations by pi included.
Letters: t = theta^2, A = sin(theta) / theta, B = (1 - cos(theta)) / theta^2,
C = (theta - sin(theta)) / theta^3.
"""

import math

import numpy as np
import torch
from torch import Tensor

_SERIES_BELOW = 0.25  # theta^2 under which the power series replace the quotients
_SERIES_TERMS = 8  # enough for float64 at theta^2 = 0.25


def hat(vector: Tensor) -> Tensor:
    """Make the cross-product matrix of vectors (..., 3): hat(a) @ b = a x b."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    rows = (zero, -z, y, z, zero, -x, -y, x, zero)
    return torch.stack(rows, dim=-1).unflatten(-1, (3, 3))


def so3_exp(rotation_vector: Tensor) -> Tensor:
    """Give the rotation matrices (..., 3, 3) of rotation vectors (..., 3), radians."""
    a, b, _ = _coefficients(rotation_vector)
    cross = hat(rotation_vector)
    identity = torch.eye(3).to(cross)
    return identity + a[..., None, None] * cross + b[..., None, None] * (cross @ cross)


def so3_log(rotation: Tensor) -> Tensor:
    """Give the rotation vectors (..., 3), radians, at most pi long, of rotations (..., 3, 3)."""
    quaternion = _quaternion(rotation)
    real, imaginary = quaternion[..., :1], quaternion[..., 1:]
    squared = (imaginary * imaginary).sum(-1, keepdim=True)
    small = squared < 1e-4 * real * real
    # Both branches are evaluated, so each gets harmless arguments where the other one counts:
    # otherwise 0 * inf would put NaN into the gradient.
    ratio2 = torch.where(small, squared, 0) / torch.where(small, real, 1) ** 2
    series = 1 + ratio2 * (-1 / 3 + ratio2 * (1 / 5 - ratio2 / 7))
    near_identity = 2 * series / torch.where(small, real, 1)
    length = torch.where(small, 1, squared).sqrt()
    elsewhere = 2 * torch.atan2(length, torch.where(small, 1, real)) / length
    return torch.where(small, near_identity, elsewhere) * imaginary


def se3_exp(twist: Tensor) -> Tensor:
    """Give the poses (..., 4, 4) of twists (..., 6): translation part (metres), then rotation."""
    linear, angular = twist[..., :3], twist[..., 3:]
    _, b, c = _coefficients(angular)
    cross = hat(angular)
    identity = torch.eye(3).to(cross)
    jacobian = identity + b[..., None, None] * cross + c[..., None, None] * (cross @ cross)
    return transform(so3_exp(angular), (jacobian @ linear[..., None])[..., 0])


def se3_log(pose: Tensor) -> Tensor:
    """Give the twists (..., 6) of poses (..., 4, 4): translation part (metres), then rotation."""
    angular = so3_log(pose[..., :3, :3])
    a, b, _ = _coefficients(angular)
    t = (angular * angular).sum(-1)
    small = t < _SERIES_BELOW
    x = torch.where(small, t, 0)
    # Bernoulli numbers: 1 - (theta / 2) cot(theta / 2) = t / 12 + t^2 / 720 + ...
    series = 1 / 12 + x * (1 / 720 + x * (1 / 30240 + x * (
        1 / 1209600 + x * (1 / 47900160 + x * (691 / 1307674368000 + x / 74724249600)))))
    quotient = (1 - a / (2 * torch.where(small, 1, b))) / torch.where(small, 1, t)
    d = torch.where(small, series, quotient)
    cross = hat(angular)
    identity = torch.eye(3).to(cross)
    inverse_jacobian = identity - cross / 2 + d[..., None, None] * (cross @ cross)
    linear = (inverse_jacobian @ pose[..., :3, 3:])[..., 0]
    return torch.cat((linear, angular), dim=-1)


def transform(rotation: Tensor, translation: Tensor) -> Tensor:
    """Join rotations (..., 3, 3) and translations (..., 3), metres, to poses (..., 4, 4)."""
    # numpy's, as torch's imports half a second of modules when it is first called.
    batch = np.broadcast_shapes(rotation.shape[:-2], translation.shape[:-1])
    top = torch.cat((rotation.expand(*batch, 3, 3), translation.expand(*batch, 3)[..., None]), -1)
    bottom = top.new_tensor((0., 0., 0., 1.)).expand(*batch, 1, 4)
    return torch.cat((top, bottom), dim=-2)


def inverse(pose: Tensor) -> Tensor:
    """Invert poses (..., 4, 4) by transposing their rotation."""
    rotation = pose[..., :3, :3].transpose(-1, -2)
    return transform(rotation, -(rotation @ pose[..., :3, 3:])[..., 0])


def transform_points(pose: Tensor, points: Tensor) -> Tensor:
    """Move points (..., N, 3) by poses (..., 4, 4): from the source to the target frame."""
    return points @ pose[..., :3, :3].transpose(-1, -2) + pose[..., None, :3, 3]


def pose_distance(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Give the distance of the origins (...), metres, and the angle between rotations, radians."""
    metres = torch.linalg.vector_norm(first[..., :3, 3] - second[..., :3, 3], dim=-1)
    relative = first[..., :3, :3].transpose(-1, -2) @ second[..., :3, :3]
    return metres, torch.linalg.vector_norm(so3_log(relative), dim=-1)


def perturb(pose: Tensor, delta: Tensor) -> Tensor:
    """Move poses (..., 4, 4) by delta (..., 6), both halves in the axes of the target frame.

    This is the convention of a ROS pose covariance: position + delta[:3] (metres), then
    Exp(delta[3:]) @ rotation (radians).
    """
    rotation = so3_exp(delta[..., 3:]) @ pose[..., :3, :3]
    return transform(rotation, pose[..., :3, 3] + delta[..., :3])


def pose_difference(first: Tensor, second: Tensor) -> Tensor:
    """Give the delta (..., 6) with perturb(first, delta) = second."""
    relative = second[..., :3, :3] @ first[..., :3, :3].transpose(-1, -2)
    return torch.cat((second[..., :3, 3] - first[..., :3, 3], so3_log(relative)), dim=-1)


def interpolate(first: Tensor, second: Tensor, fraction: float | Tensor) -> Tensor:
    """Give poses between two: straight in position, at constant speed in rotation.

    fraction: number or (...); 0 gives `first`, 1 gives `second`.
    """
    fraction = torch.as_tensor(fraction).to(first)[..., None]
    turn = so3_log(first[..., :3, :3].transpose(-1, -2) @ second[..., :3, :3])
    rotation = first[..., :3, :3] @ so3_exp(fraction * turn)
    start, end = first[..., :3, 3], second[..., :3, 3]
    return transform(rotation, start + fraction * (end - start))


def nearest_rotation(matrix: Tensor) -> Tensor:
    """Give the proper rotations (..., 3, 3) nearest to matrices (..., 3, 3)."""
    u, _, vt = torch.linalg.svd(matrix)
    sign = torch.linalg.det(u @ vt)
    last = torch.stack((torch.ones_like(sign), torch.ones_like(sign), sign), dim=-1)
    return (u * last[..., None, :]) @ vt


def _coefficients(rotation_vector: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Give A, B, C of the module's docstring, each (...)."""
    t = (rotation_vector * rotation_vector).sum(-1)
    small = t < _SERIES_BELOW
    x = torch.where(small, t, 0)
    large = torch.where(small, 1, t)
    theta = large.sqrt()
    a = torch.where(small, _series(x, 1), theta.sin() / theta)
    # 2 sin^2(theta / 2) = 1 - cos(theta) without cancellation.
    b = torch.where(small, _series(x, 2), 2 * (theta / 2).sin() ** 2 / large)
    c = torch.where(small, _series(x, 3), (theta - theta.sin()) / (theta * large))
    return a, b, c


def _series(x: Tensor, first: int) -> Tensor:
    """Sum (-x)^k / (2 k + first)! by Horner's rule."""
    total = torch.zeros_like(x)
    for k in reversed(range(_SERIES_TERMS)):
        total = 1 / math.factorial(2 * k + first) - x * total
    return total


def _quaternion(rotation: Tensor) -> Tensor:
    """Give the quaternions (..., 4), real part first and not negative, of rotations."""
    m = [[rotation[..., i, j] for j in range(3)] for i in range(3)]
    trace = m[0][0] + m[1][1] + m[2][2]
    # Row i of 4 q q^T is a multiple of q; the row with the largest diagonal is well conditioned.
    rows = (
        (1 + trace, m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]),
        (m[2][1] - m[1][2], 1 - trace + 2 * m[0][0], m[1][0] + m[0][1], m[0][2] + m[2][0]),
        (m[0][2] - m[2][0], m[1][0] + m[0][1], 1 - trace + 2 * m[1][1], m[2][1] + m[1][2]),
        (m[1][0] - m[0][1], m[0][2] + m[2][0], m[2][1] + m[1][2], 1 - trace + 2 * m[2][2]),
    )
    outer = torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)
    diagonal = outer.diagonal(dim1=-2, dim2=-1)
    largest = diagonal.argmax(-1, keepdim=True)
    row = outer.gather(-2, largest[..., None].expand(*largest.shape, 4))[..., 0, :]
    quaternion = row / (2 * diagonal.gather(-1, largest).sqrt())
    return torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
