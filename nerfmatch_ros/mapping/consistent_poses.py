"""Rough poses made consistent: features, odometry and loop closures in one adjustment.

    features -> pairs by pose, way and appearance -> poses by what is near -> closures that these
    poses allow -> poses by all

A robot's poses drift, or each is wrong by itself; photographs of the same things tell how they
really stand to one another, all but scale, origin and gravity, which the given poses keep. Loops
are closed where keypoints of two photographs agree with one relative pose, and frames near to them
do not contradict it. (A map's own retrieval and matcher would need the map that these poses are
to make; the search by words is the same, on keypoints that need no training.) Closures that
something else found can be given as `Motions`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import logging
import math

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.mapping.bundle_adjustment import angular_errors
from nerfmatch_ros.mapping.closure_check import possible
from nerfmatch_ros.mapping.feature_pairs import (
    ImagePair,
    near_pairs,
    propose_pairs,
    verify_pairs,
)
from nerfmatch_ros.mapping.features import detect_features, Features
from nerfmatch_ros.mapping.pose_adjustment import ConsistencyConfig, Solution, solve
from nerfmatch_ros.mapping.pose_factors import Motions
from nerfmatch_ros.mapping.pose_prior import PosePrior
import numpy as np

LOG = logging.getLogger(__name__)
_APART = 5  # tracks in common; with fewer, a frame does not see what another saw
_SLACK = 3.0  # times the drift that odometry may have, by which a closure may move poses
_SUSPECT = 4.0  # usual residual of the prior, sigmas, beyond which its stated accuracy is doubted


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
    features = []
    for number, image in enumerate(images):
        report(0.3 * number / len(images), {})
        features.append(detect_features(image, config.max_features, config.detection_side))
    return consistent_with_features(
        features, prior, names=[image.name for image in images], start=start, config=config,
        closures=closures,
        cameras=np.array([number_of[image.camera] for image in images], np.int64),
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
    pairs = verify_pairs(features, proposed, config.pairs, lambda done: report(0.5 * done, {}))
    near = near_pairs(start, prior.sequence, prior.odometry is not None, config.pairs)
    close = [pair for pair in pairs if (pair.first, pair.second) in near]
    far = [pair for pair in pairs if (pair.first, pair.second) not in near]
    report(0.5, {'pairs': len(pairs)})
    solution = solve(start, prior, features, close, config, cameras=cameras, closures=closures,
                     report=lambda done: report(0.5 + 0.25 * done, {}))
    refused = 0
    if far:
        # Without anything near to judge them by, all pairs have to be believed.
        judged = solution.tied.sum() >= config.fewest_images
        allowed = _allowed(far, features, solution, prior, config) if judged \
            else np.ones(len(far), bool)
        refused = int((~allowed).sum())
        solution = solve(
            solution.poses if judged else start, prior, features,
            close + [pair for pair, good in zip(far, allowed) if good], config,
            cameras=cameras, closures=closures, given=start,
            report=lambda done: report(0.75 + 0.25 * done, {}))
    report(1.0, {'points': len(solution.tracks)})
    numbers = {'images': count, 'images_tied': int(solution.tied.sum()),
               'pairs_tried': len(proposed), 'pairs': len(solution.pairs),
               'pairs_refused': refused, 'points': len(solution.tracks),
               'sightings': len(solution.tracks.image)}
    if solution.tied.sum() < config.fewest_images:
        LOG.warning('only %d of %d photographs show enough of the same things: poses stay as '
                    'they are given', solution.tied.sum(), count)
        return ConsistentPoses(start, prior.covariances(), 0, np.zeros((0, 3)),
                               tuple(range(count)), False, {**numbers, 'changed': False})
    covariances = solution.covariances(config.loss_scale)
    found = _closures(solution, prior.sequence)
    loose = tuple(np.flatnonzero(~solution.tied).tolist())
    if loose:
        LOG.warning('%d of %d photographs share too few keypoints with others, first %s: their '
                    'poses are the given ones%s', len(loose), count, names[loose[0]],
                    ', carried along by odometry' if prior.odometry else '')
    numbers |= {'changed': True, 'closures': found, 'loose': [names[k] for k in loose],
                **_measures(solution, prior, covariances)}
    if numbers['prior_sigmas'] > _SUSPECT:
        LOG.warning('the photographs contradict the given poses, usually by %.1f standard '
                    'deviations: the poses are worse than stated, or places were confused',
                    numbers['prior_sigmas'])
    return ConsistentPoses(solution.poses, covariances, found, solution.points, loose, True,
                           numbers)


def _check(count: int, prior: PosePrior, start: np.ndarray | None) -> None:
    """Refuse poses that do not belong to `count` images."""
    if count != len(prior.poses):
        raise DataError(f'{count} images but {len(prior.poses)} prior poses; '
                        'give one for each image')
    if start is not None and np.shape(start) != prior.poses.shape:
        raise DataError(f'poses to start from have shape {np.shape(start)}; '
                        f'{prior.poses.shape} is needed')


def _allowed(
    pairs: list[ImagePair], features: Sequence[Features], solution: Solution, prior: PosePrior,
    config: ConsistencyConfig,
) -> np.ndarray:
    """Tell which pairs (E,) of frames far from each other the solution without them allows."""
    first, second = (np.array([getattr(pair, end) for pair in pairs]) for end in
                     ('first', 'second'))
    return possible(
        pairs, [f.rays for f in features], solution.tracks, solution.points, solution.poses,
        solution.covariances(config.loss_scale), _SLACK * prior.drift(first, second))


def _measures(solution: Solution, prior: PosePrior, covariances: np.ndarray) -> dict:
    """Give how well everything fits, as plain values."""
    errors = angular_errors(solution.poses, solution.points, solution.tracks.observations(1.0))
    moved = np.linalg.norm(solution.poses[:, :3, 3] - prior.poses[:, :3, 3], axis=-1)
    spread = np.trace(covariances[:, :3, :3], axis1=1, axis2=2) / 3
    residual = np.linalg.norm(solution.factors[0 if prior.odometry is None else 1].linearise(
        solution.poses).residual, axis=-1)
    usual = float(np.median(residual)) / math.sqrt(6) if len(residual) else 0.0
    return {
        'sigma_px': round(solution.sigma, 3), 'lens_px': round(solution.lens_px, 3),
        'rms_px': round(float(np.sqrt(np.mean(errors ** 2))), 3),
        'moved_m': round(float(moved.mean()), 4),
        'position_std_m': round(float(np.sqrt(np.median(spread))), 5),
        'prior_sigmas': round(usual, 2)}


def _closures(solution: Solution, sequence: np.ndarray | None) -> int:
    """Count the pairs that see the same things, which frames between them did not see."""
    if sequence is None:
        return 0
    shared = solution.tracks.shared(len(solution.poses))[np.ix_(sequence, sequence)]
    place = np.argsort(sequence)
    count = 0
    for pair in solution.pairs:
        a, b = sorted((place[pair.first], place[pair.second]))
        if shared[a, b] >= _APART and (shared[a, a + 1:b] < _APART).any():
            count += 1
    return count
