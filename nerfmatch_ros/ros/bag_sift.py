"""Which images of a bag may become keyframes, told without their pictures, and why others not."""

from collections import Counter
from collections.abc import Sequence

from nerfmatch_ros.data.keyframes import increasing
from nerfmatch_ros.ros.bag_options import BagFrameOptions
from nerfmatch_ros.ros.bag_report import counts_of, Frame, OUTCOMES
from nerfmatch_ros.ros.bag_scan import BagScan, ScannedImage
import numpy as np


def sift(
    frames: Sequence[Frame], images: Sequence[ScannedImage], frame_id: str,
) -> list[Frame]:
    """Give the frames of one camera with good stamps, in order, and mark the others."""
    for frame, image in zip(frames, images):
        if image.fault:
            frame.outcome, frame.detail = 'unreadable', image.fault
        elif image.frame_id != frame_id:
            frame.outcome, frame.detail = 'other_camera', f"frame_id '{image.frame_id}'"
        elif frame.stamp_ns <= 0:
            frame.outcome = 'stamp_zero'
    left = [frame for frame in frames if not frame.outcome]
    in_order = increasing(np.array([frame.stamp_ns for frame in left], np.int64))
    stamps = {frame.stamp_ns for frame, kept in zip(left, in_order) if kept}
    newest = 0
    previous = None
    for frame, kept in zip(left, in_order):
        fingerprint = images[frame.index].fingerprint
        if not kept:
            frame.outcome = 'duplicate' if frame.stamp_ns in stamps else 'out_of_order'
            if newest:
                frame.detail = f'{(frame.stamp_ns - newest) / 1e9:+.3f} s from the one before'
            continue
        newest = frame.stamp_ns
        if fingerprint == previous:
            frame.outcome = 'repeated'
        previous = fingerprint
    return [frame for frame in left if not frame.outcome]


def stamp_of(image: ScannedImage, options: BagFrameOptions) -> int:
    """Give the stamp that counts, in ns."""
    return image.received_ns if options.image_stamps == 'received' else image.stamp_ns


def main_frame(scan: BagScan) -> str:
    """Give the frame_id that most images have."""
    names = Counter(image.frame_id for image in scan.images if not image.fault)
    return names.most_common(1)[0][0] if names else ''


def nothing_usable(scan: BagScan, frames: list[Frame]) -> str:
    """Say of what use all these frames are: none."""
    counts = counts_of(frames)
    detail = next((frame.detail for frame in frames if frame.detail), '')
    text = (f'none of {len(frames)} images on {scan.image_topic} of the bag {scan.path} can be '
            'used: ' + ', '.join(f'{count} {OUTCOMES.get(kind, kind)}'
                                 for kind, count in counts.items()))
    if 'stamp_zero' in counts:
        return f'{text}. --image-stamps received takes the time of recording for their stamps'
    return f'{text}; {detail}' if detail else text
