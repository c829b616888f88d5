"""Photometric alignment: the pose from which coloured points of the map explain a picture.

Levenberg-Marquardt over SE(3) on the robust difference between the colours of points and the
picture where they project to; gain and bias of every channel are solved inside. Letters: R, p =
rotation and position of map_from_camera; x = R^T (X - p), point X in the camera; q, c = colours
of picture and point; r = q - gain c - bias; e^2 = sum of r^2 over the channels; s = loss scale;
w = (s^2 / (s^2 + e^2))^2, the influence that the Geman-McClure loss s^2 e^2 / (s^2 + e^2) leaves;
J = dr / d(position, rotation) as of geometry/pose.py `perturb`; B poses, N points, L levels.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import nearest_rotation, perturb, pose_distance
from nerfmatch_ros.localization.absolute_pose import MAX_CONDITION
from nerfmatch_ros.localization.alignment import Alignment
from nerfmatch_ros.localization.picture_texture import blurred, Texture, texture_of
import numpy as np
import torch
from torch import Tensor

_NEAREST = 1e-3  # metres before the camera; nearer points are not seen
_GAIN_LIMITS = (0.25, 4.0)  # two stops of exposure either way
_GAIN_RIDGE = 1e-4  # variance of colour below which the gain stays near 1
_REWEIGHTINGS = 3  # of gain and bias at a pose
_NOISE_FLOOR = 0.005  # colour; no difference is trusted to be smaller than this
_FIRST_DAMPING, _LARGEST_DAMPING = 1e-3, 1e4
_RESTS = 1e-4  # relative fall of the cost with which a level ends
_SMALL_STEP = 0.1  # standard deviations of the pose; less is no step worth taking


@dataclass(frozen=True)
class PhotometricConfig:
    """How a pose is aligned with a picture and when the result is believed."""

    rays: int = 5000  # points that are compared, at most
    stride: int = 0  # 0: rays of single pixels; n: render every n-th pixel, compare the steepest
    levels: tuple[float, ...] = (2.0, 0.7)  # blur of the picture, working pixels, coarse to fine
    renders: int = 3  # most renderings, each from the pose aligned before
    iterations: int = 12  # most steps at a level
    loss_scale: float = 2.0  # s in medians of e
    least_loss_scale: float = 0.15  # smallest s, colour in [0, 1]
    min_opacity: float = 0.7  # of a ray that gives a point
    min_points: int = 200
    min_overlap: float = 0.5  # share of the points that end inside the picture
    min_correlation: float = 0.2  # of picture and points in the end

    def __post_init__(self):
        """Refuse values that no alignment can work with."""
        for name, least in (('rays', 1), ('stride', 0), ('renders', 1), ('iterations', 1),
                            ('min_points', 6)):
            if getattr(self, name) < least:
                raise ConfigError(f'{name} is {getattr(self, name)}; it must be at least {least}')
        for name in ('loss_scale', 'least_loss_scale'):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f'{name} is {getattr(self, name):g}; it must be positive')
        for name in ('min_opacity', 'min_overlap', 'min_correlation'):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f'{name} is {getattr(self, name):g}; '
                                  'it must lie between 0 and 1')
        if not self.levels or not all(0 <= sigma < math.inf for sigma in self.levels):
            raise ConfigError(f'levels are {self.levels}; give at least one blur of 0 pixels or '
                              'more, coarse to fine')


@dataclass(frozen=True)
class _Level:
    """What is compared at one level of blur."""

    points: Tensor  # (N, 3) float64, map, metres
    colours: Tensor  # (N, 3) float64
    slopes: Tensor | None  # (N, 2, 3) float64, of the colours along u and v
    texture: Texture
    camera: Camera


@dataclass(frozen=True)
class _Compared:
    """Points and picture at B poses; what is outside of the picture counts 0."""

    in_camera: Tensor  # (B, N, 3) x, metres
    inside: Tensor  # (B, N) bool
    seen: Tensor  # (B, N, 3) q
    slopes: Tensor  # (B, N, 2, 3) of the picture along u and v
    residual: Tensor  # (B, N, 3) r
    squared: Tensor  # (B, N) e^2
    weight: Tensor  # (B, N) w
    scale: Tensor  # (B,) s
    gain: Tensor  # (B, 3)

    @property
    def loss(self) -> Tensor:
        """Give the Geman-McClure loss (B, N)."""
        return self.squared * self.weight.sqrt()

    @property
    def median_error(self) -> Tensor:
        """Median (B,) of e / sqrt(3), what a channel differs by; nan with no point inside."""
        return _median(self.squared.sqrt(), self.inside) / math.sqrt(3)


@torch.no_grad()
def align(
    points: Tensor, colours: Tensor, picture: Tensor, camera: Camera,
    map_from_camera: np.ndarray | Tensor, config: PhotometricConfig | None = None, *,
    slopes: Tensor | None = None,
) -> Alignment | list[Alignment]:
    """Align poses with a picture; one result for a pose (4, 4), a list for (B, 4, 4).

    points: (N, 3) map frame, metres; picture: (3, h, w) in [0, 1] of `camera`, a pinhole
    colours: (N, 3) in [0, 1], or (L, N, 3) where they are blurred for every level of the config
    slopes: (L, N, 2, 3) of the colours along u and v, per pixel; the steps then follow the mean of
    the slopes of picture and points, which converges faster where both are as sharp
    """
    config = config or PhotometricConfig()
    if not camera.is_pinhole or tuple(picture.shape) != (3, camera.height, camera.width):
        raise DataError(f'a picture {tuple(picture.shape)} of a {camera.model} camera of '
                        f'{camera.width} x {camera.height} cannot be aligned; give the '
                        'undistorted working picture (3, height, width) and its pinhole camera')
    given = torch.as_tensor(map_from_camera).to(picture.device, torch.float64)
    start = poses = given.reshape(-1, 4, 4)
    if len(points) < config.min_points:
        results = [Alignment(None, f'{len(points)} points have a colour; {config.min_points} are '
                             'needed', points=len(points))] * len(start)
        return results if given.ndim == 3 else results[0]
    points, colours = points.to(start), colours.to(start)
    colours = colours.expand(len(config.levels), *colours.shape[-2:])
    steps = torch.zeros(len(start), dtype=torch.long, device=start.device)
    for k, sigma in enumerate(config.levels):
        level = _Level(points, colours[k], None if slopes is None else slopes[k].to(start),
                       texture_of(blurred(picture, sigma)), camera)
        poses, taken = _descend(level, poses, config)
        steps = steps + taken
    results = _conclude(level, start, poses, steps, config)
    return results if given.ndim == 3 else results[0]


def _descend(
    level: _Level, poses: Tensor, config: PhotometricConfig,
) -> tuple[Tensor, Tensor]:
    """Minimise the loss of one level from poses (B, 4, 4); give the poses and steps tried (B,)."""
    compared = _compare(level, poses, config)
    scale, noise = compared.scale, _noise(compared)
    charge = _charge(compared)
    cost = _cost(compared, charge)
    normal, gradient = _normal_equations(level, compared, poses)
    damping = torch.full_like(cost, _FIRST_DAMPING)
    active = torch.ones_like(cost, dtype=torch.bool)
    steps = torch.zeros_like(cost, dtype=torch.long)
    for _ in range(config.iterations):
        delta = _damped_step(normal, gradient, damping)
        candidate = perturb(poses, delta)
        compared = _compare(level, candidate, config, scale)
        new_cost = _cost(compared, charge)
        better = active & (new_cost < cost)
        steps = steps + active
        length = (delta * (normal @ delta[..., None])[..., 0]).sum(-1)
        at_rest = (length < _SMALL_STEP ** 2 * noise) | (
            better & (cost - new_cost < _RESTS * cost))
        new_normal, new_gradient = _normal_equations(level, compared, candidate)
        poses = torch.where(better[:, None, None], candidate, poses)
        normal = torch.where(better[:, None, None], new_normal, normal)
        gradient = torch.where(better[:, None], new_gradient, gradient)
        cost = torch.where(better, new_cost, cost)
        damping = torch.where(better, damping / 4, damping * 8)
        active = active & ~at_rest & (damping < _LARGEST_DAMPING)
        if not active.any():
            break
    return poses, steps


def _compare(
    level: _Level, poses: Tensor, config: PhotometricConfig, scale: Tensor | None = None,
) -> _Compared:
    """Look the points up in the picture from poses (B, 4, 4), fit gain and bias robustly.

    scale: (B,) s; None takes it from the median of e.
    """
    in_camera = (level.points - poses[:, None, :3, 3]) @ poses[:, :3, :3]
    pixels = level.camera.project(in_camera)
    inside = level.texture.holds(pixels) & (in_camera[..., 2] > _NEAREST)
    seen, slopes = level.texture.at(torch.where(inside[..., None], pixels, 2.0))
    weight, used = inside.double(), scale
    for _ in range(_REWEIGHTINGS):
        variance, covariance, _, centred, centred_seen = _moments(level.colours, seen, weight)
        gain = ((covariance + _GAIN_RIDGE) / (variance + _GAIN_RIDGE)).clamp(*_GAIN_LIMITS)
        residual = (centred_seen - gain[:, None] * centred) * inside[..., None]
        squared = (residual ** 2).sum(-1)
        if scale is None:
            used = config.loss_scale * _median(squared.sqrt(), inside)
            used = used.nan_to_num(nan=0.0).clamp(min=config.least_loss_scale)
        bound = used[:, None] ** 2
        weight = inside * (bound / (bound + squared)) ** 2
    return _Compared(in_camera, inside, seen, slopes, residual, squared, weight, used, gain)


def _moments(
    colours: Tensor, seen: Tensor, weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Give variance of c, covariance, variance of q (B, 3), and c and q less their means."""
    total = weight.sum(1).clamp(min=1e-9)[:, None]
    share = (weight / total)[..., None]
    centred = colours - (share * colours).sum(1, keepdim=True)
    centred_seen = seen - (share * seen).sum(1, keepdim=True)
    shared = share * centred
    return ((shared * centred).sum(1), (shared * centred_seen).sum(1),
            (share * centred_seen ** 2).sum(1), centred, centred_seen)


def _charge(compared: _Compared) -> Tensor:
    """What each point (B, N) costs while it is outside: its loss now, or the mean if outside now.

    So a step pays nothing for points that it moves out of the picture, and gains nothing.
    """
    loss = compared.loss
    mean = loss.sum(1) / compared.inside.sum(1).clamp(min=1)
    return torch.where(compared.inside, loss, mean[:, None])


def _cost(compared: _Compared, charge: Tensor) -> Tensor:
    return torch.where(compared.inside, compared.loss, charge).mean(1)


def _noise(compared: _Compared) -> Tensor:
    """Variance (B,) of a channel's r, of the points that the loss believes."""
    values = 3 * compared.weight.sum(1)
    squares = (compared.weight * compared.squared).sum(1)
    return (squares / (values - 12).clamp(min=1)).clamp(min=_NOISE_FLOOR ** 2)


def _normal_equations(
    level: _Level, compared: _Compared, poses: Tensor,
) -> tuple[Tensor, Tensor]:
    """Give H = sum w J^T J less what gain and bias take up, (B, 6, 6), and sum w J^T r (B, 6)."""
    slopes = compared.slopes
    if level.slopes is not None:
        slopes = (slopes + compared.gain[:, None, None] * level.slopes) / 2
    by_u, by_v = _pixel_jacobian(compared, level.camera)
    variance, _, _, centred, _ = _moments(level.colours, compared.seen, compared.weight)
    slope_u, slope_v = slopes.unbind(2)
    pull_u, pull_v = (compared.weight[..., None] * slope for slope in (slope_u, slope_v))
    uu, uv, vv = (product.sum(-1, keepdim=True) for product in (
        pull_u * slope_u, pull_u * slope_v, pull_v * slope_v))
    right_u = torch.cat((uu * by_u + uv * by_v, pull_u * centred, pull_u,
                         (pull_u * compared.residual).sum(-1, keepdim=True)), dim=-1)
    right_v = torch.cat((uv * by_u + vv * by_v, pull_v * centred, pull_v,
                         (pull_v * compared.residual).sum(-1, keepdim=True)), dim=-1)
    product = by_u.transpose(1, 2) @ right_u + by_v.transpose(1, 2) @ right_v
    normal, shared, gradient = product.split((6, 6, 1), dim=-1)
    # Schur complement: a change of colours that gain and bias explain says nothing of the pose.
    total = compared.weight.sum(1).clamp(min=1e-9)[:, None]
    stiffness = total * torch.cat((variance + _GAIN_RIDGE, torch.ones_like(variance)), dim=-1)
    normal = normal - shared / stiffness[:, None] @ shared.transpose(1, 2)
    turn = torch.zeros_like(normal)  # from the axes of the camera to those of the map
    turn[:, :3, :3] = turn[:, 3:, 3:] = poses[:, :3, :3]
    return turn @ normal @ turn.transpose(1, 2), (turn @ gradient)[..., 0]


def _pixel_jacobian(compared: _Compared, camera: Camera) -> tuple[Tensor, Tensor]:
    """Give du / d(position, rotation) and dv / d(..), (B, N, 6) each, along the camera's axes.

    x moves by -dp + hat(x) dw for a step (dp, dw) in the camera's axes.
    """
    x, y, z = torch.where(compared.inside[..., None], compared.in_camera, 1.0).unbind(-1)
    a, b, inverse = x / z, y / z, 1 / z
    zero = torch.zeros_like(z)
    by_u = camera.fx * torch.stack(
        (-inverse, zero, a * inverse, a * b, -1 - a * a, b), dim=-1)
    by_v = camera.fy * torch.stack(
        (zero, -inverse, b * inverse, 1 + b * b, -a * b, -a), dim=-1)
    return by_u, by_v


def _damped_step(normal: Tensor, gradient: Tensor, damping: Tensor) -> Tensor:
    """Solve (H + damping diag H) delta = -gradient, with all parameters scaled alike."""
    scale, scaled = _scaled(normal)
    ridge = torch.diag_embed((damping + 1e-12)[:, None].expand_as(scale))
    return -scale * torch.linalg.solve(scaled + ridge, scale * gradient)


def _scaled(normal: Tensor) -> tuple[Tensor, Tensor]:
    """Scale normal matrices (B, 6, 6) to a diagonal of 1; give the scales (B, 6) and these."""
    scale = normal.diagonal(dim1=1, dim2=2).clamp(min=1e-300).rsqrt()
    return scale, normal * scale[:, :, None] * scale[:, None]


def _median(values: Tensor, inside: Tensor) -> Tensor:
    """Median (B,) over the points inside; nan where there are none."""
    return torch.where(inside, values, math.nan).nanmedian(1).values


def _conclude(
    level: _Level, start: Tensor, poses: Tensor, steps: Tensor, config: PhotometricConfig,
) -> list[Alignment]:
    """Judge the poses (B, 4, 4) that the last level ended at."""
    before, after = _compare(level, start, config), _compare(level, poses, config)
    inside = after.inside.double()
    variance, covariance, variance_seen, _, _ = _moments(level.colours, after.seen, inside)
    correlation = (covariance / (variance * variance_seen + 1e-12).sqrt()).mean(-1)
    normal, _ = _normal_equations(level, after, poses)
    scale, scaled = _scaled(normal)
    values, vectors = torch.linalg.eigh(scaled)
    condition = torch.where(values[:, 0] > 0, values[:, -1] / values[:, 0], math.inf)
    spread = (vectors / values[:, None]) @ vectors.transpose(1, 2) \
        * scale[:, :, None] * scale[:, None] * _noise(after)[:, None, None]
    metres, radians = pose_distance(start, poses)
    numbers = [tensor.cpu() for tensor in (
        correlation, condition, inside.mean(1), inside.sum(1),
        before.median_error, after.median_error, metres, radians, steps)]
    gains, spread, poses = after.gain.cpu(), spread.cpu().numpy(), poses.cpu()
    results = []
    for k in range(len(start)):
        (correlated, conditioned, overlap, count, residual_before, residual_after, moved, turned,
         taken) = (tensor[k].item() for tensor in numbers)
        reason = _doubt(correlated, conditioned, overlap, int(count), config)
        pose = poses[k].numpy().copy()
        pose[:3, :3] = nearest_rotation(poses[k, :3, :3]).numpy()
        results.append(Alignment(
            map_from_camera=None if reason else pose, reason=reason,
            covariance=None if reason else (spread[k] + spread[k].T) / 2,
            residual_before=residual_before, residual_after=residual_after,
            correlation=correlated, overlap=overlap, gain=tuple(gains[k].tolist()),
            points=int(count), iterations=taken, moved=(moved, turned)))
    return results


def _doubt(
    correlation: float, condition: float, overlap: float, count: int, config: PhotometricConfig,
) -> str:
    """Tell why an alignment is not believed; '' where it is."""
    if count < config.min_points:
        return f'{count} points lie inside the picture; {config.min_points} are needed'
    if overlap < config.min_overlap:
        return (f'{100 * overlap:.0f} % of the points lie inside the picture; '
                f'{100 * config.min_overlap:g} % are needed')
    if not condition <= MAX_CONDITION:
        return (f'the colours of {count} points do not fix the pose (condition {condition:.1e}, '
                f'at most {MAX_CONDITION:.0e}); the picture is flat or striped')
    if not correlation >= config.min_correlation:
        return (f'colours of picture and map correlate by {correlation:.2f}; '
                f'{config.min_correlation:g} is needed')
    return ''
