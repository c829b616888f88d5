"""
Scores of a pose stream: how accurate, how often, how late, how steady.

A frame is an image that went in; a query is a frame whose true pose is known. Every query counts,
also one that brought no pose: its error is infinite, as in `evaluation.metrics`.
"""

from collections.abc import Mapping, Sequence
import csv
from dataclasses import dataclass
import io
import math

from nerfmatch_ros.data.trajectory import Trajectory
from nerfmatch_ros.evaluation import metrics
from nerfmatch_ros.evaluation.evaluate import json_ready
from nerfmatch_ros.geometry.pose import pose_distance
import numpy as np
import torch

# A step of the stream that differs from the true one by more than either is a jump.
JUMP_METRES, JUMP_DEGREES = 0.25, 5.0
# True poses further apart than this say nothing about the time between them.
LONGEST_TRUTH_GAP_NS = 10**9


@dataclass(frozen=True, eq=False)
class StampedPose:
    """A pose that came out of the stream."""

    stamp_ns: int  # of its image
    map_from_body: np.ndarray  # (4, 4)
    covariance: np.ndarray | None = None  # (6, 6), as everywhere
    latency: float = math.nan  # seconds, from when the image was sent until the pose was there


@dataclass(frozen=True, eq=False)
class Drive:
    """What went in, and what is known about it."""

    frames_ns: np.ndarray  # (F,) int64 stamps of the images, increasing
    true_poses: np.ndarray | None  # (F, 4, 4) map_from_body; NaN where unknown; None: no truth
    odometry: Trajectory | None = None  # odom_from_body
    extent: float | None = None  # metres, diagonal of the box around the map's cameras

    @property
    def queries(self) -> np.ndarray:
        """Tell which frames count, (F,) bool."""
        if self.true_poses is None:
            return np.ones(len(self.frames_ns), bool)
        return np.isfinite(self.true_poses).all(axis=(1, 2))


def truth_at_frames(truth: Trajectory, frames_ns: np.ndarray) -> np.ndarray:
    """
    Give the true poses (F, 4, 4) of frames (F,), NaN where unknown.

    Frames and truth that share stamps belong together one to one, so a frame that the truth leaves
    out is unknown. Otherwise the truth was measured on its own, and is interpolated.
    """
    shared = np.isin(frames_ns, truth.stamps_ns)
    if not shared.any():
        return truth.at(frames_ns, LONGEST_TRUTH_GAP_NS)
    poses = np.full((len(frames_ns), 4, 4), np.nan)
    poses[shared] = truth.at(frames_ns[shared])
    return poses


def score_stream(stream: Sequence[StampedPose], drive: Drive) -> dict:
    """Give the report of one stream; the keys it shares with `evaluate` mean the same."""
    at_frames = _by_frame(stream, drive.frames_ns)
    came = np.array([pose is not None for pose in at_frames], bool)
    report = {'frames': len(drive.frames_ns), 'poses': len(stream)}
    if drive.true_poses is not None:
        report |= _accuracy(at_frames, drive)
        report['poses_without_truth'] = int(np.count_nonzero(came & ~drive.queries))
    latencies = np.array([pose.latency for pose in stream if math.isfinite(pose.latency)])
    stamps = np.array([pose.stamp_ns for pose in stream], np.int64)
    report |= {
        'latency_s': {'p50': metrics.percentile(latencies, 50),
                      'p95': metrics.percentile(latencies, 95)},
        **_timing(came, drive.frames_ns),
        'jumps': _jumps(at_frames, drive),
        'out_of_order': int(np.count_nonzero(np.diff(stamps) <= 0)),
        'unknown_stamps': int(np.count_nonzero(~np.isin(stamps, drive.frames_ns))),
    }
    return json_ready(report)


def compare_streams(
    refined: Sequence[StampedPose], fast: Sequence[StampedPose], drive: Drive,
) -> dict | None:
    """Compare the errors on the frames that have both poses and the truth; None: no truth."""
    if drive.true_poses is None:
        return None
    both = [(a, b, truth) for a, b, truth in zip(
        _by_frame(refined, drive.frames_ns), _by_frame(fast, drive.frames_ns), drive.true_poses)
        if a is not None and b is not None and np.isfinite(truth).all()]
    truths = [truth for *_, truth in both]
    after = metrics.pose_errors([a.map_from_body for a, _, _ in both], truths)
    before = metrics.pose_errors([b.map_from_body for _, b, _ in both], truths)
    closer = after.translation < before.translation
    return json_ready({
        'pairs': len(both),
        'unrefined_median_translation_m': metrics.median(before.translation),
        'refined_median_translation_m': metrics.median(after.translation),
        'unrefined_median_rotation_deg': metrics.median(before.rotation),
        'refined_median_rotation_deg': metrics.median(after.rotation),
        'refined_closer': float(np.mean(closer)) if both else math.nan,
    })


def transform_errors(way: Trajectory, truth: Trajectory) -> np.ndarray:
    """
    Compare the body's way by the transforms, map_from_body, with the true one, interpolated.

    Gives (K, 3): stamp in seconds since the first of them, metres, degrees; only where the truth
    is known.
    """
    true_poses = truth.at(way.stamps_ns, LONGEST_TRUTH_GAP_NS)
    known = np.isfinite(true_poses).all(axis=(1, 2))
    metres, radians = (distance.numpy() for distance in pose_distance(
        torch.from_numpy(way.poses[known]), torch.from_numpy(true_poses[known])))
    stamps = way.stamps_ns[known]
    seconds = (stamps - stamps[:1]) / 1e9
    return np.stack((seconds, metres, np.degrees(radians)), axis=-1)


def score_transforms(errors: np.ndarray) -> dict:
    """Give median, 95th percentile and maximum of `transform_errors` (K, 3)."""
    report: dict = {'samples': len(errors)}
    for name, values in (('translation_m', errors[:, 1]), ('rotation_deg', errors[:, 2])):
        report[name] = {'median': metrics.percentile(values, 50),
                        'p95': metrics.percentile(values, 95),
                        'max': metrics.percentile(values, 100)}
    return json_ready(report)


def format_frames(
    drive: Drive, streams: Mapping[str, Sequence[StampedPose]], outcomes: Mapping[int, str],
) -> str:
    """
    Give the text of frames.csv: a line a frame, what became of it and its error in each stream.

    outcomes: what the localizer said about a frame, by stamp in ns.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    parts = ('translation_error_m', 'rotation_error_deg', 'position_std_m', 'nees', 'latency_s')
    writer.writerow(['stamp', 'truth', 'outcome'] + [
        f'{name}_{part}' for name in streams for part in parts])
    columns = {name: _by_frame(stream, drive.frames_ns) for name, stream in streams.items()}
    queries = drive.queries & (drive.true_poses is not None)
    for i, stamp in enumerate(drive.frames_ns.tolist()):
        truth = drive.true_poses[i] if queries[i] else None
        row = [f'{stamp // 10**9}.{stamp % 10**9:09d}', int(queries[i]), outcomes.get(stamp, '')]
        for column in columns.values():
            row += _cells(column[i], truth)
        writer.writerow(row)
    return text.getvalue()


def _accuracy(at_frames: list[StampedPose | None], drive: Drive) -> dict:
    chosen = np.flatnonzero(drive.queries)
    poses = [None if at_frames[i] is None else at_frames[i].map_from_body for i in chosen]
    covariances = [None if at_frames[i] is None else at_frames[i].covariance for i in chosen]
    truths = drive.true_poses[chosen]
    errors = metrics.pose_errors(poses, truths)
    recall = metrics.recalls(errors, drive.extent or math.nan)
    if drive.extent is None:
        del recall['1pct_extent_1deg']
    return {
        'queries': len(chosen),
        'localized': sum(pose is not None for pose in poses),
        'median_translation_m': metrics.median(errors.translation),
        'median_rotation_deg': metrics.median(errors.rotation),
        'recall': recall,
        'map_extent_m': drive.extent,
        'confident_but_wrong': metrics.confident_but_wrong(
            errors, np.array([_position_std(covariance) for covariance in covariances])),
        'anees': metrics.average_nees(poses, truths, covariances),
    }


def _timing(came: np.ndarray, frames_ns: np.ndarray) -> dict:
    """Give what depends on the stamps alone, in seconds of the drive."""
    indices = np.flatnonzero(came)
    if not len(indices):
        return {'rate_hz': 0.0, 'time_to_first_fix_s': None, 'longest_gap_s': None,
                'longest_gap_frames': None}
    stamps = frames_ns[indices]
    duration = (stamps[-1] - stamps[0]) / 1e9
    # The end of the drive closes the last gap.
    marks = np.append(indices, len(frames_ns))
    times = np.append(stamps, frames_ns[-1])
    return {
        'rate_hz': (len(indices) - 1) / duration if duration > 0 else 0.0,
        'time_to_first_fix_s': (stamps[0] - frames_ns[0]) / 1e9,
        'longest_gap_s': float(np.diff(times).max() / 1e9),
        'longest_gap_frames': int(np.diff(marks).max() - 1),
    }


def _jumps(at_frames: list[StampedPose | None], drive: Drive) -> dict:
    """Count the steps that the body did not make, by the truth or else by odometry."""
    indices = [i for i, pose in enumerate(at_frames) if pose is not None]
    if drive.true_poses is not None:
        reference = drive.true_poses
    elif drive.odometry is not None:
        reference = drive.odometry.at(drive.frames_ns)
    else:
        return {'count': None, 'largest_m': None, 'largest_deg': None}
    sizes = [_step_error(at_frames[i].map_from_body, at_frames[j].map_from_body,
                         reference[i], reference[j])
             for i, j in zip(indices, indices[1:])
             if np.isfinite(reference[[i, j]]).all()]
    metres, degrees = np.array(sizes).reshape(-1, 2).T
    return {
        'count': int(np.count_nonzero((metres > JUMP_METRES) | (degrees > JUMP_DEGREES))),
        'largest_m': float(metres.max(initial=0.0)),
        'largest_deg': float(degrees.max(initial=0.0)),
    }


def _step_error(
    first: np.ndarray, second: np.ndarray, true_first: np.ndarray, true_second: np.ndarray,
) -> tuple[float, float]:
    """Give how far the step from the first to the second pose misses the true one: m, degrees."""
    made = np.linalg.inv(first) @ second
    true = np.linalg.inv(true_first) @ true_second
    metres, radians = pose_distance(torch.from_numpy(made), torch.from_numpy(true))
    return float(metres), math.degrees(radians)


def _by_frame(
    stream: Sequence[StampedPose], frames_ns: np.ndarray,
) -> list[StampedPose | None]:
    """Give the first pose of each frame, one to one, or None."""
    first: dict[int, StampedPose] = {}
    for pose in stream:
        first.setdefault(pose.stamp_ns, pose)
    return [first.get(stamp) for stamp in frames_ns.tolist()]


def _cells(pose: StampedPose | None, truth: np.ndarray | None) -> list[str]:
    if pose is None:
        return [''] * 5
    translation = rotation = nees = math.nan
    if truth is not None:
        errors = metrics.pose_errors([pose.map_from_body], [truth])
        translation, rotation = errors.translation[0], errors.rotation[0]
        nees = metrics.average_nees([pose.map_from_body], [truth], [pose.covariance])
    values = (translation, rotation, _position_std(pose.covariance), nees, pose.latency)
    return [f'{value:.6g}' if math.isfinite(value) else '' for value in values]


def _position_std(covariance: np.ndarray | None) -> float:
    if covariance is None or not np.isfinite(covariance).all():
        return math.nan
    return math.sqrt(max(float(np.linalg.eigvalsh(covariance[:3, :3])[-1]), 0.0))
