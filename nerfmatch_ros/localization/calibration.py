"""What a map knows of its own accuracy: how far its poses are off, how likely they are correct."""

from dataclasses import dataclass, fields
import math
from typing import Any

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.judge import Judge


@dataclass(frozen=True)
class Calibration:
    """Measured on photographs that the map was not made of; `calibrate` makes it."""

    covariance_scale: float  # factor on the covariance of a pose from matches
    refined_covariance_scale: float  # the same for one with photometric evidence
    limit_m: float  # metres; the judge calls a pose correct within this
    limit_rad: float  # radians, the same for the rotation
    judge: Judge

    def __post_init__(self):
        """Refuse factors and limits that are not positive."""
        for name in _NUMBERS:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) \
                    or not (math.isfinite(value) and value > 0):
                raise ConfigError(f'calibration.{name} is {value!r}; it must be a positive number')

    def to_dict(self) -> dict[str, Any]:
        """Give plain values for YAML."""
        return {**{name: float(getattr(self, name)) for name in _NUMBERS},
                'judge': self.judge.to_dict()}

    @staticmethod
    def from_dict(values: Any) -> 'Calibration':
        """Read plain values; ConfigError names what is missing, unknown or impossible."""
        names = [field.name for field in fields(Calibration)]
        if not isinstance(values, dict) or sorted(values, key=str) != sorted(names):
            found = sorted(map(str, values)) if isinstance(values, dict) else values
            raise ConfigError(f'calibration holds {found!r}; it needs exactly {", ".join(names)}')
        return Calibration(**{name: values[name] for name in _NUMBERS},
                           judge=Judge.from_dict(values['judge'], 'calibration.judge'))


_NUMBERS = ('covariance_scale', 'refined_covariance_scale', 'limit_m', 'limit_rad')
