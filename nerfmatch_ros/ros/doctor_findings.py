"""What is wrong with an input of the localizer: verdicts on what was heard, and their text."""

from collections.abc import Sequence
from dataclasses import dataclass

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.camera_messages import CameraCache
from nerfmatch_ros.ros.conversions import SECOND
from nerfmatch_ros.ros.frame_gate import clock_fault, FrameGateOptions
from nerfmatch_ros.ros.image_messages import compressed_to_rgb, FrameRejected, image_to_rgb
from nerfmatch_ros.ros.quality import profile_text
from rclpy.qos import qos_check_compatible, QoSCompatibility, QoSProfile
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

OK, NOTE, FAULT = 'ok', 'note', 'fault'
# What the localizer drops by default; the nodes may be set otherwise, so this is worth a note.
USUAL = FrameGateOptions()
OTHERS_NAMED = 5


@dataclass(frozen=True)
class End:
    """A publisher or subscriber of a topic."""

    node: str  # with its namespace
    profile: QoSProfile


@dataclass(frozen=True)
class Finding:
    """What is to be said about one input."""

    input: str
    verdict: str  # ok; note: may be meant so; fault: nothing can come of it
    text: str = ''  # cause, value and remedy
    topic: str = ''  # resolved
    publishers: tuple[str, ...] = ()  # nodes with their quality of service
    quality: str = ''  # whether publishers and localizer can hear each other
    stamp_ns: int | None = None  # of the last message
    age: float | None = None  # seconds by the clock of the doctor


def publisher_texts(publishers: Sequence[End]) -> tuple[str, ...]:
    """Name each publisher with what decides whether it is heard."""
    return tuple(f'{end.node} ({profile_text(end.profile)})' for end in publishers)


def quality_verdict(publishers: Sequence[End], asked: QoSProfile) -> tuple[str, str]:
    """Tell whether a subscriber that asks for `asked` hears the publishers, and why not."""
    if not publishers:
        return OK, ''
    reasons = []
    for end in publishers:
        compatibility, reason = qos_check_compatible(end.profile, asked)
        if compatibility == QoSCompatibility.ERROR:
            reasons.append(f'{end.node}: {" ".join(reason.split())}')
    if not reasons:
        return OK, f'compatible with {profile_text(asked)}'
    return FAULT if len(reasons) == len(publishers) else NOTE, (
        f'incompatible with {profile_text(asked)}, which the localizer asks for: '
        + '; '.join(reasons))


def topic_finding(
    name: str, topic: str, publishers: Sequence[End], asked: QoSProfile, *,
    others: Sequence[str] = (), needed: bool = True,
) -> Finding:
    """
    Judge a topic before anything was heard on it.

    others: topics with messages of that type, to name one that may have been meant; needed: the
    localizer can do nothing without it.
    """
    verdict, quality = quality_verdict(publishers, asked)
    text = ''
    if verdict == FAULT:
        text = 'no message passes; change one of the two qualities of service'
    elif not publishers:
        verdict, text = (FAULT if needed else OK), 'nobody publishes it'
        if needed and others:
            named = ', '.join(sorted(others)[:OTHERS_NAMED])
            text += f'; of that type are {named}: remap, or name it here'
    return Finding(name, verdict, text, topic, publisher_texts(publishers), quality)


def stamp_problem(stamp_ns: int, now_ns: int, clock_is_published: bool) -> tuple[str, str]:
    """Give verdict and text on the stamp of an image, by the clock of this machine."""
    fault = clock_fault(stamp_ns, now_ns, USUAL)
    if fault is None:
        return OK, ''
    if fault.kind == 'stamp_zero':
        return FAULT, fault.text
    # Old images are to be expected of a bag, and of this process where the machine is busy.
    return NOTE, f'{fault.text}; /clock is {"" if clock_is_published else "not "}published'


def read_image(message: Image | CompressedImage) -> tuple[tuple[int, int] | None, str]:
    """Give width and height of an image, or None and why the localizer cannot read it."""
    read = compressed_to_rgb if isinstance(message, CompressedImage) else image_to_rgb
    try:
        height, width = read(message).shape[:2]
    except FrameRejected as error:
        return None, str(error)
    return (width, height), ''


def image_text(message: Image | CompressedImage) -> str:
    """Describe a picture."""
    if isinstance(message, CompressedImage):
        return f"frame '{message.header.frame_id}', {message.format or 'compressed'}"
    return (f"frame '{message.header.frame_id}', {message.width} x {message.height} "
            f'{message.encoding}')


def camera_problem(
    infos: Sequence[CameraInfo], frame_id: str, size: tuple[int, int] | None, rectified: bool,
) -> str:
    """
    Say why camera_infos give no camera for an image; '' where they do.

    frame_id, size: of the image, None where none was heard; rectified: whether it is.
    """
    cache = CameraCache(rectified=rectified)
    complaints = list(filter(None, map(cache.put, infos)))
    if complaints:
        return '; '.join(complaints)
    if size is None:
        return ''
    try:
        cache.get(frame_id, *size)
    except DataError as error:
        return str(error)
    return ''


def exit_code(findings: Sequence[Finding]) -> int:
    """Give 1 if an input is at fault."""
    return int(any(finding.verdict == FAULT for finding in findings))


def report_lines(findings: Sequence[Finding]) -> list[str]:
    """Lay the findings out for a terminal, a paragraph each."""
    lines = []
    for finding in findings:
        lines.append(f'{finding.verdict.upper():5} {finding.input}'
                     + (f': {finding.topic}' if finding.topic else ''))
        if finding.publishers:
            lines.append(f'      from {", ".join(finding.publishers)}')
        if finding.quality:
            lines.append(f'      {finding.quality}')
        if finding.stamp_ns is not None:
            seconds, rest = divmod(finding.stamp_ns, SECOND)
            age = '' if finding.age is None else f', {finding.age:.3f} s old'
            lines.append(f'      last stamp {seconds}.{rest:09d}{age}')
        if finding.text:
            lines.append(f'      {finding.text}')
    return lines
