"""Localize image files one by one and describe each result in plain values."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
import math
from pathlib import Path
import time
from typing import Any

from nerfmatch_ros.data.photograph import read_photograph
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.localization.absolute_pose import PoseEstimate


def localize_files(
    localizer: Any, paths: Sequence[Path], camera: Camera | None = None, *, track: bool = False,
) -> Iterator[dict]:
    """
    Give one record an image as it is done, ready for JSON.

    localizer: a `Localizer`; camera: of all images, or None to look it up for each; track: look
    for each image first from the pose of the one before.
    """
    # Every file is opened before the first result: a wrong name at the end costs no waiting.
    images = [read_photograph(path, camera, localizer.scene_map.cameras) for path in paths]
    prior = None
    for path, image in zip(paths, images):
        image = replace(image, pixels=image.rgb())  # decoding is no part of the seconds
        start = time.perf_counter()
        estimate = localizer.localize_and_refine(image, prior)
        yield record(str(path), estimate, time.perf_counter() - start)
        prior = estimate.map_from_camera if track else None


def record(name: str, estimate: PoseEstimate, seconds: float) -> dict:
    """Describe an estimate: metres, radians; null where there is no value."""
    found = estimate.map_from_camera is not None
    std = estimate.position_std
    return {
        'name': name,
        'map_from_camera': estimate.map_from_camera.tolist() if found else None,
        'reason': estimate.reason,
        'inliers': estimate.inliers,
        'matches': estimate.matches,
        'probability': estimate.probability if math.isfinite(estimate.probability) else None,
        'position_std_m': float(std) if math.isfinite(std) else None,
        'covariance': None if estimate.covariance is None else estimate.covariance.tolist(),
        'source': estimate.source,
        'seconds': round(seconds, 4),
    }
