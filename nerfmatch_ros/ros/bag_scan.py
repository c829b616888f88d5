"""A bag read once from end to end, without decoding a picture: what is there, and when."""

from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
import zlib

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros import bag_topics as topics
from nerfmatch_ros.ros.bag import BagReader, decoded
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.camera_info_log import CameraInfoLog
from nerfmatch_ros.ros.transform_buffer import check_link
from nerfmatch_ros.ros.transform_log import TransformLink, TransformLog

BASE = 'base_link'


@dataclass
class ScannedImage:
    """One message with an image, by its header."""

    received_ns: int
    stamp_ns: int = 0
    frame_id: str = ''
    fingerprint: int = 0  # equal for messages that differ in nothing but their stamps
    fault: str = ''  # why not even the header can be read


@dataclass
class PoseTopic:
    """The poses of a topic."""

    name: str
    type: str
    frame: str = ''  # that they are in: of the first message
    body: str = ''  # whose pose it is: child_frame_id, '' where the type has none
    link: TransformLink | None = None
    # Diagonals of the covariances, six numbers a pose; empty where the type has none.
    variances: array = field(default_factory=lambda: array('d'))
    refused: Counter = field(default_factory=Counter)  # messages that were not taken, by reason


@dataclass(frozen=True, eq=False)
class BagScan:
    """All of a bag but its pixels."""

    path: Path
    image_topic: str
    compressed: bool
    images: list[ScannedImage]  # in the order of the bag
    infos: dict[str, CameraInfoLog]  # by topic
    transforms: TransformLog
    transform_topics: tuple[str, ...]
    poses: PoseTopic | None
    pose_topics: str  # what could be given as one, for the text of an error
    missing: dict[str, int]  # messages by topic that the bag counts but does not have


def scan_bag(
    path: Path, options: BagFrameOptions, report: Callable[[float, dict], None],
) -> BagScan:
    """Read a bag; report: takes the share that is read and numbers to show."""
    images, infos, log = [], {}, TransformLog()
    with BagReader(path) as bag:
        image_topic = topics.image_topic(bag, options.image_topic)
        pose_name = options.pose_topic and topics.pose_topic(bag, options.pose_topic)
        poses = PoseTopic(pose_name, bag.topics[pose_name].type) if pose_name else None
        transforms = topics.transform_topics(bag, image_topic)
        info_topics = bag.names_of(messages.CAMERA_INFO)
        wanted = {image_topic, *transforms, *info_topics, *([pose_name] if pose_name else ())}
        missing = {name: bag.counts[name] for name in wanted}
        total = max(1, sum(missing.values()))
        for number, (name, received, data) in enumerate(bag.serialized(wanted), start=1):
            missing[name] -= 1
            if name == image_topic:
                images.append(_scan_image(received, data))
            elif name in transforms:
                _add_transforms(log, name, received, data, transforms[name])
            elif name == pose_name:
                _add_pose(poses, data)
            else:
                _add_info(infos, name, received, data)
            if number % 100 == 0:
                report(number / total, {'images': len(images)})
        report(1.0, {'images': len(images)})
        return BagScan(
            Path(path), image_topic, bag.topics[image_topic].type == messages.COMPRESSED_IMAGE,
            images, infos, log, tuple(transforms), poses, topics.pose_topics(bag),
            {name: count for name, count in sorted(missing.items()) if count > 0})


def _scan_image(received: int, data: bytes) -> ScannedImage:
    try:
        stamp, frame, end = messages.read_serialized_header(data)
    except DataError as error:
        return ScannedImage(received, fault=str(error))
    return ScannedImage(received, stamp, frame.lstrip('/'), zlib.crc32(memoryview(data)[end:]))


def _add_transforms(
    log: TransformLog, topic: str, received: int, data: bytes, static: bool,
) -> None:
    try:
        message = decoded(data, messages.TRANSFORMS)
    except DataError:
        log.refused[f'messages on {topic} that cannot be decoded'] += 1
        return
    log.add(message, static, received)


def _add_info(
    infos: dict[str, CameraInfoLog], topic: str, received: int, data: bytes,
) -> None:
    log = infos.get(topic, CameraInfoLog())
    try:
        log.add(received, data)
    except DataError:
        return  # another one will do; if there is none, that is said
    infos[topic] = log


def _add_pose(poses: PoseTopic, data: bytes) -> None:
    """Keep a pose, or count why not."""
    try:
        message = decoded(data, poses.type)
    except DataError:
        poses.refused['cannot be decoded'] += 1
        return
    frame = message.header.frame_id.lstrip('/')
    body = getattr(message, 'child_frame_id', '').lstrip('/')
    if poses.link is None:
        poses.frame, poses.body = frame, body
        poses.link = TransformLink(frame, body or BASE, static=False)
    if (frame, body) != (poses.frame, poses.body):
        poses.refused[f"in frame '{frame}' of '{body or BASE}'"] += 1
        return
    position, rotation = _position_and_rotation(message)
    numbers = (position.x, position.y, position.z,
               rotation.x, rotation.y, rotation.z, rotation.w)
    try:
        check_link('frame', 'body', numbers)
    except DataError:
        poses.refused['no pose: not finite, or a quaternion that is not of length 1'] += 1
        return
    poses.link.add(messages.read_stamp(message.header), numbers)
    covariance = getattr(getattr(message, 'pose', None), 'covariance', None)
    if covariance is not None:
        poses.variances.extend(covariance[::7])


def _position_and_rotation(message: Any) -> tuple[Any, Any]:
    """Give the two parts of a pose in any of the types that state one."""
    if hasattr(message, 'transform'):
        return message.transform.translation, message.transform.rotation
    pose = message.pose.pose if hasattr(message.pose, 'covariance') else message.pose
    return pose.position, pose.orientation
