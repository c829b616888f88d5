"""Where the camera was at every image of a bag: from /tf, or from a topic with poses."""

from dataclasses import dataclass, field
from typing import Literal

from nerfmatch_ros.data.tum import parse_pose
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.bag_scan import BagScan, BASE, PoseTopic
from nerfmatch_ros.ros.link_check import check_links
from nerfmatch_ros.ros.pose_covariance import stated_certainty, StatedCertainty
from nerfmatch_ros.ros.transform_buffer import FRAMES_NAMED, TransformError
import numpy as np

ODOM = 'odom'
# They do not drift: frames of REP 105 and of motion capture.
FIXED_FRAMES = ('map', 'world', 'earth', 'mocap', 'vicon')
UPRIGHT_FRAMES = ('map', 'odom')  # of REP 105, where z is up
_LOOKS_UP = 0.7  # share of the optical axis along z; a frame with z up has 1
_CLOCKS_DIFFER = 1.0  # seconds; more is no delay


@dataclass(frozen=True, eq=False)
class CameraPoses:
    """The way of a camera, as a bag tells it."""

    poses: np.ndarray  # (N, 4, 4) frame_from_camera, metres; NaN where it is not known
    reasons: list[str]  # why not, '' where it is
    frame: str  # becomes the frame of the map
    source: str  # in words
    quality: Literal['exact', 'rough']  # by its source: a frame that is fixed, or odometry
    z_up: bool  # by what the frame is called
    notes: list[str] = field(default_factory=list)
    stated: StatedCertainty | None = None  # by the robot itself, of a topic with covariances


def camera_poses(
    scan: BagScan, stamps_ns: np.ndarray, camera_frame: str, options: BagFrameOptions,
) -> CameraPoses:
    """
    Give the poses at stamps (N,).

    camera_frame: optical frame of the images. Raises a DataError where nothing leads to it.
    """
    if scan.poses is not None:
        found = _of_topic(scan, scan.poses, stamps_ns, camera_frame, options)
    else:
        found = _of_transforms(scan, stamps_ns, camera_frame, options)
    if len(stamps_ns) and all(found.reasons):
        raise DataError(_none_known(scan, stamps_ns, found, options))
    known = found.poses[[not reason for reason in found.reasons]]
    if found.z_up and len(known) and np.median(known[:, 2, 2]) > _LOOKS_UP:
        found.notes.append(
            f"the camera looks up most of the time. Is the z axis of '{found.frame}' up, and "
            f"'{camera_frame}' an optical frame, z forward? Name that one with --camera-frame")
    return found


def base_name(frame: str) -> str:
    """Give the name of a frame without the robot's: map of robot1/map."""
    return frame.rsplit('/', 1)[-1]


def quality_of(frame: str) -> Literal['exact', 'rough']:
    """Tell by the name of a frame how good poses in it are meant to be."""
    return 'exact' if base_name(frame) in FIXED_FRAMES else 'rough'


def is_upright(frame: str) -> bool:
    """Tell by the name of a frame whether its z axis is up."""
    return base_name(frame).startswith(UPRIGHT_FRAMES)


def _of_transforms(
    scan: BagScan, stamps: np.ndarray, camera_frame: str, options: BagFrameOptions,
) -> CameraPoses:
    frame = options.odom_frame.lstrip('/') or ODOM
    gap = round(1e9 * options.max_gap)
    known = scan.transforms.frames
    if frame not in known:
        raise DataError(
            f"the bag {scan.path} has no transform of the frame '{frame}'; it has "
            f'{_named(known)}. Name one that does not move with --odom-frame, or give one of the '
            f'topics with poses as --pose-topic: {scan.pose_topics}')
    body = camera_frame
    if options.extrinsic:
        body = options.base_frame.lstrip('/') or BASE
    try:
        poses, reasons = scan.transforms.at(frame, body, stamps, gap)
        path = scan.transforms.path(frame, body)
    except TransformError as error:
        raise DataError(_no_chain(scan, frame, body, error)) from error
    chain = [body]
    for link in path:
        chain.append(link.parent if link.child == chain[-1] else link.child)
    if options.extrinsic:
        poses, chain = poses @ parse_pose(options.extrinsic), ['camera (--extrinsic)', *chain]
    notes = [f"'{link.child}' hangs below {', '.join(parents)}: two publishers disagree; "
             f"'{link.parent}' was followed" for link in path
             if len(parents := scan.transforms.parents(link.child)) > 1]
    notes += check_links(path, f'take poses from elsewhere: another --odom-frame, or --pose-topic '
                               f'({scan.pose_topics})')
    return CameraPoses(
        poses, reasons, frame, f'{", ".join(scan.transform_topics)}: {" -> ".join(chain[::-1])}',
        quality_of(frame), is_upright(frame), notes)


def _of_topic(
    scan: BagScan, topic: PoseTopic, stamps: np.ndarray, camera_frame: str,
    options: BagFrameOptions,
) -> CameraPoses:
    if topic.link is None or not len(topic.link):
        raise DataError(f'no message on {topic.name} of the bag {scan.path} has a usable pose: '
                        f'{_counted(topic.refused)}')
    gap = round(1e9 * options.max_gap)
    body = options.base_frame.lstrip('/') or topic.body or BASE
    poses, reasons = topic.link.at(stamps, gap)
    path = []
    if options.extrinsic:
        poses = poses @ parse_pose(options.extrinsic)
    elif body != camera_frame:
        try:
            offsets, gaps = scan.transforms.at(body, camera_frame, stamps, gap)
        except TransformError as error:
            raise DataError(_no_extrinsic(scan, topic, body, camera_frame, error)) from error
        poses = poses @ offsets
        reasons = [first or second for first, second in zip(reasons, gaps)]
        path = scan.transforms.path(body, camera_frame)
    notes = [f'{count} messages on {topic.name} not taken: {reason}'
             for reason, count in topic.refused.items()]
    notes += check_links([topic.link], 'take poses from elsewhere: --odom-frame, or another '
                                       f'--pose-topic ({scan.pose_topics})', topic.name)
    notes += check_links(path, _REST)
    kind = topic.type.rsplit('/', 1)[-1]
    return CameraPoses(
        poses, reasons, topic.frame, f"{topic.name} ({kind}), pose of '{body}'",
        quality_of(topic.frame), is_upright(topic.frame), notes, _stated(topic))


def _stated(topic: PoseTopic) -> StatedCertainty | None:
    """Give what the covariances of a topic say, if its type has them."""
    if not topic.variances:
        return None
    stamps, numbers = topic.link.samples()
    return stated_certainty(stamps, numbers[:, :3], np.array(topic.variances).reshape(-1, 6),
                            fixed=quality_of(topic.frame) == 'exact', topic=topic.name)


def _no_chain(scan: BagScan, frame: str, camera_frame: str, error: TransformError) -> str:
    missing = camera_frame not in scan.transforms.frames
    return (f"the transforms of the bag {scan.path} do not lead from '{frame}' to "
            f"'{camera_frame}': {error}. "
            + (_EXTRINSIC if missing else f'Record what joins them (/tf_static too), or {_REST}'))


def _no_extrinsic(
    scan: BagScan, topic: PoseTopic, body: str, camera_frame: str, error: TransformError,
) -> str:
    return (f"{topic.name} has poses of '{body}', and the transforms of the bag {scan.path} do "
            f"not say where the camera '{camera_frame}' is on it: {error}. If the poses are those "
            f'of the camera itself, give --base-frame {camera_frame or "CAMERA"} (and the same '
            f'--camera-frame, if images name none). {_EXTRINSIC}')


_REST = ("give the camera's place in the base frame as --extrinsic 'X Y Z QX QY QZ QW', metres")
_EXTRINSIC = ('Record /tf_static too; or name the frame of the camera with --camera-frame, where '
              f'the images do it wrongly; or {_REST}')


def _none_known(
    scan: BagScan, stamps: np.ndarray, found: CameraPoses, options: BagFrameOptions,
) -> str:
    """Say why no image at all has a pose."""
    text = (f'none of {len(stamps)} images on {scan.image_topic} of the bag {scan.path} has a '
            f'pose from {found.source}; the first is {found.reasons[0]}, the last '
            f'{found.reasons[-1]}')
    late = np.median([image.received_ns - image.stamp_ns for image in scan.images
                      if not image.fault]) / 1e9
    if abs(late) > _CLOCKS_DIFFER and options.image_stamps == 'header':
        return (f'{text}. Images were recorded {late:.3f} s after their stamps, so their clock is '
                'another one: --image-stamps received takes the time of recording instead')
    return (f'{text}. Record both at the same time, and poses more often than every '
            '--max-gap seconds')


def _named(frames: list[str]) -> str:
    return ', '.join(frames[:FRAMES_NAMED]) + (' ...' if len(frames) > FRAMES_NAMED else '') \
        or 'none at all'


def _counted(refused: dict[str, int]) -> str:
    return ', '.join(f'{count} {reason}' for reason, count in refused.items()) or 'there is none'
