"""Everything an update of a map, or the merging of two, can be told."""

from dataclasses import dataclass
from dataclasses import field as dataclass_field

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.calibrate import CalibrationConfig
from nerfmatch_ros.mapping.changes import ChangeConfig
from nerfmatch_ros.mapping.field_loss import FieldTrainingConfig
from nerfmatch_ros.mapping.multi_view_depth import MultiViewDepthConfig
from nerfmatch_ros.mapping.placement import PlacementConfig
from nerfmatch_ros.mapping.rehearsal import RehearsalConfig
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig


@dataclass(frozen=True)
class UpdateConfig:
    """How a map learns what is new; the networks and sizes are those of the map."""

    minutes: float | None = 25.0  # of training in all, at most; None: only the steps count
    field_share: float = 0.5  # of these minutes
    held_out: int = 6  # new photographs kept from training, at most, to measure with
    new_share: float = 0.5  # of a step's rays, that are of the new photographs
    seed: int = 0
    placement: PlacementConfig = PlacementConfig()
    changes: ChangeConfig = ChangeConfig()
    rehearsal: RehearsalConfig = RehearsalConfig()
    depth: MultiViewDepthConfig = MultiViewDepthConfig()
    field_training: FieldTrainingConfig = dataclass_field(
        default_factory=lambda: FieldTrainingConfig(steps=2500))
    matcher_training: MatcherTrainingConfig = dataclass_field(
        default_factory=lambda: MatcherTrainingConfig(steps=1500, rate=5e-4))
    augmentation: AugmentationConfig = AugmentationConfig()
    calibration: CalibrationConfig = CalibrationConfig()

    def __post_init__(self):
        """Refuse values that no update can work with."""
        for name in ('field_share', 'new_share'):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f'{name} is {getattr(self, name):g}; '
                                  'it must lie between 0 and 1')
