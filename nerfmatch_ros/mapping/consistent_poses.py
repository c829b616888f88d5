"""Rough poses made consistent: features, odometry and loop closures in one adjustment.

    features -> pairs by pose, way and appearance -> rotations -> tracks -> bundle adjustment

A robot's poses drift, or each is wrong by itself; photographs of the same things tell how they
really stand to one another, all but scale, origin and gravity, which the given poses keep. Loops
are closed where keypoints of two photographs agree with one relative pose, however far apart the
given poses have them. (A map's own retrieval and matcher would need the map that these poses are
to make; the search by words is the same, on keypoints that need no training.) Closures that
something else found can be given as `Motions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
import logging
import math

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping.bundle_adjustment import adjust, angular_errors, pose_covariances
from nerfmatch_ros.mapping.feature_pairs import (
    ImagePair,
    PairConfig,
    propose_pairs,
    verify_pairs,
)
from nerfmatch_ros.mapping.feature_tracks import fitting, make_tracks, starting_points, Tracks
from nerfmatch_ros.mapping.features import detect_features, Features
from nerfmatch_ros.mapping.lens_correction import corrected, LensCorrection
from nerfmatch_ros.mapping.pose_factors import AbsolutePoses, Motions, PoseFactors, Upright
from nerfmatch_ros.mapping.pose_prior import PosePrior
from nerfmatch_ros.mapping.rotation_averaging import average_rotations, turn_residuals
import numpy as np

LOG = logging.getLogger(__name__)
_PRIOR_LOSS = 5.0  # sigmas; a residual of six numbers is about 2.4 long
_ANCHOR = (1e-4, 1e-4)  # metres, radians: where odometry begins is the map's frame
_WIDE_LOSSES = (40.0, 10.0)  # pixels, of the adjustments that begin far from the minimum
_RAYLEIGH_MEDIAN = math.sqrt(2 * math.log(2))  # median length of 2-D normal noise
_SIGMA_FLOOR = 0.5  # pixels; keypoints are never trusted to be better than this
_ENOUGH = 4  # times the least sightings; an image with fewer takes points that two images see
_LENS_ROUNDS = 3  # of correcting the lenses and adjusting to it
_APART = 5  # tracks in common; with fewer, a frame does not see what another saw


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
    refine_lens: bool = True  # find what calibrations leave of radial distortion, beside the poses


@dataclass(frozen=True, eq=False)
class ConsistentPoses:
    """Poses that photographs and prior agree on."""

    poses: np.ndarray  # (K, 4, 4) float64 map_from_camera
    covariances: np.ndarray  # (K, 6, 6) x, y, z, rx, ry, rz; map axes, metres, radians
    closures: int  # pairs of frames that see the same place, which the way between them left
    points: np.ndarray  # (P, 3) map frame, metres; empty where nothing was changed
    loose: tuple[int, ...]  # images that keypoints do not tie; their poses are the prior's
    changed: bool  # False: too few photographs show the same things, and the poses are as given
    numbers: dict  # of the report, plain values


def make_consistent(
    images: Sequence[PosedImage], prior: PosePrior, *, start: np.ndarray | None = None,
    config: ConsistencyConfig | None = None, closures: Motions | None = None,
    report: Callable[[float, dict], None] = lambda done, numbers: None,
) -> ConsistentPoses:
    """Correct the poses of K photographs so that what they show fits together.

    prior: what is known of the poses beforehand; it gives scale, origin and gravity. start:
    (K, 4, 4) better poses to begin from, such as registered ones; closures: motions between
    images that something else measured. The poses in `images` themselves are not looked at.
    Where too few photographs share keypoints, the poses come back as they were, `changed` False.
    """
    config = config or ConsistencyConfig()
    _check(len(images), prior, start)
    number_of = {camera: k for k, camera in enumerate(dict.fromkeys(i.camera for i in images))}
    cameras = np.array([number_of[image.camera] for image in images], np.int64)
    features = []
    for number, image in enumerate(images):
        report(0.3 * number / len(images), {})
        features.append(detect_features(image, config.max_features, config.detection_side))
    return consistent_with_features(
        features, prior, names=[image.name for image in images], start=start, config=config,
        closures=closures, cameras=cameras,
        report=lambda done, numbers: report(0.3 + 0.7 * done, numbers))


def consistent_with_features(
    features: Sequence[Features], prior: PosePrior, *, names: Sequence[str] | None = None,
    start: np.ndarray | None = None, config: ConsistencyConfig | None = None,
    closures: Motions | None = None, cameras: np.ndarray | None = None,
    report: Callable[[float, dict], None] = lambda done, numbers: None,
) -> ConsistentPoses:
    """Do what `make_consistent` does with the keypoints of K photographs.

    names: of the images; cameras: (K,) int64, which took each, numbered from 0; None: all one.
    """
    config = config or ConsistencyConfig()
    count = len(features)
    names = [str(k) for k in range(count)] if names is None else names
    cameras = np.zeros(count, np.int64) if cameras is None else cameras
    _check(count, prior, start)
    start = prior.poses if start is None else np.array(start, np.float64)
    proposed = propose_pairs(start, prior.sequence, features, config.pairs)
    pairs = verify_pairs(features, proposed, config.pairs,
                         lambda done: report(0.6 * done, {}))
    rotations, pairs = _rotations(start, prior, pairs)
    tracks = make_tracks(features, pairs, per_image=config.tracks_per_image)
    turned = start.copy()
    turned[:, :3, :3] = rotations
    report(0.6, {'pairs': len(pairs), 'tracks': len(tracks)})
    poses, points, tracks, sigma, factors = _adjusted(
        start, turned, prior, tracks, closures, config, report)
    lens = LensCorrection.none(cameras)
    seen = tracks
    if config.refine_lens and len(tracks):
        lens, poses, points, tracks = _without_lens(
            lens, poses, points, tracks, sigma, factors, config)
    counts = np.bincount(tracks.image, minlength=count)
    tied = counts >= config.min_sightings
    numbers = {'images': count, 'images_tied': int(tied.sum()), 'pairs_tried': len(proposed),
               'pairs': len(pairs), 'points': len(tracks), 'sightings': len(tracks.image)}
    if tied.sum() < config.fewest_images:
        LOG.warning('only %d of %d photographs show enough of the same things: poses stay as '
                    'they are given', tied.sum(), count)
        return ConsistentPoses(start, _prior_covariances(prior), 0, np.zeros((0, 3)),
                               tuple(range(count)), False, {**numbers, 'changed': False})
    covariances = pose_covariances(poses, points, tracks.observations(sigma), factors,
                                   loss_scale=config.loss_scale)
    report(1.0, {})
    found = _closures(tracks, pairs, prior.sequence, count)
    loose = tuple(np.flatnonzero(~tied).tolist())
    if loose:
        LOG.warning('%d of %d photographs share too few keypoints with others, first %s: their '
                    'poses are the given ones%s', len(loose), count, names[loose[0]],
                    ', carried along by odometry' if prior.odometry else '')
    errors = angular_errors(poses, points, tracks.observations(1.0))
    moved = np.linalg.norm(poses[:, :3, 3] - prior.poses[:, :3, 3], axis=-1)
    numbers |= {
        'changed': True, 'closures': found, 'sigma_px': round(sigma, 3),
        'lens_px': round(lens.largest(seen.rays, seen.image) / float(
            np.median(seen.pixel_angle)), 3),
        'rms_px': round(float(np.sqrt(np.mean(errors ** 2))), 3),
        'moved_m': round(float(moved.mean()), 4),
        'position_std_m': round(float(np.sqrt(np.median(
            np.trace(covariances[:, :3, :3], axis1=1, axis2=2) / 3))), 5),
        'loose': [names[k] for k in loose]}
    return ConsistentPoses(poses, covariances, found, points, loose, True, numbers)


def _check(count: int, prior: PosePrior, start: np.ndarray | None) -> None:
    """Refuse poses that do not belong to `count` images."""
    if count != len(prior.poses):
        raise DataError(f'{count} images but {len(prior.poses)} prior poses; '
                        'give one for each image')
    if start is not None and np.shape(start) != prior.poses.shape:
        raise DataError(f'poses to start from have shape {np.shape(start)}; '
                        f'{prior.poses.shape} is needed')


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
        rotations = average_rotations(start[:, :3, :3], ends, turns, sigma,
                                      prior_sigma=np.full(count, prior.rotation))
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


def _adjusted(
    start: np.ndarray, poses: np.ndarray, prior: PosePrior, tracks: Tracks,
    closures: Motions | None, config: ConsistencyConfig, report: Callable[[float, dict], None],
) -> tuple[np.ndarray, np.ndarray, Tracks, float, list[PoseFactors]]:
    """Adjust poses (K, 4, 4) of right rotations: poses, points, sightings that agree, sigma."""
    def factors_of(tracks: Tracks) -> list[PoseFactors]:
        tied = np.bincount(tracks.image, minlength=len(poses)) >= config.min_sightings
        return prior_factors(prior, start, tied) + ([] if closures is None else [closures])

    points = starting_points(tracks, poses)
    for number, loss in enumerate(_WIDE_LOSSES):
        result = adjust(poses, points, tracks.observations(1.0), factors_of(tracks),
                        loss_scale=loss, rotations_fixed=number == 0, max_steps=30,
                        tolerance=1e-3)
        poses, points = result.poses, result.points
        report(0.7 + 0.05 * number, {})
    sigma = 1.0
    for limit in (4 * config.max_error, config.max_error):
        tracks = fitting(tracks, poses, limit, enough=_ENOUGH * config.min_sightings)
        points = starting_points(tracks, poses)
        factors = factors_of(tracks)
        result = adjust(poses, points, tracks.observations(sigma), factors,
                        loss_scale=config.loss_scale, tolerance=1e-5)
        poses, points = result.poses, result.points
        errors = angular_errors(poses, points, tracks.observations(1.0))
        sigma = max(float(np.median(errors)) / _RAYLEIGH_MEDIAN, _SIGMA_FLOOR) \
            if len(errors) else 1.0
        report(0.9, {'points': len(tracks)})
    return poses, points, tracks, sigma, factors


def _without_lens(
    lens: LensCorrection, poses: np.ndarray, points: np.ndarray, tracks: Tracks, sigma: float,
    factors: list[PoseFactors], config: ConsistencyConfig,
) -> tuple[LensCorrection, np.ndarray, np.ndarray, Tracks]:
    """Find the correction of the lenses, and poses and points adjusted to corrected sightings."""
    seen = tracks
    for _ in range(_LENS_ROUNDS):
        lens, poses, points = corrected(
            lens, poses, points, tracks.observations(sigma), factors,
            loss_scale=config.loss_scale)
        tracks = replace(seen, rays=lens.apply(seen.rays, seen.image))
        result = adjust(poses, points, tracks.observations(sigma), factors,
                        loss_scale=config.loss_scale, tolerance=1e-5)
        poses, points = result.poses, result.points
    return lens, poses, points, tracks


def _prior_covariances(prior: PosePrior) -> np.ndarray:
    """Give the covariances (K, 6, 6) of the given poses."""
    variance = np.repeat(np.square((prior.translation, prior.rotation)), 3)
    covariances = np.tile(np.diag(variance), (len(prior.poses), 1, 1))
    if prior.odometry is None:
        return covariances
    along = np.concatenate((np.zeros((1, 2)), np.cumsum(prior.motions()[1] ** 2, axis=0)))
    covariances[prior.sequence] = [np.diag(np.repeat(row, 3)) for row in along]
    return covariances


def _closures(
    tracks: Tracks, pairs: list[ImagePair], sequence: np.ndarray | None, images: int,
) -> int:
    """Count the pairs that see the same things, which frames between them did not see."""
    if sequence is None:
        return 0
    shared = tracks.shared(images)[np.ix_(sequence, sequence)]
    place = np.argsort(sequence)
    count = 0
    for pair in pairs:
        a, b = sorted((place[pair.first], place[pair.second]))
        if shared[a, b] >= _APART and (shared[a, a + 1:b] < _APART).any():
            count += 1
    return count
