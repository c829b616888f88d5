"""Cameras: projection of points to pixels, and rays of pixels, with lens distortion.

Axes: x right, y down, z forward. Pixel (0, 0) is the CENTRE of the top-left pixel, so the picture
spans -0.5 to width - 0.5. Readers of formats that count from the pixel's corner subtract 0.5.
Letters: a = x / z, b = y / z, s = a^2 + b^2, theta = angle to the optical axis.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
import math
from typing import Any

from nerfmatch_ros.errors import DataError
import numpy as np
import torch
from torch import Tensor

DISTORTION_LENGTHS = {'PINHOLE': 0, 'OPENCV': 4, 'OPENCV_FISHEYE': 4, 'RATIONAL': 8}
_NEWTON_STEPS = 50  # an upper bound; 3 to 6 suffice for real lenses
_SMALLEST_DEPTH = 1e-6  # points in the camera's plane project far away, not to infinity or NaN
_LARGEST_RADIUS = 1e3  # in the plane z = 1, 89.9 degrees: farther out no polynomial means anything


@dataclass(frozen=True)
class Camera:
    """Intrinsic parameters of one camera."""

    model: str  # 'PINHOLE', 'OPENCV', 'OPENCV_FISHEYE' (Kannala-Brandt) or 'RATIONAL'
    width: int  # pixels
    height: int  # pixels
    fx: float  # pixels
    fy: float  # pixels
    cx: float  # pixels, 0 = centre of the first column
    cy: float  # pixels, 0 = centre of the first row
    distortion: tuple[float, ...] = ()  # OPENCV k1 k2 p1 p2; FISHEYE k1..k4; RATIONAL .. k3..k6

    def __post_init__(self):
        """Turn values into plain numbers and refuse what cannot be a camera."""
        if self.model not in DISTORTION_LENGTHS:
            raise DataError(f"camera model '{self.model}' is unknown; "
                            f'use one of {", ".join(DISTORTION_LENGTHS)}')
        for name in ('width', 'height'):
            value = _number(name, getattr(self, name))
            if value != int(value) or value < 1:
                raise DataError(f'camera {name} is {value:g}; it must be a whole positive number')
            object.__setattr__(self, name, int(value))
        for name in ('fx', 'fy', 'cx', 'cy'):
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        for name in ('fx', 'fy'):
            if getattr(self, name) <= 0:
                raise DataError(f'camera {name} is {getattr(self, name):g}; '
                                'a focal length is positive, in pixels')
        coefficients = tuple(_number('distortion', value) for value in self.distortion)
        if len(coefficients) != DISTORTION_LENGTHS[self.model]:
            raise DataError(
                f'camera model {self.model} has {DISTORTION_LENGTHS[self.model]} distortion '
                f'coefficients, but {len(coefficients)} are given: {list(coefficients)}')
        object.__setattr__(self, 'distortion', coefficients)

    @cached_property
    def is_pinhole(self) -> bool:
        """Tell whether straight lines stay straight: no distortion, or all coefficients zero."""
        return self.model == 'PINHOLE' or (
            self.model != 'OPENCV_FISHEYE' and not any(self.distortion))

    def project(self, points: Tensor) -> Tensor:
        """Project points (..., 3), camera frame, to pixels (..., 2); the caller tests z > 0."""
        if self.model == 'OPENCV_FISHEYE':
            ratio = self._fisheye(points)[0]
            distorted = ratio[..., None] * points[..., :2]
        else:
            distorted = points[..., :2] / _safe_depth(points)[..., None]
            if not self.is_pinhole:
                distorted = self._distort(distorted)
        return distorted * self._focal(points) + self._centre(points)

    def project_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Project points (..., 3) to pixels (..., 2), with d pixel / d point (..., 2, 3)."""
        if self.model == 'OPENCV_FISHEYE':
            distorted, jacobian = self._fisheye_with_jacobian(points)
        else:
            z = _safe_depth(points)
            plane = points[..., :2] / z[..., None]
            zero = torch.zeros_like(z)
            a, b = plane.unbind(-1)
            jacobian = torch.stack((
                torch.stack((1 / z, zero, -a / z), dim=-1),
                torch.stack((zero, 1 / z, -b / z), dim=-1)), dim=-2)
            distorted = plane
            if not self.is_pinhole:
                distorted, inner = self._distort_with_jacobian(plane)
                jacobian = inner @ jacobian
        focal = self._focal(points)
        return distorted * focal + self._centre(points), jacobian * focal[:, None]

    def rays(self, pixels: Tensor) -> Tensor:
        """Give the unit directions (..., 3), camera frame, in which pixels (..., 2) look."""
        distorted = (pixels - self._centre(pixels)) / self._focal(pixels)
        if self.model == 'OPENCV_FISHEYE':
            return self._fisheye_rays(distorted)
        plane = distorted if self.is_pinhole else self._undistort(distorted)
        directions = torch.cat((plane, torch.ones_like(plane[..., :1])), dim=-1)
        return directions / torch.linalg.vector_norm(directions, dim=-1, keepdim=True)

    def pixel_angles(self, pixels: Tensor) -> Tensor:
        """Give the angle (..., ) in radians between each pixel (..., 2) and the one below it.

        The last row has no pixel below and takes the angle of the row above.
        """
        u, v = pixels.unbind(-1)
        upper = torch.stack((u, v.clamp(max=self.height - 2)), dim=-1)
        lower = upper + upper.new_tensor((0, 1))
        return torch.linalg.vector_norm(self.rays(lower) - self.rays(upper), dim=-1)

    def sees(self, points: Tensor) -> Tensor:
        """Tell which points (..., 3), camera frame, fall into the picture -> (...) bool.

        Beyond the angle where a lens polynomial turns back, it maps far points into the picture
        again; such ghosts are not seen.
        """
        pixels = self.project(points)
        u, v = pixels.unbind(-1)
        inside = (u >= -0.5) & (u < self.width - 0.5) & (v >= -0.5) & (v < self.height - 0.5)
        radius = torch.linalg.vector_norm(points[..., :2], dim=-1)
        if self.model == 'OPENCV_FISHEYE':
            return inside & (torch.atan2(radius, points[..., 2]) <= self._limit)
        return inside & (points[..., 2] > 0) & (radius <= self._limit * points[..., 2])

    def pixel_grid(
        self, stride: int = 1, *, dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> Tensor:
        """Give the centres (rows * columns, 2) of the stride x stride cells, row by row."""
        offset = (stride - 1) / 2
        u = torch.arange(self.width // stride, dtype=dtype, device=device) * stride + offset
        v = torch.arange(self.height // stride, dtype=dtype, device=device) * stride + offset
        rows, columns = torch.meshgrid(v, u, indexing='ij')
        return torch.stack((columns, rows), dim=-1).reshape(-1, 2)

    def scaled_to(self, width: int, height: int) -> 'Camera':
        """Give the camera of the same picture resized to width x height pixels."""
        across, down = width / self.width, height / self.height
        return Camera(
            self.model, width, height, self.fx * across, self.fy * down,
            (self.cx + 0.5) * across - 0.5, (self.cy + 0.5) * down - 0.5, self.distortion)

    def matrix(self) -> np.ndarray:
        """Give the matrix K (3, 3) of the pinhole part."""
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for a YAML file."""
        return {'model': self.model, 'width': self.width, 'height': self.height, 'fx': self.fx,
                'fy': self.fy, 'cx': self.cx, 'cy': self.cy, 'distortion': list(self.distortion)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> 'Camera':
        """Make a camera of what `to_dict` gives; missing and unknown keys are errors."""
        keys = set(Camera.__dataclass_fields__)
        if not isinstance(values, dict):
            raise DataError(f'a camera is a mapping of {sorted(keys)}, not {values!r}')
        if unknown := set(values) - keys:
            raise DataError(f'camera has unknown keys {sorted(unknown)}; known: {sorted(keys)}')
        if missing := keys - {'distortion'} - set(values):
            raise DataError(f'camera lacks {sorted(missing)}')
        return Camera(**{**values, 'distortion': tuple(values.get('distortion') or ())})

    def _focal(self, like: Tensor) -> Tensor:
        return like.new_tensor((self.fx, self.fy))

    def _centre(self, like: Tensor) -> Tensor:
        return like.new_tensor((self.cx, self.cy))

    @cached_property
    def _radial(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Numerator and denominator of the radial factor, powers of s from 0 to 3."""
        k = self.distortion
        if self.model == 'RATIONAL':
            return (1.0, k[0], k[1], k[4]), (1.0, k[5], k[6], k[7])
        return (1.0, *k[:2], 0.0), (1.0, 0.0, 0.0, 0.0)

    @cached_property
    def _limit(self) -> float:
        """Radius in the plane z = 1 (fisheye: angle) up to which the distortion is one to one."""
        if self.is_pinhole:
            return math.inf
        polynomial = np.polynomial.Polynomial
        if self.model == 'OPENCV_FISHEYE':
            factors = [c * (2 * i + 1) for i, c in enumerate((1.0, *self.distortion))]
            return min(math.sqrt(_smallest_positive_root(polynomial(factors))), math.pi)
        top, bottom = (polynomial(c) for c in self._radial)
        # d/dr (r top / bottom) = 0, a polynomial of s = r^2
        slope = top * bottom + polynomial((0, 2)) * (top.deriv() * bottom - top * bottom.deriv())
        return math.sqrt(min(_smallest_positive_root(slope), _smallest_positive_root(bottom)))

    def _distort(self, plane: Tensor) -> Tensor:
        """Move points (..., 2) of the plane z = 1 as the lens does."""
        a, b = plane.clamp(-_LARGEST_RADIUS, _LARGEST_RADIUS).unbind(-1)
        s = a * a + b * b
        top, bottom = (_polynomial(c, s) for c in self._radial)
        radial = top / bottom
        p1, p2 = self.distortion[2:4]
        return torch.stack((
            a * radial + 2 * p1 * a * b + p2 * (s + 2 * a * a),
            b * radial + p1 * (s + 2 * b * b) + 2 * p2 * a * b), dim=-1)

    def _distort_with_jacobian(self, plane: Tensor) -> tuple[Tensor, Tensor]:
        """Distort (..., 2) as `_distort`, with the derivative (..., 2, 2)."""
        a, b = plane.clamp(-_LARGEST_RADIUS, _LARGEST_RADIUS).unbind(-1)
        s = a * a + b * b
        top, bottom = (_polynomial(c, s) for c in self._radial)
        top_slope, bottom_slope = (_polynomial(_derivative(c), s) for c in self._radial)
        radial = top / bottom
        slope = (top_slope - radial * bottom_slope) / bottom
        p1, p2 = self.distortion[2:4]
        distorted = torch.stack((
            a * radial + 2 * p1 * a * b + p2 * (s + 2 * a * a),
            b * radial + p1 * (s + 2 * b * b) + 2 * p2 * a * b), dim=-1)
        mixed = 2 * a * b * slope + 2 * p1 * a + 2 * p2 * b
        jacobian = torch.stack((
            torch.stack((radial + 2 * a * a * slope + 2 * p1 * b + 6 * p2 * a, mixed), dim=-1),
            torch.stack((mixed, radial + 2 * b * b * slope + 6 * p1 * b + 2 * p2 * a), dim=-1),
        ), dim=-2)
        return distorted, jacobian

    def _undistort(self, distorted: Tensor) -> Tensor:
        """Solve `_distort(plane) = distorted` for plane (..., 2) by Newton's method."""
        target = distorted.detach()
        with torch.no_grad():
            # Without the tangential part the problem has one unknown and a sure solution.
            radius = torch.linalg.vector_norm(target, dim=-1, keepdim=True)
            limit = min(0.999 * self._limit, _LARGEST_RADIUS)
            start = _invert_increasing(self._radial_curve, radius, limit)
            plane = target * (start / radius.clamp(min=torch.finfo(target.dtype).tiny))
            tolerance = 8 * torch.finfo(target.dtype).eps
            for _ in range(_NEWTON_STEPS):
                value, jacobian = self._distort_with_jacobian(plane)
                step = _solve_2x2(jacobian, target - value)
                plane = self._within_limit(plane + step)
                if not step.numel() or step.abs().max() < tolerance:
                    break
            value, jacobian = self._distort_with_jacobian(plane)
        # One more step carries the gradient: d plane = J^-1 d distorted. It is 0 in value, except
        # for a pixel that no ray reaches, which keeps the nearest direction there is.
        missing = distorted - target
        return plane + _solve_2x2(jacobian, missing)

    def _radial_curve(self, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Give the distorted radius of a radius in the plane z = 1, and its derivative."""
        s = radius * radius
        top, bottom = (_polynomial(c, s) for c in self._radial)
        top_slope, bottom_slope = (_polynomial(_derivative(c), s) for c in self._radial)
        radial = top / bottom
        return radius * radial, radial + 2 * s * (top_slope - radial * bottom_slope) / bottom

    def _within_limit(self, plane: Tensor) -> Tensor:
        """Pull points (..., 2) back to where the distortion is one to one."""
        if self._limit == math.inf:
            return plane
        radius = torch.linalg.vector_norm(plane, dim=-1, keepdim=True)
        return plane * (0.999 * self._limit / radius.clamp(min=1e-12)).clamp(max=1)

    def _fisheye(self, points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Give distorted angle / radius, distorted angle / angle, and angle, each (...)."""
        squared = (points[..., :2] ** 2).sum(-1)
        z = _safe_depth(points)
        small = squared < 1e-8 * z * z
        radius = torch.where(small, 1, squared).sqrt()
        angle = torch.atan2(radius, points[..., 2])
        near_axis = (1 - torch.where(small, squared, 0) / (3 * z * z)) / z
        angle_by_radius = torch.where(small, near_axis, angle / radius)
        theta2 = torch.where(small, torch.where(small, squared, 0) / (z * z), angle * angle)
        factor = _polynomial((1.0, *self.distortion), theta2)
        return angle_by_radius * factor, factor, theta2

    def _fisheye_curve(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Give the distorted radius of an angle, and its derivative."""
        coefficients = (1.0, *self.distortion)
        theta2 = theta * theta
        factor = _polynomial(coefficients, theta2)
        return theta * factor, factor + 2 * theta2 * _polynomial(_derivative(coefficients), theta2)

    def _fisheye_with_jacobian(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distort points (..., 3) to the fisheye's plane (..., 2), with the derivative."""
        ratio, factor, theta2 = self._fisheye(points)
        (x, y), z = points[..., :2].unbind(-1), _safe_depth(points)
        squared = x * x + y * y
        slope = factor + 2 * theta2 * _polynomial(
            _derivative((1.0, *self.distortion)), theta2)
        norm2 = squared + z * z
        # (d ratio / d radius) radius, along the radial direction (i, j)
        along = slope * z / norm2 - ratio
        radius = torch.where(squared == 0, 1, squared).sqrt()
        i, j = x / radius, y / radius
        mixed = along * i * j
        jacobian = torch.stack((
            torch.stack((ratio + along * i * i, mixed, -x * slope / norm2), dim=-1),
            torch.stack((mixed, ratio + along * j * j, -y * slope / norm2), dim=-1)), dim=-2)
        return ratio[..., None] * points[..., :2], jacobian

    def _fisheye_rays(self, distorted: Tensor) -> Tensor:
        """Give the unit directions (..., 3) of distorted points (..., 2)."""
        squared = (distorted * distorted).sum(-1)
        small = squared < 1e-8
        radius = torch.where(small, 1, squared).sqrt()
        target = radius.detach()
        with torch.no_grad():
            theta = _invert_increasing(self._fisheye_curve, target, 0.999 * self._limit)
            slope = self._fisheye_curve(theta)[1]
        theta = theta + (radius - target) / slope
        # Near the axis theta = r - k1 r^3, so sin(theta) / r = 1 - (k1 + 1/6) r^2.
        x = torch.where(small, squared, 0)
        k1 = self.distortion[0]
        sideways = torch.where(small, 1 - (k1 + 1 / 6) * x, theta.sin() / radius)
        forward = torch.where(small, 1 - x / 2, theta.cos())
        return torch.cat((sideways[..., None] * distorted, forward[..., None]), dim=-1)


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise DataError(f'camera {name} is {value!r}; it must be a number') from None
    if not math.isfinite(number):
        raise DataError(f'camera {name} is {number}; it must be finite')
    return number


def _safe_depth(points: Tensor) -> Tensor:
    z = points[..., 2]
    return torch.where(z.abs() < _SMALLEST_DEPTH, _SMALLEST_DEPTH, z)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Evaluate the polynomial with coefficients of rising power at x."""
    total = torch.full_like(x, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        total = total * x + coefficient
    return total


def _derivative(coefficients: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(i * c for i, c in enumerate(coefficients))[1:]


def _invert_increasing(
    curve: Callable[[Tensor], tuple[Tensor, Tensor]], target: Tensor, upper: float,
) -> Tensor:
    """Solve value = target for x in [0, upper], where (value, slope) = curve(x) increases."""
    low, high = torch.zeros_like(target), torch.full_like(target, upper)
    x = target.clamp(max=upper)
    tolerance = 8 * torch.finfo(target.dtype).eps
    for _ in range(_NEWTON_STEPS):
        value, slope = curve(x)
        low = torch.where(value <= target, x, low)
        high = torch.where(value >= target, x, high)
        newton = x + (target - value) / slope
        # Newton's step where it stays inside the bracket, else halve the bracket.
        inside = (newton >= low) & (newton <= high)
        after = torch.where(inside, newton, (low + high) / 2)
        done = not x.numel() or (after - x).abs().max() < tolerance
        x = after
        if done:
            break
    return x


def _smallest_positive_root(polynomial: np.polynomial.Polynomial) -> float:
    roots = polynomial.trim(tol=1e-12).roots()  # a vanishing leading term would spoil the others
    real = roots.real[(np.abs(roots.imag) < 1e-9) & (roots.real > 0)]
    return float(real.min()) if len(real) else math.inf


def _solve_2x2(matrix: Tensor, right: Tensor) -> Tensor:
    """Solve matrix (..., 2, 2) @ x = right (..., 2)."""
    a, b, c, d = matrix.flatten(-2).unbind(-1)
    p, q = right.unbind(-1)
    determinant = a * d - b * c
    return torch.stack((d * p - b * q, a * q - c * p), dim=-1) / determinant[..., None]
