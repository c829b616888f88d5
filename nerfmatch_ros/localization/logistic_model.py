"""A logistic model of how likely a pose is correct, from traits of the evidence for it.

It adds up logarithms of the evidence, turned so that more speaks for the pose; weights of monotone
traits are never negative, so better evidence never makes a pose less likely.

Letters: n = samples the model was fitted on; k = traits of the evidence.
"""

from collections.abc import Sequence
from dataclasses import dataclass
import math
from typing import Any

from nerfmatch_ros.errors import ConfigError
import numpy as np
from scipy.special import expit

# Weight that a trait has before any sample was seen, for a change of one standard deviation. Where
# all samples were correct nothing else says that evidence unlike theirs is worse.
_PRIOR_WEIGHT = 0.3
_PRIOR_STRENGTH = 1.0  # of the pull towards it (L2), as of so many samples
_SMALLEST_SPREAD = 0.2  # of a trait over the samples (logarithm); less is taken for this


@dataclass(frozen=True)
class Trait:
    """One number of the evidence, as a model sees it: sign * log(clipped to low .. high)."""

    name: str
    low: float
    high: float
    sign: int  # 1: more is better; -1: less is better
    monotone: bool = True  # False: either may be better, the samples decide

    def value(self, holder: Any) -> float:
        """Give the trait of evidence, which has it as an attribute of this name."""
        number = getattr(holder, self.name)
        if math.isnan(number):
            number = self.low if self.sign > 0 else self.high
        return self.sign * math.log(min(max(number, self.low), self.high))


@dataclass(frozen=True)
class LogisticModel:
    """Probability = logistic(bias + weights . traits), within what n samples can show."""

    weights: tuple[float, ...]  # (k,) of the traits, in the order of TRAITS
    bias: float
    samples: int  # n

    def probability(self, traits: np.ndarray) -> float:
        """Give the probability at traits (k,); none beyond 1 / (n + 2) of certainty."""
        margin = 1 / (self.samples + 2)  # Laplace's rule of succession
        return float(np.clip(expit(self.bias + traits @ np.array(self.weights)),
                             margin, 1 - margin))


def fit_model(
    traits: tuple[Trait, ...], samples: list[tuple[np.ndarray, bool]],
) -> LogisticModel:
    """Minimise the cross-entropy plus the pull towards the prior weights, signs held.

    samples: traits (k,) of a pose, and whether it is correct
    """
    values = np.stack([value for value, _ in samples])
    correct = np.array([verdict for _, verdict in samples])
    centre = values.mean(0)
    spread = np.maximum(values.std(0), _SMALLEST_SPREAD)
    standard = (values - centre) / spread
    # Platt's targets: what Laplace's rule would claim for the correct and for the wrong ones.
    right, wrong = int(correct.sum()), int((~correct).sum())
    target = np.where(correct, (right + 1) / (right + 2), 1 / (wrong + 2))
    prior = np.array([_PRIOR_WEIGHT * trait.monotone for trait in traits])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        weights, bias = parameters[:-1], parameters[-1]
        logit = standard @ weights + bias
        entropy = (np.logaddexp(0, logit) - target * logit).sum()
        pull = _PRIOR_STRENGTH * (weights - prior)
        error = expit(logit) - target
        return (entropy + 0.5 * pull @ (weights - prior),
                np.append(standard.T @ error + pull, error.sum()))

    from scipy.optimize import minimize  # late: only a calibration needs it
    bounds = [(0.0 if trait.monotone else None, None) for trait in traits]
    found = minimize(loss, np.append(prior, 0.0), jac=True, method='L-BFGS-B',
                     bounds=[*bounds, (None, None)], options={'maxiter': 500})
    weights = found.x[:-1] / spread
    return LogisticModel(tuple(weights.tolist()), float(found.x[-1] - weights @ centre),
                         len(samples))


def model_values(model: LogisticModel, traits: Sequence[Trait]) -> dict[str, Any]:
    """Give plain values for YAML, weights by the name of their trait."""
    return {'samples': model.samples, 'bias': model.bias,
            'weights': dict(zip([trait.name for trait in traits], model.weights))}


def read_model(traits: Sequence[Trait], values: Any, where: str) -> LogisticModel:
    """Read plain values; ConfigError names what is missing, unknown or impossible."""
    values = checked_mapping(values, ('samples', 'bias', 'weights'), where)
    samples = values['samples']
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ConfigError(f'{where}.samples is {samples!r}; it must be a positive whole number')
    names = [trait.name for trait in traits]
    named = checked_mapping(values['weights'], names, f'{where}.weights')
    weights = tuple(_number(named[name], f'{where}.weights.{name}') for name in names)
    for trait, weight in zip(traits, weights):
        if trait.monotone and weight < 0:
            raise ConfigError(f'{where}.weights.{trait.name} is {weight:g}; it must not be '
                              'negative: better evidence would make a pose less likely')
    return LogisticModel(weights, _number(values['bias'], f'{where}.bias'), samples)


def checked_mapping(values: Any, names: Sequence[str], where: str) -> dict[str, Any]:
    """Check that values are a mapping of exactly these names."""
    if not isinstance(values, dict):
        raise ConfigError(f'{where} is {values!r}; it must be a mapping of {", ".join(names)}')
    wrong = [str(name) for name in values if name not in names]
    missing = [name for name in names if name not in values]
    if wrong or missing:
        faults = [f'{verb} {", ".join(which)}' for verb, which in
                  (('does not know', wrong), ('lacks', missing)) if which]
        raise ConfigError(f'{where} {" and ".join(faults)}; it needs {", ".join(names)}')
    return values


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) \
            or not math.isfinite(value):
        raise ConfigError(f'{where} is {value!r}; it must be a finite number')
    return float(value)
