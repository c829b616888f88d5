"""How likely is a pose correct? A logistic model on what its estimation left as evidence.

Two models: one for poses from matches alone ('fast'), one for poses that were aligned with the
photograph as well ('refined'). `logistic_model` says what such a model is.

Letters: k = traits of the evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import Any

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.logistic_model import (
    checked_mapping,
    fit_model,
    LogisticModel,
    model_values,
    read_model,
    Trait,
)
from nerfmatch_ros.localization.rigid_motion import distance
import numpy as np

INDOOR_EXTENT = 10.0  # metres; maps below count as indoor
INDOOR_LIMIT = (0.05, math.radians(5))  # metres, radians
OUTDOOR_LIMIT = (0.01, math.radians(1))  # share of the map's extent, radians


@dataclass(frozen=True)
class PhotometricEvidence:
    """What aligning the field's picture with the photograph tells about a pose."""

    residual: float  # robust colour difference after the alignment, colours in [0, 1]
    residual_ratio: float  # the same divided by that before
    correlation: float  # of rendered and seen colours, -1 to 1
    overlap: float  # share of the rendered points that lie in the photograph
    agreement_m: float  # metres between the pose from matches and the aligned one
    agreement_rad: float  # radians between the two

    @property
    def decorrelation(self) -> float:
        """Give what is missing to perfect correlation, 0 to 2."""
        return 1 - self.correlation


@dataclass(frozen=True)
class Evidence:
    """What the estimation of one pose tells about its being right."""

    inliers: int
    inlier_ratio: float  # inliers / matches
    reprojection_error: float  # working pixels, rms over the inliers
    position_std: float  # metres, along the least certain axis, of the unscaled covariance
    rotation_std: float  # radians, the same for the rotation
    photometric: PhotometricEvidence | None = None  # None: matches alone made the pose


_MATCH_TRAITS = (
    Trait('inliers', 1.0, 1e5, 1),
    Trait('inlier_ratio', 1e-3, 1.0, 1),
    Trait('reprojection_error', 0.05, 100.0, -1),
    Trait('position_std', 1e-5, 1e3, -1),
    Trait('rotation_std', 1e-6, 4.0, -1),
)
_PHOTOMETRIC_TRAITS = (
    Trait('residual', 1e-3, 1.0, -1),
    # A large gain is a bad start made good, or a good start spoilt.
    Trait('residual_ratio', 0.01, 100.0, -1, monotone=False),
    Trait('decorrelation', 1e-3, 2.0, -1),
    Trait('overlap', 1e-3, 1.0, 1),
    Trait('agreement_m', 1e-3, 1e3, -1),
    Trait('agreement_rad', 3e-4, 4.0, -1),
)
_TRAITS = {'fast': _MATCH_TRAITS, 'refined': _MATCH_TRAITS + _PHOTOMETRIC_TRAITS}
TRAITS = {kind: tuple(trait.name for trait in traits) for kind, traits in _TRAITS.items()}


@dataclass(frozen=True)
class Judge:
    """Tells how likely a pose is correct in one map; a model is None where nothing taught it."""

    fast: LogisticModel | None  # for poses from matches alone
    refined: LogisticModel | None  # for poses with photometric evidence

    def probability(self, evidence: Evidence | None) -> float:
        """Give the probability that the pose is within `judged_threshold` of the truth.

        No evidence is no pose: 0. Without a model for its kind of evidence a refined pose is
        judged by its matches alone; nan where there is no model for that either.
        """
        if self.fast is None and self.refined is None:
            return math.nan
        if evidence is None:
            return 0.0
        if evidence.photometric is not None and self.refined is not None:
            return self.refined.probability(_traits('refined', evidence))
        if self.fast is not None:
            return self.fast.probability(_traits('fast', evidence))
        return math.nan

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for YAML, weights by the name of their trait."""
        models = {'fast': self.fast, 'refined': self.refined}
        return {kind: None if model is None else model_values(model, _TRAITS[kind])
                for kind, model in models.items()}

    @staticmethod
    def from_dict(values: Any, where: str = 'judge') -> 'Judge':
        """Read plain values; ConfigError names what is missing, unknown or impossible."""
        values = checked_mapping(values, ('fast', 'refined'), where)
        return Judge(*(None if values[kind] is None else read_model(
            _TRAITS[kind], values[kind], f'{where}.{kind}') for kind in ('fast', 'refined')))


def judged_threshold(extent: float) -> tuple[float, float]:
    """Give the largest error, metres and radians, of a pose that counts as correct.

    Indoors, in maps of less than 10 m, 5 cm and 5 degrees; else 1 % of the extent and 1 degree.

    extent: metres, diagonal of the bounding box of the map's cameras
    """
    if not (math.isfinite(extent) and extent > 0):
        raise DataError(f'the map has an extent of {extent:g} m; a positive one is needed to say '
                        'which poses are correct')
    if extent < INDOOR_EXTENT:
        return INDOOR_LIMIT
    return OUTDOOR_LIMIT[0] * extent, OUTDOOR_LIMIT[1]


def is_correct(map_from_camera: np.ndarray, truth: np.ndarray, extent: float) -> bool:
    """Say whether a pose (4, 4) is within `judged_threshold` of the true one."""
    metres, radians = distance(np.asarray(map_from_camera), np.asarray(truth))
    limit = judged_threshold(extent)
    return metres <= limit[0] and radians <= limit[1]


def evidence_of(
    estimate: PoseEstimate, *, pixels_per_working_pixel: float, covariance_scale: float,
    views: int = 1, photometric: PhotometricEvidence | None = None,
) -> Evidence | None:
    """Collect the evidence of a pose from matches; None where there is no pose.

    pixels_per_working_pixel: of the photograph that the estimate counts in
    covariance_scale: factor that the estimate's covariance carries
    views: whose matches were solved together; inliers count for one of them, so that the evidence
    of one and of several compares
    """
    if estimate.map_from_camera is None:
        return None
    position, rotation = (
        math.sqrt(max(np.linalg.eigvalsh(block)[-1], 0) / covariance_scale)
        for block in (estimate.covariance[:3, :3], estimate.covariance[3:, 3:]))
    return Evidence(round(estimate.inliers / views), estimate.inliers / max(estimate.matches, 1),
                    estimate.reprojection_error / pixels_per_working_pixel,
                    position, rotation, photometric)


def photometric_evidence(
    *, matched: np.ndarray, aligned: np.ndarray, residual_before: float, residual_after: float,
    correlation: float, overlap: float,
) -> PhotometricEvidence:
    """Collect what a photometric alignment tells.

    matched: (4, 4) map_from_camera from matches; aligned: (4, 4), the same after the alignment
    residual_before, residual_after: robust, of colours in [0, 1]
    """
    return PhotometricEvidence(
        residual_after, residual_after / max(residual_before, 1e-6), correlation, overlap,
        *distance(np.asarray(matched), np.asarray(aligned)))


def fit_judge(evidence: Sequence[Evidence], correct: Sequence[bool]) -> Judge:
    """Fit a judge to poses of which it is known whether they are correct.

    Evidence with and without a photometric part teaches the one and the other model.
    """
    if len(evidence) != len(correct):
        raise DataError(f'{len(evidence)} pieces of evidence for {len(correct)} verdicts; '
                        'each needs one')
    samples = {'fast': [], 'refined': []}
    for piece, verdict in zip(evidence, correct):
        kind = 'fast' if piece.photometric is None else 'refined'
        samples[kind].append((_traits(kind, piece), bool(verdict)))
    return Judge(*(fit_model(_TRAITS[kind], samples[kind]) if samples[kind] else None
                   for kind in ('fast', 'refined')))


def _traits(kind: str, evidence: Evidence) -> np.ndarray:
    """Give the traits (k,) of evidence as the model of a kind sees them."""
    values = [trait.value(evidence) for trait in _MATCH_TRAITS]
    if kind == 'refined':
        values += [trait.value(evidence.photometric) for trait in _PHOTOMETRIC_TRAITS]
    return np.array(values)
