"""Feature-metric refinement: slide the map's points over the image's fine features.

Levenberg-Marquardt over SE(3) on the robust difference between the unit features of points and of
the matcher's fine map where they project to; half its square is the cosine distance. Letters:
N points; Cf channels; f, g = unit features of point and image; e = g - f; s = loss scale;
w = (s^2 / (s^2 + e^2))^2, the influence that the Geman-McClure loss s^2 e^2 / (s^2 + e^2) leaves.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import hat, nearest_rotation, perturb, pose_distance
from nerfmatch_ros.localization.alignment import Alignment
from nerfmatch_ros.localization.normal_matrix import damped_step, inverse_normal
from nerfmatch_ros.localization.picture_texture import blurred, slopes_of
from nerfmatch_ros.matching.fine_matching import FINE_STRIDE
from nerfmatch_ros.matching.matcher import ImageTokens, NeRFMatcher, PointTokens
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_NEAREST = 1e-3  # metres before the camera; nearer points are not seen
_MARGIN = 1  # fine pixels at the border whose slope would look beyond it
_FIRST_DAMPING, _LARGEST_DAMPING = 1e-3, 1e4
_RESTS = 1e-4  # relative fall of the cost with which a level ends


@dataclass(frozen=True)
class FeatureConfig:
    """How a pose is aligned with fine features and when the result is believed."""

    levels: tuple[float, ...] = (1.0, 0.0)  # blur of the fine map, its pixels, coarse to fine
    iterations: int = 10  # most steps at a level
    loss_scale: float = 0.65  # s in medians of the length of e
    min_points: int = 100
    min_overlap: float = 0.5  # share of the points that end inside the image
    min_correlation: float = 0.2  # mean cosine of image and points in the end

    def __post_init__(self):
        """Refuse values that no alignment can work with."""
        for name, least in (('iterations', 1), ('min_points', 6)):
            if getattr(self, name) < least:
                raise ConfigError(f'{name} is {getattr(self, name)}; it must be at least {least}')
        if not 0 < self.loss_scale < math.inf:
            raise ConfigError(f'loss_scale is {self.loss_scale:g}; it must be positive')
        for name in ('min_overlap', 'min_correlation'):
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
    features: Tensor  # (N, Cf) float64 f
    table: Tensor  # (rows * columns, 3 Cf) g, its slope along u, its slope along v; fine pixels
    rows: int
    columns: int
    camera: Camera

    def look_up(self, fine_pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Interpolate at fine pixels (N, 2) inside: g (N, Cf), its slopes (N, Cf, 2) there."""
        corner = fine_pixels.floor()
        right, down = (fine_pixels - corner).to(self.table).unsqueeze(-1).unbind(1)
        index = (corner[:, 1] * self.columns + corner[:, 0]).long()
        values = [self.table[index + step]
                  for step in (0, 1, self.columns, self.columns + 1)]
        found = torch.lerp(torch.lerp(values[0], values[1], right),
                           torch.lerp(values[2], values[3], right), down)
        value, by_u, by_v = found.to(fine_pixels).chunk(3, dim=-1)
        return value, torch.stack((by_u, by_v), dim=-1)


@dataclass(frozen=True)
class _Compared:
    """Points and image at a pose; the rows of `squared`, `pull` are 0 for points outside."""

    inside: Tensor  # (N,) bool
    squared: Tensor  # (N,) e^2
    curvature: Tensor  # (N, 6, 6) J^T J of e
    pull: Tensor  # (N, 6) J^T e


@torch.no_grad()
def refine_by_features(
    matcher: NeRFMatcher, tokens: ImageTokens, points: Tensor, point_tokens: PointTokens,
    camera: Camera, map_from_camera: np.ndarray, config: FeatureConfig | None = None,
) -> Alignment:
    """Refine the pose (4, 4) of an image by its fine features; a failure has a reason.

    points: (N, 3) map frame, metres, seen from the pose; point_tokens: theirs
    camera: the pinhole camera of the working picture that `tokens` come from
    The residual is half the median length of e, in [0, 1]; the correlation is the mean of
    1 - e^2 / 2, the cosine of unit features.
    """
    config = config or FeatureConfig()
    if not matcher.config.fine:
        return Alignment(None, 'the matcher of the map has no fine stage; build the map with one, '
                         'or leave this step out')
    if len(points) < config.min_points:
        return Alignment(None, f'{len(points)} points are seen; {config.min_points} are needed',
                         points=len(points))
    start = pose = torch.tensor(np.asarray(map_from_camera), dtype=torch.float64).to(points.device)
    features = functional.normalize(point_tokens.fine.double(), dim=-1)
    steps = 0
    for sigma in config.levels:
        level = _level(tokens.fine[0].float(), sigma, points.double(), features, camera)
        pose, taken = _descend(level, pose, config)
        steps += taken
    return _conclude(level, start, pose, steps, config)


def _level(
    fine: Tensor, sigma: float, points: Tensor, features: Tensor, camera: Camera,
) -> _Level:
    """Blur a fine map (Cf, rows, columns) of unit features and lay it out with its slopes."""
    smooth = blurred(functional.normalize(fine, dim=0), sigma)
    smooth = functional.normalize(smooth, dim=0)
    table = torch.cat((smooth, slopes_of(smooth).transpose(0, 1).flatten(0, 1)))
    return _Level(points, features, table.flatten(1).T.contiguous(), *fine.shape[1:], camera)


def _compare(level: _Level, pose: Tensor) -> _Compared:
    """Look the points up in the image from a pose (4, 4) and differentiate e by the pose."""
    rotation, offset = pose[:3, :3], level.points - pose[:3, 3]
    in_camera = offset @ rotation
    pixels, by_point = level.camera.project_with_jacobian(in_camera)
    fine_pixels = (pixels - (FINE_STRIDE - 1) / 2) / FINE_STRIDE
    u, v = fine_pixels.unbind(-1)
    inside = ((in_camera[:, 2] > _NEAREST) & (u >= _MARGIN) & (v >= _MARGIN)
              & (u < level.columns - 1 - _MARGIN) & (v < level.rows - 1 - _MARGIN))
    value, slopes = level.look_up(torch.where(inside[:, None], fine_pixels, _MARGIN))
    inner = by_point @ rotation.T
    jacobian = torch.cat((-inner, inner @ hat(offset)), dim=-1) / FINE_STRIDE  # of fine pixels
    jacobian = torch.where(inside[:, None, None], jacobian, 0)
    error = (value - level.features) * inside[:, None]
    # The slopes' own products are 2 x 2; the channels never meet the 6 parameters.
    across = slopes.transpose(1, 2)
    curvature = jacobian.transpose(1, 2) @ (across @ slopes) @ jacobian
    pull = (jacobian.transpose(1, 2) @ (across @ error[..., None]))[..., 0]
    return _Compared(inside, (error ** 2).sum(-1), curvature, pull)


def _loss(compared: _Compared, bound: float, charge: Tensor | None = None) -> Tensor:
    """Geman-McClure loss (N,) of e^2 with s^2 = bound; points outside cost their charge (N,)."""
    loss = compared.squared * bound / (bound + compared.squared)
    return loss if charge is None else torch.where(compared.inside, loss, charge)


def _weight(compared: _Compared, bound: float) -> Tensor:
    """Give w (N,), 0 outside."""
    return compared.inside * (bound / (bound + compared.squared)) ** 2


def _bound(compared: _Compared, config: FeatureConfig) -> float:
    """Give s^2 for the points inside."""
    if not compared.inside.any():
        return 1.0
    return max(config.loss_scale ** 2 * compared.squared[compared.inside].median().item(), 1e-6)


def _normal_equations(compared: _Compared, bound: float) -> tuple[Tensor, Tensor]:
    """Give H (6, 6) and the gradient (6,) of half the loss."""
    weight = _weight(compared, bound)
    return ((weight[:, None, None] * compared.curvature).sum(0),
            (weight[:, None] * compared.pull).sum(0))


def _descend(level: _Level, pose: Tensor, config: FeatureConfig) -> tuple[Tensor, int]:
    """Minimise the loss of one level from a pose (4, 4); give the pose and the steps tried."""
    compared = _compare(level, pose)
    bound = _bound(compared, config)
    loss = _loss(compared, bound)
    # A step neither pays nor gains by moving points out of the image.
    mean = loss.sum() / compared.inside.sum().clamp(min=1)
    charge = torch.where(compared.inside, loss, mean)
    cost, damping, steps = charge.mean(), _FIRST_DAMPING, 0
    while steps < config.iterations and damping < _LARGEST_DAMPING:
        candidate = perturb(pose, damped_step(*_normal_equations(compared, bound), damping))
        there = _compare(level, candidate)
        new_cost = _loss(there, bound, charge).mean()
        steps += 1
        if not new_cost < cost:
            damping *= 8
            continue
        rests = cost - new_cost < _RESTS * cost
        pose, compared, cost, damping = candidate, there, new_cost, damping / 4
        if rests:
            break
    return pose, steps


def _conclude(
    level: _Level, start: Tensor, pose: Tensor, steps: int, config: FeatureConfig,
) -> Alignment:
    """Judge the pose (4, 4) that the last level ended at."""
    before, after = _compare(level, start), _compare(level, pose)
    bound = _bound(after, config)
    count, overlap = int(after.inside.sum()), after.inside.double().mean().item()
    correlation = 1 - after.squared.sum().item() / (2 * max(count, 1))
    inverse, condition = inverse_normal(_normal_equations(after, bound)[0])
    reason, covariance = '', None
    if count < config.min_points:
        reason = f'{count} points lie inside the image; {config.min_points} are needed'
    elif overlap < config.min_overlap:
        reason = (f'{100 * overlap:.0f} % of the points lie inside the image; '
                  f'{100 * config.min_overlap:g} % are needed')
    elif inverse is None:
        reason = (f'the features of {count} points do not fix the pose (condition '
                  f'{condition:.1e}); the image is flat or striped')
    elif not correlation >= config.min_correlation:
        reason = (f'features of image and map have a mean cosine of {correlation:.2f}; '
                  f'{config.min_correlation:g} is needed')
    else:
        weight = _weight(after, bound)
        values = (level.features.shape[1] - 1) * weight.sum()  # unit vectors have one less
        noise = (weight * after.squared).sum() / (values - 6).clamp(min=1)
        covariance = (noise * inverse).cpu().numpy()
    metres, radians = pose_distance(start, pose)
    result = pose.cpu().numpy().copy()
    result[:3, :3] = nearest_rotation(pose[:3, :3]).cpu().numpy()
    return Alignment(
        None if reason else result, reason, covariance, _median_error(before),
        _median_error(after), correlation, overlap, (), count, steps,
        (metres.item(), radians.item()))


def _median_error(compared: _Compared) -> float:
    """Half the median length of e, in [0, 1]; nan where no point is inside."""
    if not compared.inside.any():
        return math.nan
    return compared.squared[compared.inside].median().sqrt().item() / 2
