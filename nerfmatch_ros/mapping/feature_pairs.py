"""Which photographs show the same things: pairs proposed by pose, way and appearance, verified.

A pair is believed when many of its matched keypoints agree with one relative pose. That needs no
map: where a robot comes back to a place, appearance proposes the pair whatever the odometry says.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math

from nerfmatch_ros.mapping.features import Features, match_features
from nerfmatch_ros.mapping.relative_pose import relative_pose
from nerfmatch_ros.mapping.sparse_points import neighbour_pairs
from nerfmatch_ros.retrieval import describe, fit_words
from nerfmatch_ros.retrieval import nearest as most_similar
import numpy as np
import torch

_WORDS = 128
_WORDS_FROM = 12000  # descriptors that the words are fitted to
_SHARPNESS = 60.0  # of assigning a descriptor to words; cosines of SIFT differ by hundredths


@dataclass(frozen=True)
class PairConfig:
    """How pairs are proposed and when they are believed."""

    all_up_to: int = 24  # images; so few are all compared with one another
    by_pose: int = 8  # neighbours of each image among the rough poses
    max_view_angle: float = math.radians(50)  # between neighbours by pose
    along_way: tuple[int, ...] = (1, 2, 4, 8)  # frames ahead that each frame is compared with
    by_appearance: int = 5  # most similar images that neither pose nor way proposed
    ratio: float = 0.85  # of the distances to the best and second-best descriptor, at most
    max_error: float = 2.0  # pixels from the epipolar plane
    min_inliers: int = 15  # matches that agree, at least


@dataclass(frozen=True, eq=False)
class ImagePair:
    """Two photographs that show the same things."""

    first: int  # index of the image
    second: int
    matches: np.ndarray  # (N, 2) rows of the two images' `Features.pixels`
    similarity: np.ndarray  # (N,)
    rotation: np.ndarray  # (3, 3) first_from_second
    direction: np.ndarray  # (3,) to the second camera, in the first camera's axes


def propose_pairs(
    poses: np.ndarray | None, sequence: np.ndarray | None, features: Sequence[Features],
    config: PairConfig,
) -> list[tuple[int, int]]:
    """Give pairs (i, j), i < j, of images worth comparing.

    poses: (K, 4, 4) map_from_camera, rough; sequence: (K,) images in the order of the way.
    """
    count = len(features)
    if count <= config.all_up_to:
        return [(i, j) for i in range(count) for j in range(i + 1, count)]
    pairs = set()
    if poses is not None:
        pairs.update(neighbour_pairs(poses, config.by_pose, config.max_view_angle))
    if sequence is not None:
        for ahead in config.along_way:
            pairs.update((min(i, j), max(i, j)) for i, j in zip(
                sequence[:-ahead].tolist(), sequence[ahead:].tolist()))
    pairs.update(similar_pairs(features, config.by_appearance, pairs))
    return sorted(pairs)


def near_pairs(
    poses: np.ndarray, sequence: np.ndarray | None, drifts: bool, config: PairConfig,
) -> set[tuple[int, int]]:
    """Give the pairs (i, j), i < j, whose places are near by what is known without pictures.

    Along the way frames are near; by their poses (K, 4, 4) the nearest are, too, unless these
    drift (`drifts`) and the way between the two is long.
    """
    near = set()
    if sequence is not None:
        for ahead in range(1, max(config.along_way) + 1):
            near.update((min(i, j), max(i, j)) for i, j in zip(
                sequence[:-ahead].tolist(), sequence[ahead:].tolist()))
    distance = np.linalg.norm(poses[:, None, :3, 3] - poses[None, :, :3, 3], axis=-1)
    turn = np.arccos(np.clip(poses[:, :3, 2] @ poses[:, :3, 2].T, -1, 1))
    distance[turn > config.max_view_angle] = np.inf
    np.fill_diagonal(distance, np.inf)
    if drifts:
        place = np.argsort(sequence)
        distance[abs(place[:, None] - place) > 2 * max(config.along_way)] = np.inf
    nearest = np.argsort(distance, axis=1, kind='stable')[:, :config.by_pose]
    near.update((min(i, j), max(i, j)) for i, row in enumerate(nearest.tolist()) for j in row
                if np.isfinite(distance[i, j]))
    return near


def similar_pairs(
    features: Sequence[Features], most: int, known: set[tuple[int, int]],
) -> set[tuple[int, int]]:
    """Give for each image the `most` images that look like it most, but for known pairs (i, j).

    Images are compared by how their descriptors distribute over words, as the map's own retrieval
    does it (see `nerfmatch_ros.retrieval`); before there is a map the words are SIFT's.
    """
    described = [k for k, f in enumerate(features) if len(f.descriptors)]
    if most < 1 or len(described) < 2:
        return set()
    every = torch.cat([features[k].descriptors for k in described])
    chosen = torch.from_numpy(np.random.default_rng(0).permutation(len(every))[:_WORDS_FROM])
    words = fit_words(every[chosen], _WORDS)
    table = torch.stack([describe(features[k].descriptors, words, _SHARPNESS) for k in described])
    # Words that every image has tell nothing.
    table = torch.nn.functional.normalize(table - table.mean(0), dim=-1)
    pairs = set()
    for row, i in enumerate(described):
        ranked = (described[n] for n in most_similar(table[row], table, len(table))[0].tolist())
        new = (pair for pair in ((min(i, j), max(i, j)) for j in ranked if j != i)
               if pair not in known)
        pairs.update(pair for pair, _ in zip(new, range(most)))
    return pairs


def verify_pairs(
    features: Sequence[Features], proposed: Sequence[tuple[int, int]], config: PairConfig,
    report: Callable[[float], None] = lambda done: None,
) -> list[ImagePair]:
    """Match the keypoints of proposed pairs; give those that one relative pose explains."""
    verified = []
    for number, (i, j) in enumerate(proposed):
        report(number / len(proposed))
        matches, similarity = match_features(features[i], features[j], config.ratio)
        a, b = matches.T
        found = relative_pose(
            features[i].rays[a], features[j].rays[b], features[i].pixel_angle[a],
            features[j].pixel_angle[b], max_error=config.max_error,
            min_inliers=config.min_inliers)
        if found is not None:
            verified.append(ImagePair(i, j, matches[found.inliers], similarity[found.inliers],
                                      found.rotation, found.direction))
    return verified
