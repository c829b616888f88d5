"""Do poses come true as often as they were said to, and are the sure ones right?

Letters: N queries. A query without a pose claims probability 0; one that nothing judged has nan
and is left out.
"""

from dataclasses import dataclass
import math

from nerfmatch_ros.evaluation.metrics import PoseErrors
from nerfmatch_ros.localization.judge import judged_threshold
import numpy as np

SURE_ABOVE = 0.9  # probability; a robot may act on poses above it


@dataclass(frozen=True, eq=False)
class ReliabilityCurve:
    """What was claimed and what came true, in B equal bins of the claimed probability."""

    claimed: np.ndarray  # (B,) mean claimed probability; nan in an empty bin
    observed: np.ndarray  # (B,) share that was correct; nan in an empty bin
    counts: np.ndarray  # (B,) queries
    expected_calibration_error: float  # mean |claimed - observed| over the queries


@dataclass(frozen=True, eq=False)
class RiskCoverage:
    """What share of the N queries is wrong if only the most probable ones are answered."""

    coverage: np.ndarray  # (N,) share answered, 1/N to 1
    risk: np.ndarray  # (N,) mean loss of those answered
    area: float  # under the curve: mean of the risk; 0 is best


def correct_poses(
    errors: PoseErrors, extent: float, limit: tuple[float, float] | None = None,
) -> np.ndarray:
    """Say which errors (N,) are within `judged_threshold`; extent: metres of the map.

    limit: metres and radians instead, of a localizer whose probabilities are of other ones
    """
    metres, radians = limit or judged_threshold(extent)
    return (errors.translation <= metres) & (errors.rotation <= math.degrees(radians))


def reliability(
    probabilities: np.ndarray, correct: np.ndarray, bins: int = 10,
) -> ReliabilityCurve:
    """Compare claimed probabilities (N,) with what was correct (N,) bool."""
    claimed, correct = _claims(probabilities, correct)
    which = np.minimum((claimed * bins).astype(int), bins - 1)
    counts = np.bincount(which, minlength=bins)
    claims = _ratio(np.bincount(which, claimed, bins), counts)
    shares = _ratio(np.bincount(which, correct, bins), counts)
    filled = counts > 0
    gap = np.average(np.abs(claims - shares)[filled], weights=counts[filled]) \
        if filled.any() else math.nan
    return ReliabilityCurve(claims, shares, counts, float(gap))


def risk_coverage(probabilities: np.ndarray, losses: np.ndarray) -> RiskCoverage:
    """Answer queries from the most probable on and average the losses (N,) of those answered.

    Equally probable queries share their loss: their order means nothing.
    """
    claimed, losses = _claims(probabilities, losses)
    if not len(claimed):
        return RiskCoverage(np.zeros(0), np.zeros(0), math.nan)
    _, group, sizes = np.unique(-claimed, return_inverse=True, return_counts=True)
    shared = (np.bincount(group, losses) / sizes)[np.sort(group)]
    answered = np.arange(1, len(claimed) + 1)
    risk = np.cumsum(shared) / answered
    return RiskCoverage(answered / len(claimed), risk, float(risk.mean()))


def summarize_reliability(
    probabilities: np.ndarray, errors: PoseErrors, extent: float,
    limit: tuple[float, float] | None = None,
) -> dict | None:
    """Give the figures of the report; None where no query was judged.

    probabilities: (N,); extent: metres of the map; limit: as for `correct_poses`
    """
    correct = correct_poses(errors, extent, limit)
    curve = reliability(probabilities, correct)
    if not curve.counts.sum():
        return None
    sure = np.asarray(probabilities) > SURE_ABOVE
    return {
        'judged': int(curve.counts.sum()),
        'expected_calibration_error': curve.expected_calibration_error,
        'risk_coverage_area': risk_coverage(probabilities, ~correct).area,
        'sure': float(sure.mean()),
        'sure_but_wrong': int((sure & ~correct).sum()),
        'sure_worst_translation_m': float(errors.translation[sure].max(initial=0)),
        'sure_worst_rotation_deg': float(errors.rotation[sure].max(initial=0)),
    }


def _claims(probabilities: np.ndarray, outcomes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Check shapes and ranges, and leave out what nothing judged."""
    claimed, outcomes = np.asarray(probabilities, float), np.asarray(outcomes, float)
    if claimed.ndim != 1 or claimed.shape != outcomes.shape:
        raise ValueError(f'{claimed.shape} probabilities for {outcomes.shape} outcomes')
    judged = ~np.isnan(claimed)
    claimed, outcomes = claimed[judged], outcomes[judged]
    if ((claimed < 0) | (claimed > 1)).any():
        raise ValueError(f'probabilities reach from {claimed.min():g} to {claimed.max():g}')
    return claimed, outcomes


def _ratio(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
