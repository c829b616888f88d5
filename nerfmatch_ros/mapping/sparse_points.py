"""Sparse points of a scene, triangulated from photographs whose poses are known.

They tell a scene's extent, and supervise the depth of a radiance field while it is trained (as in
DS-NeRF, Deng et al., CVPR 2022). Everything is measured on rays, so any camera model works.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import DataError
import numpy as np
import torch
from torch import Tensor

_ROUNDS = 4  # of fitting points and dropping observations that do not fit
_RIDGE = 1e-9  # keeps the normal matrix of parallel rays invertible; they are dropped later


@dataclass(frozen=True, eq=False)
class SparsePoints:
    """P points and their M observations, sorted by point and then by image."""

    points: np.ndarray  # (P, 3) float64, map frame, metres
    reprojection_error: np.ndarray  # (P,) rms over the observations, pixels
    angle: np.ndarray  # (P,) largest angle between two of the point's rays, radians
    image_index: np.ndarray  # (M,) int64, position in the list of images
    pixel: np.ndarray  # (M, 2) float64, pixels of the full-size image
    point_index: np.ndarray  # (M,) int64, row of `points`


def no_points() -> SparsePoints:
    """Give what is known of a scene before anything was triangulated."""
    return SparsePoints(np.zeros((0, 3)), np.zeros(0), np.zeros(0), np.zeros(0, np.int64),
                        np.zeros((0, 2)), np.zeros(0, np.int64))


@dataclass(frozen=True)
class _Features:
    """Keypoints of one image; one place may have several descriptors (orientations)."""

    pixels: np.ndarray  # (N, 2) distinct places, full-size pixels
    rays: np.ndarray  # (N, 3) unit directions in the map frame
    pixel_angle: np.ndarray  # (N,) radians that one pixel spans here
    descriptors: Tensor  # (D, 128) unit length
    place: np.ndarray  # (D,) row of `pixels`


def triangulate(
    images: Sequence[PosedImage], *, max_features: int = 1500, neighbours: int = 8,
    detection_side: int = 1000, max_view_angle: float = math.radians(50), ratio: float = 0.85,
    max_error: float = 2.0, min_angle: float = math.radians(1.5), min_observations: int = 3,
) -> SparsePoints:
    """Match SIFT features between neighbouring photographs and intersect their rays.

    max_features: per image
    neighbours: images each image is matched with
    detection_side: pixels; larger images are scaled down to it for finding features
    max_view_angle: radians between the viewing directions of neighbours
    ratio: of the distances to the best and the second-best descriptor, at most
    max_error: pixels, of each observation
    min_angle: radians, of the two most different rays of a point
    min_observations: of each point, in different images

    Pictures without texture give few or no points, which is no error.
    """
    for image in images:
        if image.map_from_camera is None:
            raise DataError(f"image '{image.name}' has no pose; "
                            'points are triangulated from posed images only')
    features = [_detect(image, max_features, detection_side) for image in images]
    poses = np.array([image.map_from_camera for image in images]).reshape(-1, 4, 4)
    centres = poses[:, :3, 3]
    first_node = np.cumsum([0] + [len(f.pixels) for f in features])
    matches, similarity = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for i, j in neighbour_pairs(poses, neighbours, max_view_angle):
        pair, score = _match(features[i], features[j], ratio)
        fits = _epipolar_error(features[i], features[j], pair, centres[j] - centres[i]) < max_error
        matches.append(pair[fits] + first_node[[i, j]])
        similarity.append(score[fits])
    image_of_node = np.repeat(np.arange(len(images)), np.diff(first_node))
    nodes, track = _tracks(np.concatenate(matches), np.concatenate(similarity), image_of_node)
    rays = _concatenate([f.rays for f in features], 3)[nodes]
    pixel_angle = _concatenate([f.pixel_angle for f in features])[nodes]
    origins = centres[image_of_node[nodes]]
    keep = _fit_robustly(rays, origins, pixel_angle, track, max_error, min_observations)
    nodes, rays, origins, pixel_angle = nodes[keep], rays[keep], origins[keep], pixel_angle[keep]
    track = np.unique(track[keep], return_inverse=True)[1]
    points = _intersect(rays, origins, pixel_angle, track)
    angle = _largest_angle(rays, track)
    square = _errors(points, rays, origins, pixel_angle, track) ** 2
    error = np.sqrt(np.bincount(track, square) / np.bincount(track))
    good = angle > min_angle
    seen = good[track]
    return SparsePoints(
        points=points[good], reprojection_error=error[good], angle=angle[good],
        image_index=image_of_node[nodes[seen]],
        pixel=_concatenate([f.pixels for f in features], 2)[nodes[seen]],
        point_index=(np.cumsum(good) - 1)[track[seen]])


def neighbour_pairs(
    poses: np.ndarray, neighbours: int, max_view_angle: float,
) -> list[tuple[int, int]]:
    """Choose which images (i, j), i < j, to match, from poses (K, 4, 4) `map_from_camera`.

    The candidates of an image look in a similar direction from another place. They are ranked by
    distance, and ranks 1, 2, 4, ... are taken rather than 1, 2, 3, ...: a video then gets wide
    baselines as well as narrow ones, and a few photographs in a ring still get the nearest.
    """
    centres, forward = poses[:, :3, 3], poses[:, :3, 2]
    distance = np.linalg.norm(centres[:, None] - centres[None], axis=-1)
    angle = np.arccos(np.clip(forward @ forward.T, -1, 1))
    same_place = distance <= 1e-4 * distance.max(initial=0)
    usable = (angle < max_view_angle) & ~same_place
    pairs = set()
    for i in range(len(poses)):
        # Turning away by the largest angle counts as much as being three times as far away.
        cost = distance[i] * (1 + 2 * angle[i] / max_view_angle)
        candidates = np.flatnonzero(usable[i])
        ranked = candidates[np.argsort(cost[candidates], kind='stable')]
        farthest = max(neighbours, len(ranked) // 3)
        spread = np.round(np.geomspace(1, farthest, neighbours)).astype(int) - 1
        order = dict.fromkeys([*spread.tolist(), *range(neighbours)])
        for rank in [r for r in order if r < len(ranked)][:neighbours]:
            pairs.add((min(i, int(ranked[rank])), max(i, int(ranked[rank]))))
    return sorted(pairs)


def _detect(image: PosedImage, max_features: int, detection_side: int) -> _Features:
    """Find RootSIFT features (Arandjelovic and Zisserman, CVPR 2012)."""
    camera = image.camera
    grey = cv2.cvtColor(image.rgb(), cv2.COLOR_RGB2GRAY)
    mask = image.valid_mask()
    mask = None if mask is None else mask.astype(np.uint8)
    scale = min(1.0, detection_side / max(grey.shape))
    size = (max(round(camera.width * scale), 1), max(round(camera.height * scale), 1))
    if scale < 1:
        grey = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
        mask = None if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    # Without precise upscaling every keypoint is off by a quarter of a pixel.
    sift = cv2.SIFT_create(nfeatures=max_features, contrastThreshold=0.02,
                           enable_precise_upscale=True)
    keypoints, descriptors = sift.detectAndCompute(grey, mask)
    if not keypoints:
        descriptors = np.zeros((0, 128), np.float32)
    places = np.array([k.pt for k in keypoints], np.float64).reshape(-1, 2)
    ratio = np.array([camera.width, camera.height]) / size
    pixels, place = np.unique((places + 0.5) * ratio - 0.5, axis=0, return_inverse=True)
    rays = camera.rays(torch.from_numpy(pixels)).numpy()
    beside = camera.rays(torch.from_numpy(pixels + 0.5)).numpy()
    descriptors = torch.from_numpy(descriptors)
    descriptors = (descriptors / descriptors.sum(-1, keepdim=True).clamp_min(1e-9)).sqrt()
    return _Features(
        pixels, rays @ image.map_from_camera[:3, :3].T,
        np.linalg.norm(rays - beside, axis=-1) * math.sqrt(2), descriptors, place.reshape(-1))


def _match(first: _Features, second: _Features, ratio: float) -> tuple[np.ndarray, np.ndarray]:
    """Give mutual nearest neighbours that pass the ratio test: pairs of places, similarities."""
    if min(len(first.descriptors), len(second.descriptors)) < 2:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    similarity = first.descriptors @ second.descriptors.T
    best, column = similarity.amax(1), torch.from_numpy(similarity.numpy().argmax(1))
    # This runs for every pair: comparing values is many times faster than argmax along columns.
    here = torch.nonzero(best == similarity.amax(0)[column])[:, 0]
    column, best = column[here], best[here]
    rest = similarity[here]
    rest[torch.arange(len(here)), column] = -1
    next_best = rest.amax(1)
    # Squared distances of unit vectors are 2 - 2 a . b.
    distinct = 1 - best < ratio ** 2 * (1 - next_best)
    pair = np.stack((first.place[here[distinct].numpy()], second.place[column[distinct].numpy()]),
                    axis=-1)
    return pair, best[distinct].numpy().astype(np.float64)


def _epipolar_error(
    first: _Features, second: _Features, pair: np.ndarray, baseline: np.ndarray,
) -> np.ndarray:
    """Give how far (N,), pixels, the rays of matches miss each other's epipolar plane."""
    a, b = first.rays[pair[:, 0]], second.rays[pair[:, 1]]

    def miss(ray: np.ndarray, other: np.ndarray, pixel_angle: np.ndarray) -> np.ndarray:
        normal = np.cross(baseline, other)
        length = np.linalg.norm(normal, axis=-1)
        return np.abs((normal * ray).sum(-1)) / np.maximum(length, 1e-12) / pixel_angle

    return np.maximum(miss(a, b, first.pixel_angle[pair[:, 0]]),
                      miss(b, a, second.pixel_angle[pair[:, 1]]))


def _tracks(
    matches: np.ndarray, similarity: np.ndarray, image_of_node: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Join matches (N, 2) of keypoints to tracks: keypoints (M,) and their track (M,), sorted.

    The most similar are joined first, and a match that would put two keypoints of one image into
    a track is left out: so a wrong match splits off instead of spoiling two tracks.
    """
    nodes, ends = np.unique(matches, return_inverse=True)
    ends = ends.reshape(-1, 2)[np.argsort(-similarity, kind='stable')].tolist()
    parent = list(range(len(nodes)))
    images = [1 << int(k) for k in image_of_node[nodes]]  # of each root, one bit an image

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in ends:
        a, b = root(a), root(b)
        if not images[a] & images[b]:
            parent[b] = a
            images[a] |= images[b]
    track = np.array([root(node) for node in range(len(nodes))], np.int64)
    order = np.lexsort((nodes, track))
    return nodes[order], np.unique(track[order], return_inverse=True)[1]


def _fit_robustly(
    rays: np.ndarray, origins: np.ndarray, pixel_angle: np.ndarray, track: np.ndarray,
    max_error: float, min_observations: int,
) -> np.ndarray:
    """Tell which observations (M,) agree with their point, and their point with enough others."""
    keep = np.ones(len(track), bool)
    count = int(track.max(initial=-1)) + 1
    for round_ in range(_ROUNDS):
        points = _intersect(rays, origins, pixel_angle, track, keep)
        error = _errors(points, rays, origins, pixel_angle, track)
        # The first fits are bent by outliers, so only the worst are dropped then.
        limit = max_error * 2 ** (_ROUNDS - 1 - round_)
        keep = keep & (error < limit)
        enough = np.bincount(track[keep], minlength=count) >= min_observations
        keep = keep & enough[track]
    return keep


def _intersect(
    rays: np.ndarray, origins: np.ndarray, pixel_angle: np.ndarray, track: np.ndarray,
    keep: np.ndarray | None = None,
) -> np.ndarray:
    """Find the points (P, 3) nearest to their rays, in pixels.

    Point x minimises sum (|(I - d d^T)(x - o)| / (z pixel_angle))^2 with direction d, origin o and
    distance z. With z held fixed that is linear; two more steps renew z. (Gauss-Newton also has
    the derivative of z, times the residual, which is only a few pixels.) A Cauchy weight holds
    outliers down.
    """
    count = int(track.max(initial=-1)) + 1
    weight = np.ones(len(track)) if keep is None else keep.astype(np.float64)
    across = np.eye(3) - rays[:, :, None] * rays[:, None, :]
    towards = (across @ origins[:, :, None])[..., 0]
    fixed = weight
    for step in range(4):
        matrix = _sum_by_track(weight[:, None, None] * across, track, count)
        vector = _sum_by_track(weight[:, None] * towards, track, count)
        size = np.maximum(np.trace(matrix, axis1=1, axis2=2), 1e-300)
        matrix = matrix + (_RIDGE * size)[:, None, None] * np.eye(3)
        points = np.linalg.solve(matrix, vector[..., None])[..., 0]
        offset = points[track] - origins
        distance = np.maximum(np.linalg.norm(offset, axis=-1), 1e-9)
        miss = np.linalg.norm((across @ offset[..., None])[..., 0], axis=-1)
        error = miss / (distance * pixel_angle)
        weight = fixed / (distance * pixel_angle) ** 2 / (1 + error ** 2)
    return points


def _sum_by_track(values: np.ndarray, track: np.ndarray, count: int) -> np.ndarray:
    """Sum values (M, ...) over the observations of each of `count` tracks."""
    flat = values.reshape(len(values), math.prod(values.shape[1:]))
    sums = [np.bincount(track, column, minlength=count) for column in flat.T]
    return np.stack(sums, axis=-1).reshape(count, *values.shape[1:])


def _errors(
    points: np.ndarray, rays: np.ndarray, origins: np.ndarray, pixel_angle: np.ndarray,
    track: np.ndarray,
) -> np.ndarray:
    """Give the angle between each ray and its point (M,), in pixels; infinite from behind."""
    offset = points[track] - origins
    along = (offset * rays).sum(-1)
    across = np.linalg.norm(offset - along[:, None] * rays, axis=-1)
    with np.errstate(divide='ignore', invalid='ignore'):
        return np.where(along > 0, across / along / pixel_angle, np.inf)


def _largest_angle(rays: np.ndarray, track: np.ndarray) -> np.ndarray:
    """Give the largest angle (P,), radians, between two rays (M, 3) of a track; tracks sorted.

    Found in two sweeps: the ray farthest from the first ray, then the ray farthest from that one.
    """
    if not len(track):
        return np.zeros(0)
    starts = np.flatnonzero(np.diff(track, prepend=-1))
    end = starts
    for _ in range(2):
        cosine = np.clip((rays * rays[end][track]).sum(-1), -1, 1)
        end = np.lexsort((cosine, track))[starts]
    return np.arccos(cosine[end])


def _concatenate(parts: list[np.ndarray], columns: int | None = None) -> np.ndarray:
    """Join arrays along the first axis; no arrays give an empty one."""
    empty = np.zeros((0,) if columns is None else (0, columns))
    return np.concatenate([empty, *parts])
