"""What is taken of a bag for a map; without the libraries that take it."""

from dataclasses import dataclass
import math
from typing import Literal

from nerfmatch_ros.errors import ConfigError, DataError


@dataclass(frozen=True)
class BagFrameOptions:
    """Which topics and frames of a bag are used, and how densely its images."""

    image_topic: str = ''  # of a bag with images on several topics
    pose_topic: str = ''  # Odometry, PoseStamped, PoseWithCovarianceStamped, TransformStamped
    odom_frame: str = ''  # poses in this frame of /tf instead; with neither: in 'odom'
    base_frame: str = ''  # whose pose a topic gives that does not say; else base_link
    camera_frame: str = ''  # optical frame (z forward), if it is not the frame_id of the images
    extrinsic: str = ''  # 'X Y Z QX QY QZ QW' of the camera in the base frame, if not on /tf
    image_stamps: Literal['header', 'received'] = 'header'  # received: of cameras without a clock
    max_gap: float = 0.5  # seconds between two poses that one is interpolated in, at most
    max_images: int = 300  # keyframes; they lie farther apart on a long way
    keyframe_metres: float = 0.02  # a keyframe is due after that way ...
    keyframe_degrees: float = 2.0  # ... or that turn; 0: every frame

    def __post_init__(self):
        """Refuse what cannot be meant."""
        if self.pose_topic and self.odom_frame:
            raise ConfigError(f'--pose-topic {self.pose_topic} and --odom-frame {self.odom_frame} '
                              'both say where poses come from; give one of them')
        for name in ('keyframe_metres', 'keyframe_degrees', 'max_gap'):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f'--{name.replace("_", "-")} {value:g}: a number from 0 on')
        if self.max_images < 1:
            raise ConfigError(f'--max-images {self.max_images}: at least 1')
        if self.extrinsic:
            # Imported late: a command line that has no bag should not wait for numpy.
            from nerfmatch_ros.data.tum import parse_pose
            try:
                parse_pose(self.extrinsic)
            except DataError as error:
                raise ConfigError(f'--extrinsic: {error}') from error
