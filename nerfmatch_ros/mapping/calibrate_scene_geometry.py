"""Measuring how far scene geometry is off, and what its mistakes look like.

A network answers any picture with some pose. Views that it did not learn say how its right answers
look: photographs kept from training, as they are and made harder, and what the map's field shows
from new places. The same photographs in pieces, upside down, mirrored or mixed show places that do
not exist, and say how its answers to pictures from elsewhere look.

A photograph kept from training has neighbours that were learned, a view from a new place has none:
the covariance comes from the latter where there are any.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import math

import cv2
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.localization.geometry_pose import GeometryPose
from nerfmatch_ros.localization.geometry_trust import (
    fit_trust,
    GeometryCalibration,
    traits_of,
    TRUSTED,
)
from nerfmatch_ros.localization.rigid_motion import distance
from nerfmatch_ros.localization.scene_geometry_localizer import GeometryReader
from nerfmatch_ros.mapping.geometry_covariance import fit_covariance
from nerfmatch_ros.mapping.picture_variations import vary
from nerfmatch_ros.mapping.rendered_views import views_to_measure
from nerfmatch_ros.scene_geometry import SceneGeometry
from nerfmatch_ros.scene_map import SceneMap
import numpy as np

HARDER = ('plain', 'noise', 'blur', 'dark', 'occluded')  # of the place, as cameras see it
NO_PLACE = ('pieces', 'mirrored', 'upside down', 'mixed', 'blotches')
_RENDERED = 0.8  # of the time, for rendering
_FEWEST_TURNS = 36  # of all photographs together; fewer teach too little of what is no place
_FEWEST_VIEWS = 8  # that count, for a covariance of their kind alone


@dataclass(frozen=True)
class GeometryCalibrationConfig:
    """What counts as right, and how much is tried."""

    limit_share: float = 0.1  # of the scene's extent
    limit_degrees: float = 10.0
    variations: int = 3  # of each photograph and kind; more of few photographs
    new_views: int = 40  # that the field renders from new places; none without a field
    seed: int = 0

    def __post_init__(self):
        """Refuse values that nothing can be measured with."""
        for name in ('limit_share', 'limit_degrees', 'variations'):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f'scene geometry calibration: {name} is {getattr(self, name)}; '
                                  'give a positive number')
        if self.new_views < 0:
            raise ConfigError(f'scene geometry calibration: new_views is {self.new_views}; '
                              'give 0 or more')


def calibrate_with_map(
    scene_map: SceneMap, network: SceneGeometry, held_out: Sequence[PosedImage],
    config: GeometryCalibrationConfig | None = None, *,
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> GeometryCalibration:
    """Calibrate with photographs and with what the field of a map shows from new places."""
    config = config or GeometryCalibrationConfig()
    new_views = views_to_measure(
        scene_map, network, config.new_views if held_out else 0, seed=config.seed,
        report=lambda done, numbers: report(_RENDERED * done, numbers))
    return calibrate_scene_geometry(
        network, held_out, config, new_views=new_views,
        report=lambda done, numbers: report(_RENDERED + (1 - _RENDERED) * done, numbers))


def calibrate_scene_geometry(
    network: SceneGeometry, held_out: Sequence[PosedImage],
    config: GeometryCalibrationConfig | None = None, *, new_views: Sequence[PosedImage] = (),
    report: Callable[[float, dict], None] = lambda progress, numbers: None,
) -> GeometryCalibration:
    """Learn from views that a network was not trained on how much to trust it.

    network: on its device, for inference; held_out: posed photographs; new_views: of the field,
    `rendered_views.views_to_measure`.
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
    limits = (config.limit_share * float(network.extent), math.radians(config.limit_degrees))
    here, elsewhere = [], []
    turns = max(config.variations, math.ceil(_FEWEST_TURNS / len(held_out)))
    for number, image in enumerate(held_out):
        random = np.random.default_rng((config.seed, number))
        for turn in range(turns):
            others = [held_out[k].rgb() for k in random.integers(len(held_out), size=3)]
            for kind in HARDER if turn else HARDER[:1]:
                picture = vary(image.rgb(), kind, random.uniform(), others, random)
                here.append((reader.look(_query(image, picture)), image.map_from_camera))
            for kind in NO_PLACE:
                picture = no_place(image.rgb(), kind, others, random)
                elsewhere.append(reader.look(_query(image, picture)))
        report((number + 1) / len(held_out), {'poses': len(here) + len(elsewhere)})
    new = [(reader.look(view), view.map_from_camera) for view in new_views]
    evidence = [(found.evidence, _is_right(found, truth, limits))
                for found, truth in (*here, *new) if found.evidence is not None]
    evidence += [(found.evidence, False) for found in elsewhere if found.evidence is not None]
    if not evidence:
        raise DataError('the network gave no pose for any photograph; train it for longer')
    model = fit_trust(*zip(*evidence, strict=True))
    trusted = [[(found, truth) for found, truth in views if found.evidence is not None
                and model.probability(traits_of(found.evidence)) >= TRUSTED]
               for views in (new, here)]
    chosen = next((views for views in trusted if len(views) >= _FEWEST_VIEWS), sum(trusted, []))
    poses, truths = zip(*chosen, strict=True) if chosen else ((), ())
    return GeometryCalibration(*fit_covariance(poses, truths, limits), *limits, model)


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


def _is_right(found: GeometryPose, truth: np.ndarray, limits: tuple[float, float]) -> bool:
    """Tell whether a pose is within limits, metres and radians, of the true one."""
    metres, radians = distance(found.map_from_camera, truth)
    return metres <= limits[0] and radians <= limits[1]
