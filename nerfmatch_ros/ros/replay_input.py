"""What a replay needs to know of a bag before it begins: stamps, transforms, the truth."""

from dataclasses import dataclass
from pathlib import Path

from nerfmatch_ros.data.trajectory import Trajectory
from nerfmatch_ros.errors import DataError, NerfmatchError
from nerfmatch_ros.evaluation.stream_report import Drive, truth_at_frames
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros import bag_topics
from nerfmatch_ros.ros.bag import BagReader
from nerfmatch_ros.ros.bag_topics import TF, TF_STATIC
from nerfmatch_ros.ros.transform_buffer import TransformBuffer
import numpy as np


@dataclass(frozen=True)
class ReplayFrames:
    """Names of frames, and whose pose is given out."""

    map: str = 'map'
    odom: str = 'odom'
    base: str = 'base_link'
    pose_of_camera: bool = False  # False: the pose of the base


@dataclass(frozen=True, eq=False)
class ReplayInput:
    """A bag, read once without its pictures."""

    path: Path
    image_topic: str
    info_topic: str
    compressed: bool
    frames_ns: np.ndarray  # (F,) int64 stamps of the images
    camera_frame: str  # of the first image
    transforms: TransformBuffer  # everything that the bag has
    truth: Trajectory | None  # map_from_base

    @property
    def topics(self) -> list[str]:
        """Give the topics that a localizer listens to."""
        return [TF_STATIC, TF, self.info_topic, self.image_topic]


def read_replay_input(
    path: Path, frames: ReplayFrames, *, image_topic: str = '', truth_topic: str,
) -> ReplayInput:
    """Read a bag; image_topic: '' where it has only one."""
    # As long as any bag: a replay looks up at any time of it.
    transforms = TransformBuffer(duration=1e9)
    stamps, truth, camera_frame = [], [], ''
    with BagReader(path) as bag:
        image_topic = bag_topics.image_topic(bag, image_topic)
        compressed = bag.topics[image_topic].type == messages.COMPRESSED_IMAGE
        info_topic = _info_topic(bag, image_topic)
        wanted = [image_topic, TF, TF_STATIC, truth_topic]
        for name, _, message in bag.messages([name for name in wanted if name in bag.topics]):
            if name == image_topic:
                stamps.append(messages.read_stamp(message.header))
                camera_frame = camera_frame or message.header.frame_id.lstrip('/')
            elif name == truth_topic:
                truth.append(_true_pose(message, frames))
            else:
                _add_transforms(transforms, message, frames, static=name == TF_STATIC)
    return ReplayInput(
        Path(path), image_topic, info_topic, compressed, np.unique(np.array(stamps, np.int64)),
        camera_frame, transforms, Trajectory.of(truth) if truth else None)


def drive_of(found: ReplayInput, frames: ReplayFrames, extent: float | None) -> Drive:
    """Give what the poses are scored against; the truth is that of the body they are given of."""
    body = found.camera_frame if frames.pose_of_camera else frames.base
    true_poses = None
    if found.truth is not None:
        true_poses = truth_at_frames(found.truth, found.frames_ns)
        if frames.pose_of_camera:
            true_poses = true_poses @ np.array([
                _lookup_or_nan(found.transforms, frames.base, body, stamp)
                for stamp in found.frames_ns.tolist()])
    odometry = [(stamp, pose) for stamp in found.frames_ns.tolist() if np.isfinite(
        pose := _lookup_or_nan(found.transforms, frames.odom, body, stamp)).all()]
    return Drive(found.frames_ns, true_poses, Trajectory.of(odometry) if odometry else None,
                 extent)


def way_of_base(
    found: ReplayInput, frames: ReplayFrames, sent: list[tuple[str, int, np.ndarray]],
) -> Trajectory:
    """
    Give map_from_base as one sees it who follows the transforms that came out, (child, stamp in
    ns, map_from_child (4, 4)), and from there on those of the bag.
    """
    way = []
    for child, stamp, map_from_child in sent:
        child_from_base = _lookup_or_nan(found.transforms, child, frames.base, stamp)
        if np.isfinite(child_from_base).all():
            way.append((stamp, map_from_child @ child_from_base))
    return Trajectory.of(way)


def _lookup_or_nan(
    transforms: TransformBuffer, target: str, source: str, stamp: int,
) -> np.ndarray:
    try:
        return transforms.lookup(target, source, stamp)
    except NerfmatchError:
        return np.full((4, 4), np.nan)


def _true_pose(message, frames: ReplayFrames) -> tuple[int, np.ndarray]:
    frame_id = message.header.frame_id.lstrip('/')
    if frame_id != frames.map:
        raise DataError(f"the ground truth is in frame '{frame_id}', poses are given in "
                        f"'{frames.map}'; they must be the same")
    stamp, pose, _ = messages.read_pose(message)
    return stamp, pose


def _add_transforms(transforms: TransformBuffer, message, frames: ReplayFrames, static: bool):
    for parent, child, stamp, pose in messages.read_transforms(message):
        # What another localizer said when the bag was recorded is not to be repeated.
        if parent != frames.map:
            transforms.set(parent, child, stamp, pose, static)


def _info_topic(bag: BagReader, image_topic: str) -> str:
    name = bag_topics.info_topic(image_topic)
    if name not in bag.names_of(messages.CAMERA_INFO):
        raise DataError(f'the bag {bag.path} has no camera_info on {name}, where that of '
                        f'{image_topic} belongs; record it too')
    return name
