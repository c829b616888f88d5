"""What came out of a replay, its scores, and the files that hold them."""

from collections import Counter
from dataclasses import dataclass, field
from decimal import Decimal
import json
from pathlib import Path

from nerfmatch_ros.data.tum import format_tum
from nerfmatch_ros.evaluation.stream_report import (
    compare_streams,
    Drive,
    format_frames,
    score_stream,
    score_transforms,
    StampedPose,
    transform_errors,
)
from nerfmatch_ros.files import write_text
from nerfmatch_ros.ros.replay_input import drive_of, ReplayFrames, ReplayInput, way_of_base
import numpy as np
from rich.console import Console
from rich.table import Table

# fast: each image on its own; pose: fused, what a robot uses; refined: looked at again, later
FAST, POSE, REFINED = 'fast', 'pose', 'refined'
# Frames of which this was said brought a pose of their own.
ACCEPTED = ('accepted', 'relocalized')


@dataclass(eq=False)
class ReplayResult:
    """Everything that came out, in the order in which it came."""

    streams: dict[str, list[StampedPose]] = field(
        default_factory=lambda: {FAST: [], POSE: [], REFINED: []})
    transforms: list[tuple[str, int, np.ndarray]] = field(
        default_factory=list)  # child, stamp in ns, map_from_child (4, 4)
    outcomes: dict[int, str] = field(default_factory=dict)  # by stamp in ns
    notes: dict[str, object] = field(default_factory=dict)  # further entries of the report


def summarize_replay(
    result: ReplayResult, found: ReplayInput, frames: ReplayFrames, drive: Drive,
) -> tuple[dict, np.ndarray]:
    """Give the report, and the errors over time of the transforms (`transform_errors`)."""
    streams = {name: score_stream(stream, drive) for name, stream in result.streams.items()}
    report: dict = {
        'queries': 0,  # without the truth
        **streams[POSE],  # what a robot uses; the keys of `nerfmatch evaluate` are among them
        'duration_s': float(np.ptp(drive.frames_ns) / 1e9) if len(drive.frames_ns) else 0.0,
        'outcomes': dict(sorted(Counter(result.outcomes.values()).items())),
        'streams': streams,
        'refined_vs_fast': compare_streams(
            result.streams[REFINED], result.streams[FAST], drive),
        'refined_vs_pose': compare_streams(
            result.streams[REFINED], result.streams[POSE], drive),
        **result.notes,
    }
    errors = np.zeros((0, 3))
    if found.truth is not None:
        errors = transform_errors(way_of_base(found, frames, result.transforms), found.truth)
        report['tf'] = score_transforms(errors)
    return report, errors


def write_replay(
    result: ReplayResult, found: ReplayInput, frames: ReplayFrames, output: Path,
    extent: float | None,
) -> dict:
    """Write the files of a replay into the folder and return the report."""
    drive = drive_of(found, frames, extent)
    report, errors = summarize_replay(result, found, frames, drive)
    for name, stream in result.streams.items():
        poses = [(pose.stamp_ns, pose.map_from_body) for pose in stream]
        write_text(output / _tum_name(name), _tum(poses))
    if drive.true_poses is not None:
        known = [(stamp, pose) for stamp, pose, query in zip(
            drive.frames_ns.tolist(), drive.true_poses, drive.queries) if query]
        write_text(output / 'true_poses.tum', _tum(known))
        lines = ['seconds,translation_error_m,rotation_error_deg']
        lines += [','.join(f'{value:.6f}' for value in row) for row in errors]
        write_text(output / 'tf_errors.csv', '\n'.join(lines) + '\n')
    write_text(output / 'frames.csv', format_frames(drive, result.streams, result.outcomes))
    # matplotlib is slow to import and the figures above stand without it.
    from nerfmatch_ros.evaluation.pictures import draw_streams
    draw_streams(drive, result.streams, output / 'trajectory.png')
    # Last, so that a report stands for a complete set of files.
    write_text(output / 'report.json', json.dumps(report, indent=2, allow_nan=False) + '\n')
    return report


def print_replay(report: dict, output: Path) -> None:
    """Print the scores of the streams side by side."""
    table = Table(title=f"{report['frames']} images in {report['duration_s']:.1f} s",
                  title_justify='left')
    table.add_column('')
    for name in report['streams']:
        table.add_column(name, justify='right')
    for title, cell in _ROWS:
        table.add_row(title, *(cell(scores) for scores in report['streams'].values()))
    console = Console()
    console.print(table)
    pairs = report['refined_vs_fast']
    if pairs and pairs['pairs']:
        console.print(
            f"The same {pairs['pairs']} images, refined and fast: "
            f"{_centimetres(pairs['refined_median_translation_m'])}, "
            f"{_degrees(pairs['refined_median_rotation_deg'])} and "
            f"{_centimetres(pairs['unrefined_median_translation_m'])}, "
            f"{_degrees(pairs['unrefined_median_rotation_deg'])}; refined is closer on "
            f"{pairs['refined_closer']:.0%}.")
    if 'tf' in report and report['tf']['samples']:
        metres, angles = report['tf']['translation_m'], report['tf']['rotation_deg']
        console.print(
            f"The robot by /tf: off by {_centimetres(metres['median'])}, "
            f"{_degrees(angles['median'])} in the median, at most {_centimetres(metres['max'])}, "
            f"{_degrees(angles['max'])}.")
    console.print(f'Report, tables and picture: {output}/')


def _tum(poses: list[tuple[int, np.ndarray]]) -> str:
    # Decimal keeps the nanoseconds of a stamp, which a float of today's seconds does not.
    return format_tum((Decimal(stamp) / 10**9, pose) for stamp, pose in poses)


def _tum_name(stream: str) -> str:
    return 'poses.tum' if stream == POSE else f'{stream}_poses.tum'


def _of(*keys: str, shown=str):
    def cell(scores: dict) -> str:
        value: object = scores
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return '-' if value is None else shown(value)
    return cell


def _centimetres(metres: float | None) -> str:
    return '-' if metres is None else f'{100 * metres:.1f} cm'


def _degrees(value: float | None) -> str:
    return '-' if value is None else f'{value:.2f} deg'


def _seconds(value: float) -> str:
    return f'{value:.2f} s'


def _percent(value: float) -> str:
    return f'{value:.0%}'


def _milliseconds(value: float) -> str:
    return f'{1000 * value:.0f} ms'


_ROWS = (
    ('poses', _of('poses')),
    ('median error', _of('median_translation_m', shown=_centimetres)),
    ('median rotation', _of('median_rotation_deg', shown=_degrees)),
    ('within 5 cm, 5 deg', _of('recall', '5cm_5deg', shown=_percent)),
    ('within 10 cm, 1 deg', _of('recall', '10cm_1deg', shown=_percent)),
    ('within 25 cm, 2 deg', _of('recall', '25cm_2deg', shown=_percent)),
    ('within 50 cm, 5 deg', _of('recall', '50cm_5deg', shown=_percent)),
    ('latency p50', _of('latency_s', 'p50', shown=_milliseconds)),
    ('latency p95', _of('latency_s', 'p95', shown=_milliseconds)),
    ('rate', _of('rate_hz', shown=lambda value: f'{value:.1f} Hz')),
    ('first pose after', _of('time_to_first_fix_s', shown=_seconds)),
    ('longest gap', _of('longest_gap_s', shown=_seconds)),
    ('jumps', _of('jumps', 'count')),
    ('largest jump', _of('jumps', 'largest_m', shown=_centimetres)),
    ('ANEES (6 is honest)', _of('anees', shown=lambda value: f'{value:.1f}')),
    ('confident but wrong', _of('confident_but_wrong')),
)
