"""Measuring how far a map's poses are off and what tells the correct ones from the wrong ones.

Photographs that neither the field nor the matcher has seen are localized as they are and made
harder, from scratch and from wrong starts; their true poses say how it went.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
import math
from typing import Any

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.calibration import Calibration
from nerfmatch_ros.localization.judge import Evidence, fit_judge, is_correct, judged_threshold
from nerfmatch_ros.localization.rigid_motion import difference, perturb
from nerfmatch_ros.mapping.picture_variations import KINDS, vary
import numpy as np
from scipy.stats import chi2

SCALE_LIMITS = (1.0, 400.0)  # of a covariance scale; standard deviations 1 to 20 times as large
FEWEST_FOR_SCALE = 8  # poses; the median of fewer says nothing
_PREDICTED_NEES = float(chi2.median(6))  # of an honest covariance of a pose


@dataclass(frozen=True)
class CalibrationConfig:
    """How much is localized; one trial is one localization and one refinement."""

    trials: int = 72  # in all, shared by the photographs
    photographs: int = 24  # at most, evenly chosen
    start_distance: tuple[float, float] = (0.4, 10.0)  # of wrong starts, in correct poses' limits
    start_angle: tuple[float, float] = (0.5, 10.0)  # degrees, of wrong starts
    refine: bool = True  # measure refined poses too
    seed: int = 0

    def __post_init__(self):
        """Refuse values that nothing can be measured with."""
        for name in ('trials', 'photographs'):
            if getattr(self, name) < 1:
                raise ConfigError(f'calibration {name} is {getattr(self, name)}; '
                                  'at least 1 is needed')
        for name in ('start_distance', 'start_angle'):
            low, high = getattr(self, name)
            if not 0 < low <= high < math.inf:
                raise ConfigError(f'calibration {name} is {low:g} to {high:g}; '
                                  'it must be positive and in this order')


@dataclass(frozen=True)
class Trial:
    """One photograph made harder in one way, with or without a rough pose to start from."""

    image: int  # its number
    kind: str  # of `picture_variations.KINDS`
    prior: bool  # localize from a wrong start, and refine that start


@dataclass(frozen=True)
class Sample:
    """One pose that was found, against the truth."""

    evidence: Evidence | None  # None: only pictures were aligned, which no judge knows
    correct: bool
    nees: float  # squared error in units of the reported covariance, 6 degrees of freedom

    @property
    def refined(self) -> bool:
        """Say whether the covariance is that of an alignment, not of matches."""
        return self.evidence is None or self.evidence.photometric is not None


def calibrate(
    localizer: Any, held_out: Sequence[PosedImage], *,
    report: Callable[[float, dict], None], config: CalibrationConfig | None = None,
    scales: tuple[float, float] = (1.0, 1.0),
) -> Calibration:
    """Localize and refine held-out photographs in many conditions, learn from how that went.

    localizer: a `Localizer` whose estimates hold `evidence`; it never sees the true poses. A
    refined pose without evidence counts for the covariance only.
    held_out: photographs with poses that neither field nor matcher was trained on
    report: called with the share that is done, and figures
    scales: factors that the localizer's covariances carry, of poses from matches and of those
    with photometric evidence; kept where too few poses were found to measure them
    """
    config = config or CalibrationConfig()
    _check(held_out)
    extent = localizer.scene_map.extent
    limit = judged_threshold(extent)
    images = [held_out[k] for k in np.unique(np.linspace(
        0, len(held_out) - 1, min(config.photographs, len(held_out))).round().astype(int))]
    samples, trials = [], plan(len(images), config.trials)
    for done, trial in enumerate(trials):
        random = np.random.default_rng((config.seed, done))
        truth = images[trial.image].map_from_camera
        query = _query(images, trial, random)
        start = _wrong_start(truth, limit[0], config, random)
        first = localizer.localize(query, start if trial.prior else None)
        if first.map_from_camera is not None and first.evidence is None:
            raise DataError(f'{query.name} got a pose without evidence; calibrate with a '
                            'localizer that collects it')
        estimates = [first]
        if config.refine:
            found = first.map_from_camera
            estimates.append(localizer.refine(
                query, start if trial.prior or found is None else found))
        samples += [_sample(estimate, truth, extent) for estimate in estimates
                    if estimate.map_from_camera is not None]
        report((done + 1) / len(trials), {
            'poses': len(samples), 'correct': sum(sample.correct for sample in samples)})
    fast, refined = ([sample.nees for sample in samples if sample.refined == kind]
                     for kind in (False, True))
    judged = [sample for sample in samples if sample.evidence is not None]
    return Calibration(
        covariance_scale=covariance_scale(fast, scales[0]),
        refined_covariance_scale=covariance_scale(refined, scales[1]),
        limit_m=limit[0], limit_rad=limit[1],
        judge=fit_judge([sample.evidence for sample in judged],
                        [sample.correct for sample in judged]))


def plan(images: int, trials: int) -> list[Trial]:
    """Spread trials over photographs, kinds of difficulty and ways to start."""
    planned = []
    for number in range(trials):
        turn, image = divmod(number, images)
        planned.append(Trial(image, KINDS[(turn + image) % len(KINDS)],
                             prior=(turn + turn // len(KINDS)) % 2 == 1))
    return planned


def covariance_scale(nees: Sequence[float], scale: float) -> float:
    """Give the factor that makes the median of NEES what an honest covariance would have.

    The median, because a few wrong poses among many would make a mean of anything; it makes the
    covariance honest for correct poses, the judge tells which those are.

    nees: of poses whose covariances carry the factor `scale`, which stays where they are few
    """
    if len(nees) < FEWEST_FOR_SCALE:
        return scale
    return float(np.clip(scale * np.median(nees) / _PREDICTED_NEES, *SCALE_LIMITS))


def _check(held_out: Sequence[PosedImage]) -> None:
    if not held_out:
        raise DataError('no photographs were kept from the map to calibrate it with; keep at '
                        'least one from its training')
    for image in held_out:
        if image.map_from_camera is None:
            raise DataError(f'{image.name} has no pose; a map is calibrated with posed '
                            'photographs')


def _query(
    images: Sequence[PosedImage], trial: Trial, random: np.random.Generator,
) -> PosedImage:
    """Give the photograph of a trial, made harder, without its pose and depth."""
    image = images[trial.image]
    others = []
    if trial.kind == 'foreign' and len(images) > 1:
        steps = random.choice(len(images) - 1, min(3, len(images) - 1), replace=False)
        others = [images[(trial.image + 1 + step) % len(images)].rgb() for step in steps]
    picture = vary(image.rgb(), trial.kind, random.uniform(), others, random)
    return replace(image, pixels=picture, path=None, map_from_camera=None, depth=None,
                   depth_path=None)


def _wrong_start(
    truth: np.ndarray, limit: float, config: CalibrationConfig, random: np.random.Generator,
) -> np.ndarray:
    """Move a pose (4, 4) in a random direction, by a random length; limit: metres."""
    share = random.uniform()
    directions = random.standard_normal((2, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    metres, degrees = (low * (high / low) ** share
                       for low, high in (config.start_distance, config.start_angle))
    return perturb(truth, np.concatenate(
        (metres * limit * directions[0], math.radians(degrees) * directions[1])))


def _sample(estimate: PoseEstimate, truth: np.ndarray, extent: float) -> Sample:
    delta = difference(estimate.map_from_camera, truth)
    return Sample(estimate.evidence, is_correct(estimate.map_from_camera, truth, extent),
                  float(delta @ np.linalg.solve(estimate.covariance, delta)))
