"""Where new photographs lie in a map that exists: localized, and held together by given poses.

Some photographs show nothing that the map knows, and a localization is wrong now and then. Poses
that come with the photographs, in whatever frame, say where they lie relative to one another; the
photographs that the map knows say where that frame lies. Letters: n photographs.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.pose import interpolate
from nerfmatch_ros.geometry.rigid_alignment import align
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.rigid_motion import distance, inverse
import numpy as np
import torch

FEWEST = 3  # localized photographs that must agree, for a map to be changed by them
_ROUNDS = 5  # of fitting a motion and choosing those that agree with it
# Of a picture, at distance 1 along the optical axis, and the camera itself.
_CORNERS = np.array(((-0.5, 0.5, -0.5, 0.5, 0), (-0.4, -0.4, 0.4, 0.4, 0), (1, 1, 1, 1, 0)))
_LEAST_BASELINE = 4.0  # times the limit: how far apart photographs must lie to tell a scale


@dataclass(frozen=True)
class PlacementConfig:
    """What is believed of new photographs' poses."""

    least_probability: float = 0.5  # of a localization, by the map's judge
    agreeing: float = 0.5  # share of the localized that one motion of the given poses must explain
    largest_scale_error: float = 0.05  # of the given poses, as a share
    carried: int = 20  # photographs along the way, that a pose is carried on to by given poses

    def __post_init__(self):
        """Refuse shares that are none."""
        for name in ('least_probability', 'agreeing'):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f'placement.{name} is {getattr(self, name):g}; '
                                  'it is a share, from 0 to 1')


@dataclass(frozen=True)
class Placement:
    """New photographs in the frame of the map."""

    images: list[PosedImage]  # with poses map_from_camera
    left_out: dict[str, str]  # name of a photograph without a place, and why
    how: str  # 'localized', 'aligned' (one motion of the given poses) or 'carried' (they drift)
    map_from_given: np.ndarray | None = None  # (4, 4), where aligned
    numbers: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Consensus:
    """A rigid motion of given poses, and the localized ones that agree with it."""

    map_from_given: np.ndarray  # (4, 4)
    agrees: np.ndarray  # (n,) bool; False where nothing was localized
    metres: float  # median distance of those that agree, after the motion
    radians: float


def believed(estimate: PoseEstimate, least_probability: float) -> bool:
    """Say whether a localization counts: it found a pose, and a judge believes it."""
    return estimate.map_from_camera is not None and not (
        estimate.probability < least_probability)  # nan: no judge in the map


def place(
    images: Sequence[PosedImage], found: Sequence[np.ndarray | None], reasons: Sequence[str],
    limit: tuple[float, float], depth: float, config: PlacementConfig | None = None,
) -> Placement:
    """Give photographs their poses in the map.

    found: per photograph the pose (4, 4) map_from_camera that the map believes, or None with the
    reason; limit: metres and radians, within which two poses are one; depth: metres to what
    cameras see. Poses that the photographs
    bring may lie in any frame; where they are rigid they place all photographs, where they drift
    each is carried on from the nearest one that was localized, without them what was localized
    counts. Raises DataError where too few were, or the given poses have another scale.
    """
    config = config or PlacementConfig()
    localized = [k for k, pose in enumerate(found) if pose is not None]
    if len(localized) < FEWEST:
        raise DataError(
            f'{len(localized)} of {len(images)} photographs could be localized in the map, '
            f'{FEWEST} are needed ({_commonest(reasons)}); they show another place, or nothing '
            'there is as it was: build a new map')
    if any(image.map_from_camera is None for image in images):
        return _by_localization(images, found, reasons)
    given = np.stack([image.map_from_camera for image in images])
    numbers = {}
    scale = scale_of(given, found, limit)
    if scale is not None:
        numbers['scale'] = scale
        if abs(scale - 1) > config.largest_scale_error:
            raise DataError(
                f'the poses of the new photographs span {1 / scale:.3f} times the distances that '
                'the map finds between them; give poses in metres, or none')
    consensus = agree(given, found, limit, depth)
    share = 0.0 if consensus is None else float(consensus.agrees.sum() / len(localized))
    numbers |= {'localized': len(localized), 'agreeing': share}
    if consensus is not None and consensus.agrees.sum() >= FEWEST and share >= config.agreeing:
        placed = [moved_by(consensus.map_from_given, image) for image in images]
        return Placement(placed, {}, 'aligned', consensus.map_from_given, {
            **numbers, 'residual_m': consensus.metres, 'residual_rad': consensus.radians})
    carried = carry(given, found, limit, config.carried)
    if sum(pose is not None for pose in carried) < FEWEST:
        raise DataError(
            f'{len(localized)} of {len(images)} photographs were localized in the map, but their '
            'poses contradict one another and the poses given; the photographs show another '
            'place, or their poses are of other photographs')
    return Placement(
        [replace(image, map_from_camera=pose) for image, pose in zip(images, carried)
         if pose is not None],
        {image.name: 'no photograph near it along the way was localized'
         for image, pose in zip(images, carried) if pose is None}, 'carried', None, numbers)


def moved_by(map_from_given: np.ndarray, image: PosedImage) -> PosedImage:
    """Give a photograph its pose in the map's frame."""
    return replace(image, map_from_camera=map_from_given @ image.map_from_camera)


def _by_localization(
    images: Sequence[PosedImage], found: Sequence[np.ndarray | None], reasons: Sequence[str],
) -> Placement:
    return Placement(
        [replace(image, map_from_camera=pose) for image, pose in zip(images, found)
         if pose is not None],
        {image.name: reason or 'the judge of the map does not believe its pose'
         for image, pose, reason in zip(images, found, reasons) if pose is None}, 'localized',
        numbers={'localized': sum(pose is not None for pose in found)})


def _commonest(reasons: Sequence[str]) -> str:
    named = [reason for reason in reasons if reason]
    return max(named, key=named.count) if named else 'the judge of the map believes no pose'


def scale_of(
    given: np.ndarray, found: Sequence[np.ndarray | None], limit: tuple[float, float],
) -> float | None:
    """Give metres of the map per unit of given poses (n, 4, 4): the median over pairs.

    Pairs count whose distance in the map is well above the errors; None if there are too few.
    """
    chosen = [k for k, pose in enumerate(found) if pose is not None]
    here = np.stack([found[k][:3, 3] for k in chosen])
    there = given[chosen, :3, 3]
    i, j = np.triu_indices(len(chosen), 1)
    apart = np.linalg.norm(here[i] - here[j], axis=1)
    unit = np.linalg.norm(there[i] - there[j], axis=1)
    far = (apart > _LEAST_BASELINE * limit[0]) & (unit > 0)
    return float(np.median(apart[far] / unit[far])) if far.sum() >= FEWEST else None


def agree(
    given: np.ndarray, found: Sequence[np.ndarray | None], limit: tuple[float, float],
    depth: float,
) -> Consensus | None:
    """Find the rigid motion of given poses (n, 4, 4) that most of the localized agree with.

    Every localized photograph proposes one; the best is fitted to those within the limit, metres
    and radians; depth: metres to what cameras see. None if nothing was localized.
    """
    chosen = [k for k, pose in enumerate(found) if pose is not None]
    if not chosen:
        return None
    proposals = [found[k] @ inverse(given[k]) for k in chosen]
    best = max((_agreeing(motion, given, found, limit) for motion in proposals),
               key=lambda agrees: agrees.sum())
    motion, weights = proposals[0], np.ones(int(best.sum()))
    for _ in range(_ROUNDS):
        there = [found[k] for k in np.flatnonzero(best)]
        motion = _fit(given[best], there, weights, depth)
        errors = np.array([distance(motion @ own, pose) for own, pose in zip(given[best], there)])
        # Cauchy's weights: a localization that is within the limit may still be a poor one.
        size = np.hypot(*(errors / limit).T)
        weights = 1 / (1 + (size / max(float(np.median(size)), 1e-9)) ** 2)
    return Consensus(motion, best, *np.median(errors, axis=0).tolist())


def _agreeing(
    motion: np.ndarray, given: np.ndarray, found: Sequence[np.ndarray | None],
    limit: tuple[float, float],
) -> np.ndarray:
    return np.array([pose is not None and all(
        error <= most for error, most in zip(distance(motion @ own, pose), limit))
        for own, pose in zip(given, found)])


def _fit(
    given: np.ndarray, found: list[np.ndarray], weights: np.ndarray, depth: float,
) -> np.ndarray:
    """Fit a rigid motion (4, 4) to pairs of poses: to centres and what lies before the cameras.

    A pose from matches errs in place and in heading together, such that what it sees stays where
    it is; so what a camera sees at the depth of the scene is known better than its axes.
    """
    view = depth * _CORNERS

    def points(poses: np.ndarray) -> torch.Tensor:
        seen = poses[:, :3, :3] @ view + poses[:, :3, 3:]
        return torch.from_numpy(seen.transpose(0, 2, 1).reshape(-1, 3))

    fitted = align(points(np.asarray(given)), points(np.stack(found)),
                   torch.from_numpy(weights.repeat(view.shape[1])))
    motion = np.eye(4)
    motion[:3, :3], motion[:3, 3] = fitted.rotation.numpy(), fitted.translation.numpy()
    return motion


def carry(
    given: np.ndarray, found: Sequence[np.ndarray | None], limit: tuple[float, float], most: int,
) -> list[np.ndarray | None]:
    """Carry localized poses along given ones (n, 4, 4) that drift; the order is that of the way.

    A localized pose counts if the given motion to a localized neighbour confirms it. Between two
    that count, the poses carried on from both are mixed by nearness; beyond `most` photographs
    from any there is none.
    """
    localized = [k for k, pose in enumerate(found) if pose is not None]

    def confirmed(k: int, j: int) -> bool:
        moved = found[k] @ inverse(given[k]) @ given[j]
        return all(error <= bound for error, bound in zip(distance(moved, found[j]), limit))

    trusted = [k for n, k in enumerate(localized) if any(
        confirmed(k, j) for j in localized[max(n - 2, 0):n + 3] if j != k)]
    result = []
    for k in range(len(given)):
        before = [j for j in trusted if j <= k and k - j <= most][-1:]
        after = [j for j in trusted if j > k and j - k <= most][:1]
        near = before if before == [k] else before + after
        carried = [found[j] @ inverse(given[j]) @ given[k] for j in near]
        if len(carried) == 2:
            part = (k - near[0]) / (near[1] - near[0])
            result.append(_between(*carried, part))
        else:
            result.append(carried[0] if carried else None)
    return result


def _between(first: np.ndarray, second: np.ndarray, part: float) -> np.ndarray:
    return interpolate(torch.from_numpy(first), torch.from_numpy(second),
                       torch.tensor(part, dtype=torch.float64)).numpy()

