"""Keypoints of photographs and their matches: RootSIFT, which needs no training and no scene."""

from dataclasses import dataclass
import math

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Features:
    """Keypoints of one image; one place may have several descriptors (orientations)."""

    pixels: np.ndarray  # (N, 2) float64 distinct places, pixels of the full-size image
    rays: np.ndarray  # (N, 3) float64 unit directions in the camera frame
    pixel_angle: np.ndarray  # (N,) radians that one pixel spans here
    descriptors: Tensor  # (D, 128) float32, unit length
    place: np.ndarray  # (D,) row of `pixels`


def detect_features(
    image: PosedImage, max_features: int = 1500, detection_side: int = 1000,
) -> Features:
    """Find RootSIFT features (Arandjelovic and Zisserman, CVPR 2012) where the mask allows.

    max_features: the strongest, about; detection_side: pixels, larger images are scaled to it.
    """
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
    return Features(
        pixels, rays, np.linalg.norm(rays - beside, axis=-1) * math.sqrt(2), descriptors,
        place.reshape(-1))


def match_features(
    first: Features, second: Features, ratio: float = 0.85,
) -> tuple[np.ndarray, np.ndarray]:
    """Give mutual nearest neighbours that pass the ratio test.

    ratio: of the distances to the best and the second-best descriptor, at most. Returns pairs
    (N, 2) of rows of `pixels`, and their similarities (N,).
    """
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


def join_tracks(
    matches: np.ndarray, similarity: np.ndarray, image_of_node: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Join matches (N, 2) of keypoints to tracks: keypoints (M,) and their track (M,), sorted.

    similarity: (N,); image_of_node: (all keypoints,) index of the image that each belongs to.
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
