"""Camera pose from matches of pixels with points of the map, and how certain that pose is.

Letters: R, p = rotation and position of map_from_camera; x = R^T (X - p), point X in the camera;
r = pixel - projection; A = d projection / d x; J = A [-R^T, R^T hat(X - p)], the derivative of the
projection by a perturbation (position, then rotation, both along the map's axes: the convention
of a ROS pose covariance, see geometry/pose.py); S = covariance of r; w = weight; N = inliers.
"""

from dataclasses import dataclass
import math
from typing import TYPE_CHECKING

import cv2
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.geometry.pose import nearest_rotation
import numpy as np
import poselib
from scipy.special import betainc, gammaln
import torch

if TYPE_CHECKING:
    from nerfmatch_ros.localization.judge import Evidence

SIGMA_FLOOR = 0.5  # pixels; matches are never trusted to be better than this
MAX_CONDITION = 1e7  # of the scaled normal matrix; beyond it the points do not fix the pose
POSITION_FLOOR = 0.001  # metres, smallest standard deviation that is reported
ROTATION_FLOOR = math.radians(0.05)  # radians, the same for the rotation
_FALSE_ALARMS = 1e-2  # poses that chance may supply before a pose counts as found by chance
_RANSAC_EDGE = math.cos(math.radians(80))  # poselib takes points of the plane z = 1, no wider
_CAUCHY = 2.3849  # standard deviations; loses 5 % of the precision on normal noise
_RAYLEIGH_MEDIAN = math.sqrt(2 * math.log(2))  # median length of 2-D normal noise
_FEW_INLIERS = 30  # below, the scatter of residuals is taken as equal for all of them
_LEAST_ITERATIONS = 1000  # that RANSAC may make, because noise spoils samples of inliers, too
_MISSED = 1e-4  # chance that RANSAC never draws three inliers
_GUESS_LIMIT = 4.0  # times the largest reprojection error; what may agree with a guess
_GUESS_STEPS = 4  # of Gauss-Newton towards the inliers of a guess
_ROUNDS = 8  # of choosing the inliers and refining; 2 or 3 are usual
_SETTLED = 0.01  # of the inliers; if no more of them change, they are chosen
_STEPS = 20  # of Gauss-Newton in a round


@dataclass(frozen=True)
class AbsolutePoseOptions:
    """How a pose is searched and when it is believed."""

    max_reprojection_error: float = 4.0  # pixels, of an inlier
    min_inliers: int = 12  # fewer: no pose
    min_inlier_ratio: float = 0.0  # inliers / matches; less: no pose
    seed: int = 0  # of RANSAC; the same seed gives the same pose
    min_iterations: int = 100  # of RANSAC
    # Of RANSAC, at most; enough for 8 % inliers. No more than `min_inlier_ratio` needs are made.
    max_iterations: int = 20000
    robust: bool = True  # hold large residuals down (Cauchy) in the refinement
    covariance_scale: float = 1.0  # factor on the covariance, from calibration on known poses

    def __post_init__(self):
        """Refuse values that no search can work with."""
        for name in ('max_reprojection_error', 'covariance_scale'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f'{name} is {value:g}; it must be a positive number')
        if self.min_inliers < 4:
            raise ConfigError(f'min_inliers is {self.min_inliers}; a pose needs at least 4')
        if not 0 <= self.min_inlier_ratio <= 1:
            raise ConfigError(f'min_inlier_ratio is {self.min_inlier_ratio:g}; '
                              'it must lie between 0 and 1')
        if not 1 <= self.min_iterations <= self.max_iterations:
            raise ConfigError(f'min_iterations {self.min_iterations} and max_iterations '
                              f'{self.max_iterations} must be at least 1 and in this order')
        if self.seed < 0:
            raise ConfigError(f'seed is {self.seed}; it must not be negative')


@dataclass(frozen=True, eq=False)
class PoseEstimate:
    """The pose of a photograph in the map, or the reason why there is none."""

    map_from_camera: np.ndarray | None  # (4, 4) float64, metres; None: not localized
    reason: str  # why there is no pose; '' with a pose
    covariance: np.ndarray | None  # (6, 6) x, y, z, rx, ry, rz; metres, radians, map axes
    inliers: int
    matches: int
    reprojection_error: float  # pixels, rms over the inliers; nan without a pose
    inlier_mask: np.ndarray | None = None  # (M,) bool, of the matches; None if never determined
    pixels: np.ndarray | None = None  # (M, 2) of the matches, where the localizer keeps them
    points: np.ndarray | None = None  # (M, 3) of the matches, metres in the map
    evidence: 'Evidence | None' = None  # what speaks for the pose, where a localizer collects it
    probability: float = math.nan  # that the pose is correct; nan where the map has no judge
    # What the image was matched with, for who watches: 'splatted', 'surface', 'reference views',
    # 'rendered: REASON'; '' where that is not said.
    source: str = ''

    @property
    def position_std(self) -> float:
        """Give the standard deviation of the position along its least certain axis, metres."""
        if self.covariance is None:
            return math.nan
        return math.sqrt(max(np.linalg.eigvalsh(self.covariance[:3, :3])[-1], 0))


@dataclass(frozen=True, eq=False)
class _Matches:
    """M matches that can be used, and the camera that saw them."""

    pixels: np.ndarray  # (M, 2)
    points: np.ndarray  # (M, 3) metres
    rays: np.ndarray  # (M, 3) unit directions of the pixels, camera frame
    weights: np.ndarray  # (M,)
    point_covariances: np.ndarray | None  # (M, 3, 3) square metres, map axes
    camera: Camera

    def chosen(self, mask: np.ndarray) -> '_Matches':
        """Keep the matches of a mask (M,)."""
        spread = self.point_covariances
        return _Matches(self.pixels[mask], self.points[mask], self.rays[mask], self.weights[mask],
                        None if spread is None else spread[mask], self.camera)


@dataclass(frozen=True, eq=False)
class _Linearised:
    """The reprojection of N matches around a pose."""

    residual: np.ndarray  # (N, 2) pixels
    jacobian: np.ndarray  # (N, 2, 6) J
    spread: np.ndarray | None  # (N, 2, 2) pixels squared, from the points' uncertainty


def solve_absolute_pose(
    pixels: np.ndarray, points: np.ndarray, camera: Camera, *, weights: np.ndarray | None = None,
    point_covariances: np.ndarray | None = None, guess: np.ndarray | None = None,
    options: AbsolutePoseOptions | None = None,
) -> PoseEstimate:
    """Find the pose that most matches agree with; without one, the result says why.

    pixels: (M, 2) pixels of the camera, lens distortion and all
    points: (M, 3) map frame, metres
    weights: (M,) relative trust in the matches, None = all equal; 0 leaves a match out
    point_covariances: (M, 3, 3) uncertainty of the points, map axes, square metres
    guess: (4, 4) map_from_camera; a pose near it that more than half of the matches agree with
    needs no search
    """
    options = options or AbsolutePoseOptions()
    given, usable = _usable_matches(pixels, points, camera, weights, point_covariances)
    total, count = len(usable), int(usable.sum())

    def failure(reason: str, inliers: np.ndarray | None = None) -> PoseEstimate:
        mask = None if inliers is None else _scatter(usable, inliers)
        return PoseEstimate(None, reason, None, 0 if mask is None else int(mask.sum()), total,
                            math.nan, mask)

    if count < options.min_inliers:
        unusable = f', {total - count} of them not finite or without weight' * (count < total)
        return failure(f'{total} matches{unusable}; {options.min_inliers} inliers are needed')
    matches = given.chosen(usable)
    # Maps may lie far from their origin; numbers near zero keep their digits.
    origin = np.median(matches.points, axis=0)
    matches = _shifted(matches, -origin)
    near = None if guess is None else _near(matches, _moved(guess, -origin), options)
    if near is None:
        pose = _ransac(matches, options)
        if pose is None:
            return failure(f'no pose fits any of the {count} matches; their points may all lie on '
                           'a line, in one place or behind the camera')
        near = _refine(matches, pose, options)
    pose, inliers = near
    found = int(inliers.sum())
    if found < options.min_inliers:
        return failure(f'{found} inliers of {total} matches within '
                       f'{options.max_reprojection_error:g} px; {options.min_inliers} are needed',
                       inliers)
    if found < options.min_inlier_ratio * total:
        return failure(f'{found} inliers of {total} matches are {100 * found / total:.1f} %; '
                       f'{100 * options.min_inlier_ratio:.1f} % are needed', inliers)
    chance = _chance(matches, options.max_reprojection_error)
    if log10_false_alarms(count, found, chance) > math.log10(_FALSE_ALARMS):
        return failure(f'{found} inliers of {total} matches within '
                       f'{options.max_reprojection_error:g} px may be chance: wrong matches '
                       f'would give some pose as many', inliers)
    at_pose = _linearise(matches.chosen(inliers), pose)
    weight = matches.weights[inliers] / matches.weights[inliers].mean()
    covariance, condition = _covariance(at_pose, weight, robust=options.robust)
    if covariance is None or not np.isfinite(pose).all():
        return failure(f'the points of the {found} inliers do not fix the pose (condition '
                       f'{condition:.1e}, at most {MAX_CONDITION:.0e}); they lie on a line, '
                       'close together or far away', inliers)
    pose[:3, :3] = nearest_rotation(torch.from_numpy(pose[:3, :3])).numpy()
    return PoseEstimate(
        map_from_camera=_moved(pose, origin), reason='',
        covariance=options.covariance_scale * floored(covariance), inliers=found, matches=total,
        reprojection_error=float(np.sqrt((at_pose.residual ** 2).sum(-1).mean())),
        inlier_mask=_scatter(usable, inliers))


def pose_covariance(
    pixels: np.ndarray, points: np.ndarray, camera: Camera, map_from_camera: np.ndarray, *,
    weights: np.ndarray | None = None, point_covariances: np.ndarray | None = None,
    robust: bool = False,
) -> tuple[np.ndarray | None, float]:
    """Give the covariance (6, 6) of a pose solved from N inliers, and the condition number.

    Axes are the map's, order x, y, z, rx, ry, rz; metres and radians. No covariance where the
    points do not fix the pose (condition above `MAX_CONDITION`).

    pixels: (N, 2); points: (N, 3) map frame, metres; weights: (N,) of mean 1
    point_covariances: (N, 3, 3) square metres, map axes
    robust: the pose minimises a Cauchy loss instead of the sum of squares
    """
    matches, usable = _usable_matches(pixels, points, camera, weights, point_covariances)
    if not usable.all():
        raise DataError(f'{int((~usable).sum())} of {len(usable)} inliers are not finite or have '
                        'no weight; give inliers only')
    return _covariance(_linearise(matches, np.asarray(map_from_camera, np.float64)),
                       matches.weights, robust=robust)


def floored(covariance: np.ndarray) -> np.ndarray:
    """Raise a covariance (6, 6) to at least the floors of position and rotation in all axes."""
    floor = np.repeat([POSITION_FLOOR, ROTATION_FLOOR], 3)
    # In units of the floors metres and radians compare, and all eigenvalues must reach 1.
    values, vectors = np.linalg.eigh(covariance / np.outer(floor, floor))
    raised = (vectors * np.maximum(values, 1)) @ vectors.T * np.outer(floor, floor)
    return (raised + raised.T) / 2


def log10_false_alarms(matches: int, inliers: int, chance: float) -> float:
    """Give log10 of how many poses would have as many inliers if all matches were wrong.

    Each of the 4 C(matches, 3) poses through three matches meets every other match with
    probability `chance` (a contrario: Moisan and Stival, IJCV 2004).
    """
    poses = math.log(4) + gammaln(matches + 1) - gammaln(matches - 2) - math.log(6)
    # The survival function of the binomial distribution, as scipy.stats has it; that package takes
    # a third of a second to import, in every start of a node or a command.
    others, trials = inliers - 4, matches - 3
    tail = betainc(others + 1, trials - others, chance) if others < trials else 0.0
    return float(poses + (math.log(tail) if tail > 0 else -math.inf)) / math.log(10)


def _usable_matches(
    pixels: np.ndarray, points: np.ndarray, camera: Camera, weights: np.ndarray | None,
    point_covariances: np.ndarray | None,
) -> tuple[_Matches, np.ndarray]:
    """Check shapes and tell which matches (M,) are finite and have weight."""
    pixels, points = np.array(pixels, np.float64), np.array(points, np.float64)
    count = len(pixels)
    weights = np.ones(count) if weights is None else np.array(weights, np.float64)
    shapes = [(pixels, (count, 2), 'pixels'), (points, (count, 3), 'points'),
              (weights, (count,), 'weights')]
    if point_covariances is not None:
        point_covariances = np.array(point_covariances, np.float64)
        shapes.append((point_covariances, (count, 3, 3), 'point_covariances'))
    for array, shape, name in shapes:
        if array.shape != shape:
            raise DataError(f'{name} have shape {array.shape}; for {count} matches they must '
                            f'have {shape}')
    usable = np.isfinite(weights) & (weights > 0)
    for array, _, _ in shapes:
        # Beyond 1e9 metres or pixels, squares lose all digits.
        usable &= (np.abs(array) < 1e9).all(axis=tuple(range(1, array.ndim)))
    rays = np.full((count, 3), np.nan)
    rays[usable] = camera.rays(torch.from_numpy(pixels[usable])).numpy()
    usable &= np.isfinite(rays).all(-1)
    return _Matches(pixels, points, rays, weights, point_covariances, camera), usable


def _shifted(matches: _Matches, offset: np.ndarray) -> _Matches:
    return _Matches(matches.pixels, matches.points + offset, matches.rays, matches.weights,
                    matches.point_covariances, matches.camera)


def _scatter(usable: np.ndarray, inliers: np.ndarray) -> np.ndarray:
    """Make a mask of all matches from a mask of the usable ones."""
    mask = np.zeros(len(usable), bool)
    mask[usable] = inliers
    return mask


def _moved(pose: np.ndarray, offset: np.ndarray) -> np.ndarray:
    """Give a pose (4, 4) with its position moved by an offset (3,)."""
    pose = np.array(pose, np.float64)
    pose[:3, 3] += offset
    return pose


def _near(
    matches: _Matches, guess: np.ndarray, options: AbsolutePoseOptions,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Refine a guess (4, 4) if that leads to where most matches agree: pose and inliers (M,)."""
    half = len(matches.pixels) / 2
    agreeing = _agreeing(matches, guess, _GUESS_LIMIT * options.max_reprojection_error)
    if agreeing.sum() <= max(half, options.min_inliers):
        return None
    pose = _gauss_newton(matches.chosen(agreeing), guess, robust=True, steps=_GUESS_STEPS)
    if pose is None:
        return None
    pose, inliers = _refine(matches, pose, options)
    return (pose, inliers) if inliers.sum() > half else None


def _iterations(inlier_ratio: float, most: int) -> int:
    """How many samples of three find an inlier ratio with all but the chance of a miss."""
    share = min(max(inlier_ratio, 1e-6), 0.999) ** 3
    needed = math.ceil(math.log(_MISSED) / math.log1p(-share))
    return min(most, max(needed, _LEAST_ITERATIONS))


def _ransac(matches: _Matches, options: AbsolutePoseOptions) -> np.ndarray | None:
    """Search the pose (4, 4) by locally optimised RANSAC; None where no pose fits anything.

    poselib searches in the plane z = 1 whatever the camera model, so it gets the undistorted
    rays; the refinement afterwards works on the true pixels.
    """
    ahead = matches.rays[:, 2] > _RANSAC_EDGE
    if ahead.sum() < 4:
        return None
    camera, rays = matches.camera, matches.rays[ahead]
    plane = rays / rays[:, 2:]
    _, slope = camera.project_with_jacobian(torch.from_numpy(plane))
    # A pixel covers more of the plane towards the edge of a wide lens. The focal length of most
    # of the matches makes the search lenient in the middle rather than deaf at the edge.
    focal = np.quantile(np.sqrt(np.abs(np.linalg.det(slope.numpy()[..., :2]))), 0.2)
    if not focal > 0:
        return None
    most = _iterations(options.min_inlier_ratio, options.max_iterations)
    found, _ = poselib.estimate_absolute_pose(
        focal * plane[:, :2], matches.points[ahead],
        {'model': 'PINHOLE', 'width': camera.width, 'height': camera.height,
         'params': [focal, focal, 0.0, 0.0]},
        {'max_reproj_error': float(options.max_reprojection_error), 'seed': int(options.seed),
         'min_iterations': min(int(options.min_iterations), most), 'max_iterations': most},
        {'loss_type': 'CAUCHY', 'loss_scale': 0.5 * float(options.max_reprojection_error)})
    camera_from_map = np.asarray(found.Rt, np.float64)
    if not np.isfinite(camera_from_map).all():
        return None
    pose = np.eye(4)
    pose[:3, :3] = camera_from_map[:, :3].T
    pose[:3, 3] = -camera_from_map[:, :3].T @ camera_from_map[:, 3]
    return pose


def _refine(
    matches: _Matches, pose: np.ndarray, options: AbsolutePoseOptions,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose the inliers (M,) on true pixels and refine the pose on them, until they stay."""
    inliers = _agreeing(matches, pose, options.max_reprojection_error)
    for _ in range(_ROUNDS):
        if inliers.sum() < options.min_inliers:
            break
        new_pose = _gauss_newton(matches.chosen(inliers), pose, options.robust)
        if new_pose is None:
            break
        new_inliers = _agreeing(matches, new_pose, options.max_reprojection_error)
        if new_inliers.sum() < options.min_inliers:
            break
        # Matches at the limit hardly weigh in a robust fit; waiting for each of them takes long.
        settled = (inliers != new_inliers).sum() <= _SETTLED * new_inliers.sum()
        pose, inliers = new_pose, new_inliers
        if settled:
            break
    return pose, inliers


def _agreeing(matches: _Matches, pose: np.ndarray, limit: float) -> np.ndarray:
    """Tell which points (M,) project within `limit` pixels of their pixel, from the front."""
    in_camera = (matches.points - pose[:3, 3]) @ pose[:3, :3]
    projected = matches.camera.project(torch.from_numpy(in_camera)).numpy()
    error = np.linalg.norm(matches.pixels - projected, axis=-1)
    return (error < limit) & ((in_camera * matches.rays).sum(-1) > 0)


def _gauss_newton(
    matches: _Matches, pose: np.ndarray, robust: bool, steps: int = _STEPS,
) -> np.ndarray | None:
    """Minimise the weighted, robust reprojection error from a pose near its minimum."""
    weights = matches.weights / matches.weights.mean()
    for _ in range(steps):
        at_pose = _linearise(matches, pose)
        information, influence = _information(at_pose, weights, robust)
        pull = (influence * weights)[:, None, None] * _times(information, at_pose.jacobian)
        normal = _inner(at_pose.jacobian, pull)
        gradient = pull.reshape(-1, 6).T @ at_pose.residual.reshape(-1)
        scale = 1 / np.sqrt(np.maximum(np.diag(normal), 1e-300))
        # The ridge only keeps a degenerate problem finite; the condition is judged afterwards.
        scaled = normal * np.outer(scale, scale) + 1e-12 * np.eye(6)
        delta = scale * np.linalg.solve(scaled, scale * gradient)
        if not np.isfinite(delta).all():
            return None
        pose = _moved(pose, delta[:3])
        pose[:3, :3] = cv2.Rodrigues(delta[3:])[0] @ pose[:3, :3]
        # A step of a hundredth of a standard deviation changes nothing that matters.
        if delta @ normal @ delta < 1e-4:
            break
    return pose


def _linearise(matches: _Matches, pose: np.ndarray) -> _Linearised:
    """Project matches and differentiate the projection by the perturbation of the pose."""
    rotation, offset = pose[:3, :3], matches.points - pose[:3, 3]
    projected, inner = matches.camera.project_with_jacobian(torch.from_numpy(offset @ rotation))
    inner = inner.numpy() @ rotation.T  # A R^T
    jacobian = np.empty((len(inner), 2, 6))
    np.negative(inner, out=jacobian[..., :3])
    # A row a of A R^T times hat(X - p) is a x (X - p).
    for axis, (after, last) in enumerate(((1, 2), (2, 0), (0, 1))):
        jacobian[..., 3 + axis] = (inner[..., after] * offset[:, None, last]
                                   - inner[..., last] * offset[:, None, after])
    spread = matches.point_covariances
    if spread is not None:
        spread = inner @ spread @ inner.transpose(0, 2, 1)
    return _Linearised(matches.pixels - projected.numpy(), jacobian, spread)


def _information(
    at_pose: _Linearised, weights: np.ndarray, robust: bool,
) -> tuple[np.ndarray | float, np.ndarray]:
    """Give S^-1 (N, 2, 2) and the influence (N,) that the loss leaves to each residual.

    Where points are taken for exact, S^-1 is the same number for all. The noise of a robust fit is
    taken from the median residual, which outliers do not move.
    """
    square = weights * (at_pose.residual ** 2).sum(-1)
    if robust:
        variance = np.median(square) / _RAYLEIGH_MEDIAN ** 2
    else:
        variance = square.sum() / max(2 * len(square) - 6, 1)
    variance = max(variance, SIGMA_FLOOR ** 2)
    if at_pose.spread is None:
        information = 1 / variance
    else:
        information = np.linalg.inv(variance * np.eye(2) + at_pose.spread)
    if not robust:
        return information, np.ones(len(square))
    distance = _mahalanobis(at_pose.residual, information, weights)
    return information, 1 / (1 + distance / _CAUCHY ** 2)


def _times(information: np.ndarray | float, values: np.ndarray) -> np.ndarray:
    """Multiply S^-1 with values (N, 2, K)."""
    return information @ values if isinstance(information, np.ndarray) else information * values


def _covariance(
    at_pose: _Linearised, weights: np.ndarray, *, robust: bool,
) -> tuple[np.ndarray | None, float]:
    """Give the covariance (6, 6) or None, and the condition of the scaled normal matrix.

    Least squares: C = H^-1 with H = sum w J^T S^-1 J.
    Cauchy loss with influence v: C = H^-1 M H^-1, where M = sum (w v)^2 J^T S^-1 r r^T S^-1 J
    measures how the residuals really scatter, and H = sum w v^2 J^T S^-1 J is the curvature of the
    loss: the derivative of v r by r is v^2, averaged over the directions of r.
    """
    information, influence = _information(at_pose, weights, robust)
    jacobian, residual = at_pose.jacobian, at_pose.residual
    pull = weights[:, None, None] * _times(information, jacobian)
    normal = _inner(jacobian, (influence ** 2)[:, None, None] * pull)
    if not np.isfinite(normal).all():
        return None, math.inf
    scale = 1 / np.sqrt(np.maximum(np.diag(normal), 1e-300))
    values, vectors = np.linalg.eigh(normal * np.outer(scale, scale))
    condition = float(values[-1] / values[0]) if values[0] > 0 else math.inf
    if condition > MAX_CONDITION:
        return None, condition
    inverse = (vectors / values) @ vectors.T * np.outer(scale, scale)
    if not robust:
        return (inverse + inverse.T) / 2, condition
    count = len(residual)
    # Fitted residuals are smaller than the noise by the 6 parameters they were fitted with.
    shrunk = 2 * count / max(2 * count - 6, 1)
    average = _inner(jacobian, pull) * shrunk * (
        influence ** 2 * _mahalanobis(residual, information, weights)).mean() / 2
    gradients = influence[:, None] * (pull * residual[:, :, None]).sum(1)
    # Few residuals say little about how the scatter differs between matches: up to
    # `_FEW_INLIERS` all count as equal, and more of them speak more for themselves.
    equal = min(_FEW_INLIERS / count, 1)
    middle = equal * average + (1 - equal) * shrunk * gradients.T @ gradients
    # The floor on sigma must hold here as well: residuals smaller than it are luck.
    variance = (weights * (residual ** 2).sum(-1)).sum() / max(2 * count - 6, 1)
    middle = middle * max(SIGMA_FLOOR ** 2 / max(variance, 1e-300), 1)
    sandwich = inverse @ middle @ inverse
    return (sandwich + sandwich.T) / 2, condition


def _inner(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Sum the products first^T second (6, 6) of N blocks (N, 2, 6)."""
    product = first.reshape(-1, 6).T @ second.reshape(-1, 6)
    return (product + product.T) / 2


def _mahalanobis(
    residual: np.ndarray, information: np.ndarray | float, weights: np.ndarray,
) -> np.ndarray:
    """Give w r^T S^-1 r (N,)."""
    return weights * (residual * _times(information, residual[..., None])[..., 0]).sum(-1)


def _chance(matches: _Matches, limit: float) -> float:
    """Give the probability that a wrong match lies within `limit` pixels of a projection."""
    area = np.prod(np.ptp(matches.pixels, axis=0) + 2 * limit)
    return float(min(math.pi * limit ** 2 / area, 1))
