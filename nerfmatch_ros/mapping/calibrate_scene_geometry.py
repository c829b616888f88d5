"""Measuring how far scene geometry is off, and what its mistakes look like.

A network answers any picture with some pose. Photographs that it did not learn, as they are and
made harder, say how its right answers look; the same photographs in pieces, upside down, mirrored
or mixed show places that do not exist, and say how its answers to pictures from elsewhere look.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import math

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.localization.absolute_pose import floored
from nerfmatch_ros.localization.geometry_pose import GeometryPose
from nerfmatch_ros.localization.geometry_trust import fit_trust, GeometryCalibration
from nerfmatch_ros.localization.rigid_motion import difference, distance
from nerfmatch_ros.localization.scene_geometry_localizer import GeometryReader
from nerfmatch_ros.mapping.picture_variations import vary
from nerfmatch_ros.scene_geometry import SceneGeometry
import numpy as np
from scipy.stats import chi2

HARDER = ('plain', 'noise', 'blur', 'dark', 'occluded')  # of the place, as cameras see it
NO_PLACE = ('pieces', 'mirrored', 'upside down', 'mixed', 'blotches')
_PREDICTED_NEES = float(chi2.median(6))  # of an honest covariance of a pose
_SCALE_LIMITS = (1.0, 1e5)  # of the covariance scale


@dataclass(frozen=True)
class GeometryCalibrationConfig:
    """What counts as right, and how much is tried."""

    limit_share: float = 0.1  # of the scene's extent
    limit_degrees: float = 10.0
    variations: int = 3  # of each photograph and kind
    seed: int = 0

    def __post_init__(self):
        """Refuse values that nothing can be measured with."""
        for name in ('limit_share', 'limit_degrees', 'variations'):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f'scene geometry calibration: {name} is {getattr(self, name)}; '
                                  'give a positive number')


def calibrate_scene_geometry(
    network: SceneGeometry, held_out: Sequence[PosedImage],
    config: GeometryCalibrationConfig | None = None, *,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> GeometryCalibration:
    """Learn from held-out photographs how much to trust a network.

    network: on its device, for inference; held_out: posed photographs that it was not trained on.
    report: called with the share that is done, and figures. Raises DataError without photographs.
    """
    config = config or GeometryCalibrationConfig()
    if not held_out:
        raise DataError('no photographs were kept from the training of scene geometry to measure '
                        'it with; keep at least one')
    for image in held_out:
        if image.map_from_camera is None:
            raise DataError(f'{image.name} has no pose; scene geometry is measured with posed '
                            'photographs')
    reader = GeometryReader(network)
    limit = (config.limit_share * float(network.extent), math.radians(config.limit_degrees))
    evidence, right, nees = [], [], []
    for number, image in enumerate(held_out):
        random = np.random.default_rng((config.seed, number))
        for turn in range(config.variations):
            others = [held_out[k].rgb() for k in random.integers(len(held_out), size=3)]
            for kind in HARDER if turn else HARDER[:1]:
                picture = vary(image.rgb(), kind, random.uniform(), others, random)
                found = reader.look(_query(image, picture))
                if found.map_from_camera is None:
                    continue
                errors = distance(found.map_from_camera, image.map_from_camera)
                evidence.append(found.evidence)
                right.append(errors[0] <= limit[0] and errors[1] <= limit[1])
                if right[-1]:
                    nees.append(_nees(found, image.map_from_camera))
            for kind in NO_PLACE:
                picture = no_place(image.rgb(), kind, others, random)
                found = reader.look(_query(image, picture))
                if found.map_from_camera is not None:
                    evidence.append(found.evidence)
                    right.append(False)
        report((number + 1) / len(held_out), {'poses': len(right), 'right': sum(right)})
    if not evidence:
        raise DataError('the network gave no pose for any photograph; train it for longer')
    scale = np.median(nees) / _PREDICTED_NEES if nees else _SCALE_LIMITS[1]
    return GeometryCalibration(
        float(np.clip(scale, *_SCALE_LIMITS)), *limit, fit_trust(evidence, right))


def no_place(
    picture: np.ndarray, kind: str, others: Sequence[np.ndarray], random: np.random.Generator,
) -> np.ndarray:
    """Make of a photograph (H, W, 3) uint8 a picture of a place that does not exist.

    kind: one of NO_PLACE; others: photographs of the same place, for 'mixed'.
    """
    height, width = picture.shape[:2]
    if kind == 'mirrored':
        return np.ascontiguousarray(picture[:, ::-1])
    if kind == 'upside down':
        return np.ascontiguousarray(picture[::-1])
    if kind == 'blotches':  # colours of the place, nothing of its forms
        cells = random.integers(3, 12)
        colours = picture.reshape(-1, 3)[random.integers(height * width, size=cells * cells)]
        return cv2.resize(colours.reshape(cells, cells, 3), (width, height),
                          interpolation=cv2.INTER_CUBIC)
    parts = int(random.integers(2, 5))
    rows = np.linspace(0, height, parts + 1).astype(int)
    columns = np.linspace(0, width, parts + 1).astype(int)
    sources = [picture] if kind == 'pieces' else [
        cv2.resize(other, (width, height)) for other in others]
    order, made = random.permutation(parts * parts), np.empty_like(picture)
    for place, origin in enumerate(order):
        source = sources[place % len(sources)]
        (i, j), (k, m) = divmod(place, parts), divmod(int(origin), parts)
        piece = source[rows[k]:rows[k + 1], columns[m]:columns[m + 1]]
        if random.random() < 0.5:
            piece = piece[:, ::-1]
        made[rows[i]:rows[i + 1], columns[j]:columns[j + 1]] = cv2.resize(
            piece, (columns[j + 1] - columns[j], rows[i + 1] - rows[i]))
    return made


def _query(image: PosedImage, picture: np.ndarray) -> PosedImage:
    """Give another picture of the same camera, without the pose."""
    return replace(image, pixels=np.ascontiguousarray(picture), path=None, map_from_camera=None,
                   depth=None, depth_path=None)


def _nees(found: GeometryPose, truth: np.ndarray) -> float:
    delta = difference(found.map_from_camera, truth)
    return float(delta @ np.linalg.solve(floored(found.covariance), delta))
