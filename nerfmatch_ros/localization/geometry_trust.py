"""How far a pose of scene geometry is to be trusted: its covariance, and whether it counts at all.

A network answers any picture with some pose. What it says of map and camera agrees in a picture of
the place and less so in others; a logistic model of that agreement, fitted to held-out photographs
and to pictures that show no place, tells the two apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
import math
from typing import Any

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.geometry_pose import (
    covariance_with,
    GeometryEvidence,
    GeometryPose,
)
from nerfmatch_ros.localization.logistic_model import (
    fit_model,
    LogisticModel,
    model_values,
    read_model,
    Trait,
)
import numpy as np

SOURCE = 'scene geometry'  # of a PoseEstimate
# Probability from which on a pose counts; a wrong one costs more than one that is missing.
TRUSTED = 0.7
# Of the points' spread, that map and camera may contradict each other by in a map whose network
# was never measured.
_LARGEST_RESIDUAL = 0.5
_UNMEASURED_COMMON = (0.1, math.radians(10.0))  # of the spread, radians: what cells err together
_TRAITS = (
    Trait('residual_share', 1e-4, 10.0, -1),
    Trait('off_ray', 1e-5, 4.0, -1),
    Trait('mean_weight', 1e-4, 1.0, 1, monotone=False),
    Trait('effective_share', 1e-3, 1.0, 1, monotone=False),
    Trait('spread', 1e-4, 1e5, 1, monotone=False),
    Trait('position_std', 1e-6, 1e4, -1),
    Trait('rotation_std', 1e-6, 4.0, -1),
)
_NUMBERS = ('covariance_scale', 'common_m', 'common_rad', 'limit_m', 'limit_rad')


@dataclass(frozen=True)
class GeometryCalibration:
    """Measured on views that the network did not learn, and on pictures of no place."""

    covariance_scale: float  # factor on the covariance of independent cells
    common_m: float  # metres, std along each axis of what all cells are shifted by together
    common_rad: float  # radians, std about each axis of what they are turned by about their middle
    limit_m: float  # metres; the model calls a pose right within this
    limit_rad: float  # radians, the same for the rotation
    model: LogisticModel

    def __post_init__(self):
        """Refuse factors and limits that are not positive."""
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) \
                    or not (math.isfinite(value) and value > 0):
                raise ConfigError(f'scene_geometry.calibration.{name} is {value!r}; '
                                  'it must be a positive number')

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for YAML."""
        return {**{name: float(getattr(self, name)) for name in _NUMBERS},
                'model': model_values(self.model, _TRAITS)}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> 'GeometryCalibration | None':
        """Read plain values, None for {}; ConfigError names what is wrong with them."""
        if not values:
            return None
        where, names = 'scene_geometry.calibration', [
            field.name for field in fields(GeometryCalibration)]
        if sorted(values, key=str) != sorted(names):
            raise ConfigError(f'{where} holds {sorted(map(str, values))}; it needs exactly '
                              f'{", ".join(names)}. Measure it again with `nerfmatch '
                              'train-scene-geometry`')
        return GeometryCalibration(
            **{name: values[name] for name in _NUMBERS},
            model=read_model(_TRAITS, values['model'], f'{where}.model'))


@dataclass(frozen=True)
class GeometryTrust:
    """Makes an estimate of what a network sees; without a calibration it is careful."""

    calibration: GeometryCalibration | None

    def probability(self, evidence: GeometryEvidence | None) -> float:
        """Give the probability that a pose is right; 0 without one, nan without a calibration."""
        if evidence is None:
            return 0.0
        if self.calibration is None:
            return math.nan
        return self.calibration.model.probability(traits_of(evidence))

    def doubt(self, evidence: GeometryEvidence) -> str:
        """Say why a pose does not count, '' where it does."""
        if self.calibration is None:
            if evidence.residual_share <= _LARGEST_RESIDUAL:
                return ''
            return (f'the network is not sure: what it sees in the map and in the camera differs '
                    f'by {evidence.residual:.3g} m, {evidence.residual_share:.0%} of its size')
        if self.probability(evidence) >= TRUSTED:
            return ''
        return (f'the network is not sure that the pose is within {self.calibration.limit_m:.3g} '
                f'm and {math.degrees(self.calibration.limit_rad):.3g} degrees')

    def estimate(self, found: GeometryPose, camera: Camera, cells: int) -> PoseEstimate:
        """Give what a localizer answers: the pose, or why there is none.

        cells: of the picture; they count as matches, those that bear the pose as inliers.
        camera: of the photograph, whose pixels the reprojection error is in.
        """
        evidence = found.evidence
        if evidence is None:
            return PoseEstimate(None, found.reason, None, 0, cells, math.nan, probability=0.0,
                                source=SOURCE)
        bearing, reason = round(evidence.effective_share * cells), self.doubt(evidence)
        probability = self.probability(evidence)
        if reason:
            return PoseEstimate(None, reason, None, bearing, cells, math.nan,
                                probability=probability, source=SOURCE)
        return PoseEstimate(
            found.map_from_camera, '', self._covariance(found), bearing, cells,
            math.tan(min(evidence.off_ray, 1.5)) * camera.fx, probability=probability,
            source=SOURCE)

    def _covariance(self, found: GeometryPose) -> np.ndarray:
        known = self.calibration
        if known is None:
            share, radians = _UNMEASURED_COMMON
            return covariance_with(found, 1.0, share * found.evidence.spread, radians)
        return covariance_with(found, known.covariance_scale, known.common_m, known.common_rad)


def traits_of(evidence: GeometryEvidence) -> np.ndarray:
    """Give the traits (k,) of evidence as the model sees them."""
    return np.array([trait.value(evidence) for trait in _TRAITS])


def fit_trust(evidence: Sequence[GeometryEvidence], right: Sequence[bool]) -> LogisticModel:
    """Fit the model to poses of which it is known whether they are right."""
    return fit_model(_TRAITS, [(traits_of(piece), bool(verdict))
                               for piece, verdict in zip(evidence, right, strict=True)])
