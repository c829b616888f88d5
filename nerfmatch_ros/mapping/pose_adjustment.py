"""Poses that pairs of photographs, and what is known beforehand, agree on: one solution.

    rotations -> tracks -> positions with these rotations -> everything, outliers dropped
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
import math

from nerfmatch_ros.mapping.bundle_adjustment import adjust, angular_errors, pose_covariances
from nerfmatch_ros.mapping.feature_pairs import ImagePair, PairConfig
from nerfmatch_ros.mapping.feature_tracks import fitting, make_tracks, starting_points, Tracks
from nerfmatch_ros.mapping.features import Features
from nerfmatch_ros.mapping.lens_correction import corrected, LensCorrection
from nerfmatch_ros.mapping.pose_factors import (
    AbsolutePoses,
    Motions,
    PoseFactors,
    Upright,
    Weakened,
)
from nerfmatch_ros.mapping.pose_prior import PosePrior
from nerfmatch_ros.mapping.rotation_averaging import average_rotations, turn_residuals
import numpy as np

_PRIOR_LOSS = 5.0  # sigmas; a residual of six numbers is about 2.4 long
_ANCHOR = (1e-4, 1e-4)  # metres, radians: where odometry begins is the map's frame
_WIDE_LOSSES = (40.0, 10.0)  # pixels, of the adjustments that begin far from the minimum
_RAYLEIGH_MEDIAN = math.sqrt(2 * math.log(2))  # median length of 2-D normal noise
_SIGMA_FLOOR = 0.5  # pixels; keypoints are never trusted to be better than this
_LOOSE_ROTATION = math.radians(20)  # radians, least sigma of given rotations when averaging
_WEAKENED = 30.0  # times, what is known of poses while lenses are found
_LENS_ROUNDS = 3  # of correcting the lenses and adjusting to it
_ENOUGH = 4  # times the least sightings; an image with fewer takes points that two images see


@dataclass(frozen=True)
class ConsistencyConfig:
    """How photographs are compared, and what has to agree."""

    pairs: PairConfig = field(default_factory=PairConfig)
    max_features: int = 1500  # per image
    detection_side: int = 1000  # pixels; larger images are scaled down to it to find features
    tracks_per_image: int = 300  # points that an image is tied by, about
    loss_scale: float = 2.0  # sigmas, beyond which sightings count less and less
    max_error: float = 4.0  # pixels, of a sighting that is kept
    min_sightings: int = 12  # of an image; with fewer its pose is not taken from them
    fewest_images: int = 3  # that must be tied together, or nothing is changed
    # Find what calibrations leave of radial distortion, beside the poses, where it is no chance.
    refine_lens: bool = True


@dataclass(frozen=True, eq=False)
class Solution:
    """K poses and the points that tie them."""

    poses: np.ndarray  # (K, 4, 4) float64 map_from_camera
    points: np.ndarray  # (P, 3) map frame, metres
    tracks: Tracks  # the sightings that agree, corrected
    pairs: list[ImagePair]  # whose turns agree
    sigma: float  # pixels, of a sighting
    factors: list[PoseFactors]  # what is known beforehand
    tied: np.ndarray  # (K,) bool, images with enough sightings
    lens_px: float = 0.0  # largest correction of a sighting, pixels

    def covariances(self, loss_scale: float) -> np.ndarray:
        """Give the covariances (K, 6, 6) of the poses: position, rotation, map axes."""
        return pose_covariances(self.poses, self.points, self.tracks.observations(self.sigma),
                                self.factors, loss_scale=loss_scale)


def solve(
    start: np.ndarray, prior: PosePrior, features: Sequence[Features], pairs: list[ImagePair],
    config: ConsistencyConfig, *, cameras: np.ndarray, closures: Motions | None = None,
    given: np.ndarray | None = None, report: Callable[[float], None] = lambda done: None,
) -> Solution:
    """Find the poses that pairs and prior agree on, from poses (K, 4, 4) that are rough.

    cameras: (K,) int64, which took each image, numbered from 0; their lenses are corrected.
    given: (K, 4, 4), where images without sightings stay, if their errors are independent; else
    they stay at `start`.
    """
    rotations, pairs = _rotations(start, prior, pairs)
    tracks = make_tracks(features, pairs, per_image=config.tracks_per_image)
    poses = start.copy()
    poses[:, :3, :3] = rotations

    def factors_of(tracks: Tracks) -> list[PoseFactors]:
        tied = np.bincount(tracks.image, minlength=len(poses)) >= config.min_sightings
        return prior_factors(prior, start if given is None else given, tied) \
            + ([] if closures is None else [closures])

    points = starting_points(tracks, poses)
    for number, loss in enumerate(_WIDE_LOSSES):
        result = adjust(poses, points, tracks.observations(1.0), factors_of(tracks),
                        loss_scale=loss, rotations_fixed=number == 0, max_steps=30,
                        tolerance=1e-3)
        poses, points = result.poses, result.points
        report(0.2 + 0.2 * number)
    sigma = 1.0
    for number, limit in enumerate((4 * config.max_error, config.max_error)):
        tracks = fitting(tracks, poses, limit, enough=_ENOUGH * config.min_sightings)
        points = starting_points(tracks, poses)
        factors = factors_of(tracks)
        result = adjust(poses, points, tracks.observations(sigma), factors,
                        loss_scale=config.loss_scale, tolerance=1e-5)
        poses, points = result.poses, result.points
        errors = angular_errors(poses, points, tracks.observations(1.0))
        sigma = max(float(np.median(errors)) / _RAYLEIGH_MEDIAN, _SIGMA_FLOOR) \
            if len(errors) else 1.0
        report(0.7 + 0.3 * number)
    tied = np.bincount(tracks.image, minlength=len(poses)) >= config.min_sightings
    solution = Solution(poses, points, tracks, pairs, sigma, factors, tied)
    return _without_lens(solution, cameras, config) if config.refine_lens else solution


def _without_lens(
    solution: Solution, cameras: np.ndarray, config: ConsistencyConfig,
) -> Solution:
    """Correct the lenses where sightings tell, and adjust poses and points to that."""
    if solution.tied.sum() < config.fewest_images:
        return solution
    weak = [Weakened(factor, _WEAKENED) for factor in solution.factors]
    lens, seen = LensCorrection.none(cameras), solution.tracks
    poses, points, tracks = solution.poses, solution.points, seen

    def adjusted(factors: list[PoseFactors]) -> None:
        nonlocal poses, points
        result = adjust(poses, points, tracks.observations(solution.sigma), factors,
                        loss_scale=config.loss_scale, tolerance=1e-5)
        poses, points = result.poses, result.points

    adjusted(weak)
    for _ in range(_LENS_ROUNDS):
        lens, poses, points = corrected(
            lens, poses, points, tracks.observations(solution.sigma), weak,
            loss_scale=config.loss_scale)
        tracks = replace(seen, rays=lens.apply(seen.rays, seen.image))
        adjusted(weak)
    lens = lens.significant()
    if not lens.terms.any():
        return solution
    tracks = replace(seen, rays=lens.apply(seen.rays, seen.image))
    adjusted(solution.factors)
    largest = lens.largest(seen.rays, seen.image) / float(np.median(seen.pixel_angle))
    return replace(solution, poses=poses, points=points, tracks=tracks, lens_px=largest)


def prior_factors(
    prior: PosePrior, start: np.ndarray, tied: np.ndarray,
) -> list[PoseFactors]:
    """Give what the prior says, as factors of an adjustment.

    start: (K, 4, 4), where images that keypoints do not tie stay when their errors are
    independent; tied: (K,) bool.
    """
    factors = []
    if prior.odometry is None:
        given = np.where(tied[:, None, None], prior.poses, start)
        sigma = np.tile((prior.translation, prior.rotation), (len(given), 1))
        factors.append(AbsolutePoses(np.arange(len(given)), given, sigma, _PRIOR_LOSS))
    else:
        motions, sigma = prior.motions()
        sequence = prior.sequence
        factors.append(AbsolutePoses(sequence[:1], prior.poses[sequence[:1]],
                                     np.array([_ANCHOR])))
        factors.append(Motions(sequence[:-1], sequence[1:], motions, sigma, _PRIOR_LOSS))
    if prior.gravity is not None:
        factors.append(Upright(np.arange(len(prior.poses)), prior.poses, prior.gravity,
                               _PRIOR_LOSS))
    return factors


def _rotations(
    start: np.ndarray, prior: PosePrior, pairs: list[ImagePair],
) -> tuple[np.ndarray, list[ImagePair]]:
    """Give rotations (K, 3, 3) that the pairs agree on, and the pairs that agree."""
    ends = np.array([(p.first, p.second) for p in pairs], np.int64).reshape(-1, 2)
    turns = np.array([p.rotation for p in pairs]).reshape(-1, 3, 3)
    # Measured: the error of a turn falls with the number of matches, and the last bit stays.
    sigma = np.array([math.radians(0.15 + 50 / len(p.matches)) for p in pairs])
    count = len(start)
    if prior.odometry is None:
        # Turns between photographs are far better than given rotations, which are to tell no more
        # than the frame here: stated better than they are, they must not hold the others up.
        loose = max(prior.rotation, _LOOSE_ROTATION)
        rotations = average_rotations(start[:, :3, :3], ends, turns, sigma,
                                      prior_sigma=np.full(count, loose))
    else:
        motions, motion_sigma = prior.motions()
        sequence = prior.sequence
        prior_sigma = np.full(count, np.inf)
        prior_sigma[sequence[0]] = _ANCHOR[1]
        rotations = average_rotations(
            start[:, :3, :3],
            np.concatenate((ends, np.stack((sequence[:-1], sequence[1:]), axis=-1))),
            np.concatenate((turns, motions[:, :3, :3])),
            np.concatenate((sigma, motion_sigma[:, 1])), prior_sigma=prior_sigma)
    wrong = np.linalg.norm(turn_residuals(rotations, ends, turns), axis=-1)
    agree = wrong < 4 * sigma + math.radians(1)
    return rotations, [pair for pair, good in zip(pairs, agree) if good]
