"""What became of every image of a bag: report.json, frames.csv, trajectory.png."""

from collections import Counter
from collections.abc import Sequence
import csv
from dataclasses import dataclass
import io
import json
from pathlib import Path

from nerfmatch_ros.evaluation.evaluate import json_ready
from nerfmatch_ros.evaluation.pictures import draw_way
from nerfmatch_ros.files import write_text
import numpy as np

REPORT, FRAMES, PICTURE = 'report.json', 'frames.csv', 'trajectory.png'
KEPT = 'kept'
# The other kinds are those of FrameRejected and of picture_fault: what is wrong with a picture.
OUTCOMES = {
    KEPT: 'a keyframe',
    'less_sharp': 'the sharpest frame of the same stretch of the way was kept instead',
    'not_compared': 'the same stretch of the way has enough other frames to choose from',
    'no_pose': 'no pose at its stamp, or in a gap',
    'repeated': 'the same picture as the one before: a frozen camera or a repeating driver',
    'duplicate': 'the same stamp as another image',
    'out_of_order': 'its stamp does not come after those before',
    'stamp_zero': 'no stamp',
    'other_camera': 'another frame_id than most images of the topic',
    'unreadable': 'the message itself is damaged',
    'dark': 'almost black', 'saturated': 'almost white', 'flat': 'without any contrast',
}


@dataclass
class Frame:
    """An image of the bag and what became of it."""

    index: int  # in the order of the bag
    received_ns: int
    stamp_ns: int
    outcome: str = ''  # a key of OUTCOMES, or a kind of FrameRejected
    detail: str = ''
    name: str = ''  # of the picture, if it was kept
    sharpness: float = float('nan')  # variance of the Laplacian; of those that were compared
    pose: np.ndarray | None = None  # (4, 4) frame_from_camera


def counts_of(frames: Sequence[Frame]) -> dict[str, int]:
    """Count the outcomes, the most frequent first."""
    return dict(Counter(frame.outcome for frame in frames).most_common())


def write_reports(folder: Path, frames: Sequence[Frame], report: dict, title: str) -> None:
    """Write the three files; report: what else is said of the whole."""
    counts = counts_of(frames)
    faults = {}
    for frame in frames:
        if frame.detail:
            faults.setdefault(frame.outcome, frame.detail)
    kept = counts.pop(KEPT, 0)
    write_text(folder / REPORT, json.dumps(json_ready({
        'frames_read': len(frames), 'kept': kept, 'dropped': counts,
        'meaning': {kind: OUTCOMES[kind] for kind in counts if kind in OUTCOMES},
        'first_detail': faults, **report}), indent=2) + '\n')
    write_text(folder / FRAMES, _table(frames))
    way = [frame for frame in frames if frame.pose is not None or frame.outcome == 'no_pose']
    if any(frame.pose is not None for frame in way):
        unknown = np.full((4, 4), np.nan)
        draw_way(np.array([unknown if frame.pose is None else frame.pose for frame in way]),
                 np.array([frame.outcome == KEPT for frame in way]), folder / PICTURE,
                 title=title, z_up=report['z_up'])


def _table(frames: Sequence[Frame]) -> str:
    text = io.StringIO()
    table = csv.writer(text, lineterminator='\n')
    table.writerow(('index', 'stamp_ns', 'received_ns', 'outcome', 'name', 'sharpness', 'x_m',
                    'y_m', 'z_m', 'detail'))
    for frame in frames:
        place = [''] * 3 if frame.pose is None else [f'{v:.4f}' for v in frame.pose[:3, 3]]
        sharp = f'{frame.sharpness:.2f}' if np.isfinite(frame.sharpness) else ''
        table.writerow((frame.index, frame.stamp_ns, frame.received_ns, frame.outcome, frame.name,
                        sharp, *place, frame.detail))
    return text.getvalue()
