"""How poses are registered by the field, and how detail grows meanwhile."""

from dataclasses import dataclass
import math

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.radiance_field.grid_field import GridFieldConfig
from nerfmatch_ros.scene_map import FieldConfig

METHODS = ('l2g', 'barf')
BLUR_STAGES = 8  # in which the photographs become sharp


@dataclass(frozen=True)
class PoseRegistrationConfig:
    """How poses are registered; the defaults are for a CPU."""

    method: str = 'l2g'  # 'l2g': a warp per ray, closed-form poses; 'barf': a twist per frame
    steps: int = 3000  # at most; the minutes may end it first
    rays: int = 1024  # of a step, shared evenly by its frames
    frames: int = 160  # photographs in a step, at most
    longest_side: int = 160  # photographs are reduced to this, pixels
    depth_range: tuple[float, float] | None = None  # metres that cameras see; None: guessed
    # Standard deviation of the smoothing of the photographs at first, pixels when reduced; None:
    # one for each degree of the prior, as that is how far rough poses show things displaced.
    blur: float | None = None
    final_blur: float = 1.0  # of the same at the end
    first_detail: float = 0.3  # share of the encoding that is open at first
    ramp: tuple[float, float] = (0.3, 1.0)  # progress in which it opens and the blur ends
    still: float = 0.04  # progress before the poses begin to move
    table_rate: float = 1e-2  # learning rate of hash tables
    network_rate: float = 3e-3  # of the field's networks
    field_final_rate: float = 0.1  # share of both at the end
    warp_rate: float = 1e-3  # of the warp network (l2g)
    twist_rate: float = 0.04  # of the twists, deviations of rough poses
    lens_rate: float = 1e-3  # of what the calibration leaves of the lens, k1 and k2
    pose_final_rate: float = 0.05  # share of either at the end
    # Progress from which frames move as a whole (l2g), beginning at the fits of their warps: these
    # find the way, and then what is free to bend is less exact. 1: never, as published.
    rigid_from: float = 0.2
    lost: float = 0.2  # share of the frames, those shown worst, that are then tried elsewhere
    rigidity: float = 1e2  # weight of how far a frame's rays depart from one motion (l2g)
    # Of squared motions in deviations of the rough poses' errors: the squared error of a colour
    # over how many of a photograph's pixels tell of its pose independently of one another. Where
    # errors are alike all along a way (odometry), so are those of the field in what it shows.
    prior_weight: float = 5e-5
    odometry_weight: float = 1e-3  # the same, of motions of odometry
    lens_weight: float = 1e-4  # of the squared terms of lenses in their deviations
    # Of the squared turn that all cameras have in common, in the same deviations: what pictures
    # seem to say of it is mostly the field's error, and that of rough poses averages out.
    common_weight: float = 0.02
    opacity_weight: float = 1e-3
    exposure: bool = True  # each photograph has its own gain and offset, or appearance
    bfloat16: bool = True  # matrix products in half the time
    seed: int = 0
    field: FieldConfig = FieldConfig(grid=GridFieldConfig(
        levels=6, finest=384, log2_entries=16, octaves=4, depth=2, samples=16, guide_samples=64,
        guide_cells=64))

    def __post_init__(self):
        """Refuse what registers nothing."""
        if self.method not in METHODS:
            raise ConfigError(f"registration '{self.method}' is unknown; use l2g or barf")
        for name, least in (('rays', 1), ('frames', 1), ('longest_side', 16), ('blur', 0),
                            ('final_blur', 0)):
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ConfigError(f'registration.{name} is {getattr(self, name)}; '
                                  f'give at least {least}')
        if not 0 <= self.ramp[0] < self.ramp[1] <= 1:
            raise ConfigError(f'registration.ramp is {self.ramp}; give two increasing shares of '
                              'the training, from 0 to 1')
        if not 0 <= self.first_detail <= 1:
            raise ConfigError(f'registration.first_detail is {self.first_detail:g}; '
                              'give a share from 0 to 1')
        if not 0 <= self.rigid_from <= 1:
            raise ConfigError(f'registration.rigid_from is {self.rigid_from:g}; '
                              'give a share from 0 to 1')
        if self.depth_range is not None and not 0 < self.depth_range[0] < self.depth_range[1]:
            raise ConfigError(f'registration.depth_range is {self.depth_range}; give two '
                              'increasing positive numbers of metres')


def detail_at(progress: float, config: PoseRegistrationConfig) -> tuple[float, float]:
    """Give the share of the encoding that is open, and the blur in pixels, at this progress."""
    start, end = config.ramp
    done = min(max((progress - start) / (end - start), 0.0), 1.0)
    blur = config.blur + (config.final_blur - config.blur) * (
        math.floor(done * BLUR_STAGES) / BLUR_STAGES)
    return config.first_detail + (1 - config.first_detail) * done, blur
