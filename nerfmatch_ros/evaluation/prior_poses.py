"""The rough poses that a tracked localization starts from in a measurement.

Where the images are a drive, the pose of the image before; elsewhere the true pose, moved by a
fixed amount in a random direction. The estimator gets this pose and nothing else of the truth.
"""

from collections.abc import Sequence
import math
import zlib

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.evaluation.refinement_bench import perturbed
from nerfmatch_ros.geometry.pose import pose_distance
import numpy as np
import torch

MOVED = (0.02, 1.0)  # metres and degrees, where there is no drive
# Images are a drive if the median step between them is shorter: share of the map's extent, degrees
DRIVE_STEP = (0.03, 5.0)

IMAGE_BEFORE = 'the true pose of the image before'
NEAR_TRUTH = (f'the true pose moved by {100 * MOVED[0]:g} cm and turned by {MOVED[1]:g} degree in '
              'random directions, the same in every run')


def is_drive(images: Sequence[PosedImage], extent: float) -> bool:
    """Tell whether images in their order were taken on the way; extent: metres, of the map."""
    if len(images) < 2:
        return False
    steps = np.array([
        [float(part) for part in pose_distance(torch.from_numpy(image.map_from_camera),
                                               torch.from_numpy(before.map_from_camera))]
        for before, image in zip(images[:-1], images[1:])])
    metres, radians = np.median(steps, axis=0)
    return bool(metres <= DRIVE_STEP[0] * extent and math.degrees(radians) <= DRIVE_STEP[1])


def prior_poses(images: Sequence[PosedImage], extent: float) -> tuple[list[np.ndarray], str]:
    """Give the prior (4, 4) of each image, and what it is in words.

    images: all there are, in their order, with their poses; the first image of a drive has none
    before it and gets that of the second.
    """
    if is_drive(images, extent):
        poses = [image.map_from_camera for image in images]
        return [poses[1], *poses[:-1]], IMAGE_BEFORE
    return [perturbed(image.map_from_camera, *MOVED, (0, zlib.crc32(image.name.encode())))
            for image in images], NEAR_TRUTH
