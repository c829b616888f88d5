"""The pictures of the keyframes of a bag: of each stretch of the way the sharpest one."""

from collections.abc import Callable

from nerfmatch_ros.data.keyframes import sharpness, spread_evenly
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.bag import BagReader, decoded
from nerfmatch_ros.ros.bag_camera import BagCamera
from nerfmatch_ros.ros.bag_report import Frame, KEPT
from nerfmatch_ros.ros.bag_scan import BagScan
from nerfmatch_ros.ros.frame_folder import FrameFolder, PICTURES
from nerfmatch_ros.ros.frame_gate import picture_fault
from nerfmatch_ros.ros.frame_picture import FramePicture, largest_of_16_bits, picture_of
from nerfmatch_ros.ros.image_messages import FrameRejected
import numpy as np

CANDIDATES = 8  # frames of a segment that are decoded to find the sharpest

Report = Callable[[float, dict], None]


def candidates(frames: list[Frame], starts: np.ndarray) -> list[list[Frame]]:
    """Give the frames of each segment that are compared, and mark the others."""
    segments = []
    for start, stop in zip(starts.tolist(), [*starts[1:].tolist(), len(frames)]):
        segments.append([frames[k] for k in spread_evenly(start, stop, CANDIDATES)])
    chosen = {frame.index for segment in segments for frame in segment}
    for frame in frames:
        if frame.index not in chosen:
            frame.outcome = 'not_compared'
    return segments


def take_pictures(
    place: FrameFolder, scan: BagScan, frames: list[Frame], segments: list[list[Frame]],
    cameras: BagCamera, journal: list[dict], report: Report,
) -> int:
    """
    Write the sharpest picture of each segment; what the journal has is done already.

    Gives the largest sample of all that were looked at, of images of 16 bits; 0 of others.
    """
    done = _restore(place, frames, journal)
    largest = max((record.get('largest', 0) for record in journal), default=0)
    segment_of = {frame.index: number for number, segment in enumerate(segments)
                  if number not in done for frame in segment}
    remaining = len(segment_of)
    if not remaining:
        return largest
    picker = _Sharpest(place, cameras)
    current = None
    with BagReader(scan.path) as bag:
        message_type = bag.topics[scan.image_topic].type
        for index, (_, _, data) in enumerate(bag.serialized([scan.image_topic])):
            number = segment_of.get(index)
            if number is None:
                continue
            if number != current and current is not None:
                picker.settle(current, segments[current])
            current = number
            picker.look(frames[index], data, message_type, scan.compressed)
            remaining -= 1
            report(1 - remaining / len(segment_of), {'keyframes': picker.kept + len(done)})
            if not remaining:
                break
    if current is not None:
        picker.settle(current, segments[current])
    report(1.0, {'keyframes': picker.kept + len(done)})
    return max(largest, picker.largest)


def _restore(place: FrameFolder, frames: list[Frame], journal: list[dict]) -> set[int]:
    """Repeat what a run before wrote down, and give the segments that are done."""
    done = set()
    for record in journal:
        name = record['name']
        if name and not (place.folder / name).is_file():
            continue
        for index, outcome, detail, sharp in record['frames']:
            frame = frames[index]
            frame.outcome, frame.detail = outcome, detail
            frame.sharpness = float('nan') if sharp is None else sharp
            frame.name = name if outcome == KEPT else ''
        done.add(record['segment'])
    return done


class _Sharpest:
    """Looks at the frames of a segment one after the other and keeps the sharpest."""

    def __init__(self, place: FrameFolder, cameras: BagCamera):
        self._place, self._cameras = place, cameras
        self._best: tuple[Frame, FramePicture] | None = None
        self.kept = 0
        self.largest = 0  # sample of images of 16 bits

    def look(self, frame: Frame, data: bytes, message_type: str, compressed: bool) -> None:
        """Judge a frame by its message (CDR)."""
        try:
            message = decoded(data, message_type)
            picture = picture_of(message, compressed)
            height, width = picture.rgb.shape[:2]
            self._cameras.of_picture(frame.index, width, height)
        except FrameRejected as error:
            frame.outcome, frame.detail = error.kind, str(error)
            return
        except DataError as error:
            frame.outcome, frame.detail = 'unreadable', str(error)
            return
        self.largest = max(self.largest, largest_of_16_bits(message, compressed))
        frame.outcome = picture_fault(picture.rgb)
        if frame.outcome:
            return
        frame.sharpness = sharpness(picture.rgb)
        frame.outcome = 'less_sharp'
        if self._best is None or frame.sharpness > self._best[0].sharpness:
            self._best = frame, picture

    def settle(self, number: int, segment: list[Frame]) -> None:
        """Write the picture of a segment, then that it is done."""
        name = ''
        if self._best is not None:
            frame, picture = self._best
            seconds, rest = divmod(frame.stamp_ns, 10**9)
            name = f'{PICTURES}/{seconds:010d}.{rest:09d}{picture.suffix}'
            self._place.write_picture(name, picture.encoded())
            frame.outcome, frame.name = KEPT, name
            self._best = None
            self.kept += 1
        self._place.note({'segment': number, 'name': name, 'largest': self.largest, 'frames': [
            (frame.index, frame.outcome, frame.detail,
             frame.sharpness if np.isfinite(frame.sharpness) else None) for frame in segment]})
