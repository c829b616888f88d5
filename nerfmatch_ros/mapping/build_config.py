"""Everything a build can be told."""

from dataclasses import dataclass
from dataclasses import field as dataclass_field

from nerfmatch_ros.data.working_image import check_working_size
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.localization.localizer import LocalizerConfig
from nerfmatch_ros.mapping.augmentation import AugmentationConfig
from nerfmatch_ros.mapping.calibrate import CalibrationConfig
from nerfmatch_ros.mapping.field_loss import FieldTrainingConfig
from nerfmatch_ros.mapping.multi_view_depth import MultiViewDepthConfig
from nerfmatch_ros.mapping.register_poses import RegistrationConfig
from nerfmatch_ros.mapping.scene_geometry_stage import SceneGeometryStage
from nerfmatch_ros.mapping.train_matcher import MatcherTrainingConfig
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.scene_map import FieldConfig


@dataclass(frozen=True)
class SceneFrameConfig:
    """What part of space a field fills."""

    kind: str = 'fitted'  # 'fitted' around cameras and points, or 'frustums' as in the paper
    frustum_depth: float = 50.0  # metres; how far photographs see, for 'frustums'

    def __post_init__(self):
        """Refuse what gives no frame."""
        if self.kind not in ('fitted', 'frustums'):
            raise ConfigError(f"scene_frame.kind is '{self.kind}'; use fitted or frustums")
        if not self.frustum_depth > 0:
            raise ConfigError(f'scene_frame.frustum_depth is {self.frustum_depth:g}; '
                              'give a positive number of metres')


@dataclass(frozen=True)
class BuildConfig:
    """Everything a build can be told; `config/build_map.yaml` explains each option."""

    minutes: float | None = 75.0  # of training in all, at most; None: only the steps count
    field_share: float = 0.27  # of these minutes
    held_out: int = 12  # photographs kept from training, at most, to measure field and poses
    longest_side: int = 384  # pixels of the picture the matcher sees
    working_size: tuple[int, int] | None = None  # (width, height) to squeeze it to instead
    surface_points: int = 16384  # of the whole map, for matching without retrieval
    surface_cache_points: int = 262144  # of what any camera sees, looked up; 0: it is rendered
    reference_views: int = 0  # kept in the map, evenly chosen; 0: all
    words: int = 256  # of the retrieval descriptor
    reference_images: str = 'real'  # described for retrieval: 'real' or 'rendered' by the field
    frame_id: str = 'map'
    seed: int = 0
    registration: RegistrationConfig = RegistrationConfig()
    scene_frame: SceneFrameConfig = SceneFrameConfig()
    depth: MultiViewDepthConfig = MultiViewDepthConfig()
    field: FieldConfig = FieldConfig()
    field_training: FieldTrainingConfig = FieldTrainingConfig()
    matcher: MatcherConfig = MatcherConfig()
    matcher_training: MatcherTrainingConfig = MatcherTrainingConfig()
    augmentation: AugmentationConfig = AugmentationConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    scene_geometry: SceneGeometryStage = SceneGeometryStage()
    localization: LocalizerConfig = dataclass_field(default_factory=LocalizerConfig)

    def __post_init__(self):
        """Refuse values that no build can work with."""
        if self.reference_images not in ('real', 'rendered'):
            raise ConfigError(f"reference_images is '{self.reference_images}'; "
                              'use real or rendered')
        if self.surface_cache_points < 0:
            raise ConfigError(f'surface_cache_points is {self.surface_cache_points}; give a '
                              'positive number, or 0 for no surface cache')
        needs = self.localization.localizer in ('scene_geometry', 'hybrid')
        if needs and not self.scene_geometry.enabled:
            raise ConfigError(f"localization.localizer is '{self.localization.localizer}', which "
                              'needs scene geometry; build with --scene-geometry')
        if self.working_size is not None:
            check_working_size(self.working_size)
        if not 0 < self.field_share < 1:
            raise ConfigError(f'field_share is {self.field_share:g}; '
                              'it must lie between 0 and 1, both trainings need time')
