"""Scores of pose streams against what was put in."""

import csv
import math

from fake_localizer import moved
from nerfmatch_ros.data.trajectory import Trajectory
from nerfmatch_ros.evaluation.stream_report import (
    compare_streams,
    Drive,
    format_frames,
    score_stream,
    score_transforms,
    StampedPose,
    transform_errors,
    truth_at_frames,
)
import numpy as np
import pytest

START, PERIOD = 1_700_000_000_000_000_000, 200_000_000


def way(count=10):
    """A straight way at 1 m/s."""
    return [moved(np.eye(4), 0.2 * i, 0.1, 0.0, 0.0, 0.0, 0.02 * i) for i in range(count)]


def stamps(count=10):
    return START + PERIOD * np.arange(count, dtype=np.int64)


def drive(count=10, truth=True, **more):
    return Drive(stamps(count), np.array(way(count)) if truth else None, **more)


def stream(offsets, latency=0.05, std=0.01):
    """Poses off by (x, ...) each; None: no pose."""
    return [StampedPose(int(stamp), moved(pose, *offset), np.eye(6) * std ** 2, latency)
            for stamp, pose, offset in zip(stamps(), way(), offsets) if offset is not None]


def test_a_perfect_stream_has_no_errors():
    report = score_stream(stream([()] * 10), drive(extent=4.0))
    assert report['queries'] == report['localized'] == report['frames'] == report['poses'] == 10
    assert report['median_translation_m'] < 1e-12 and set(report['recall'].values()) == {1.0}
    assert report['anees'] == pytest.approx(0, abs=1e-9) and report['map_extent_m'] == 4.0
    assert report['jumps']['count'] == 0 and report['confident_but_wrong'] == 0
    assert report['time_to_first_fix_s'] == 0 and report['longest_gap_s'] == pytest.approx(0.2)
    assert report['longest_gap_frames'] == 0 and report['rate_hz'] == pytest.approx(5.0)
    assert report['latency_s'] == {'p50': 0.05, 'p95': 0.05}
    assert report['out_of_order'] == report['unknown_stamps'] == report['poses_without_truth'] == 0


def test_every_frame_stays_in_the_denominator():
    report = score_stream(stream([None] * 6 + [(0.01,)] * 4), drive())
    assert (report['queries'], report['localized']) == (10, 4)
    assert report['median_translation_m'] is None
    assert report['recall'] == dict.fromkeys(
        ('5cm_5deg', '10cm_1deg', '25cm_2deg', '50cm_5deg'), 0.4)
    # 1 cm of error, 1 cm of standard deviation.
    assert report['anees'] == pytest.approx(1.0)
    assert report['time_to_first_fix_s'] == pytest.approx(1.2)


def test_gaps_are_counted_from_the_first_pose_to_the_end_of_the_drive():
    report = score_stream(stream([None, (), (), None, None, None, (), (), (), ()]), drive())
    assert report['longest_gap_s'] == pytest.approx(0.8) and report['longest_gap_frames'] == 3
    report = score_stream(stream([(), ()] + [None] * 8), drive())
    assert report['longest_gap_s'] == pytest.approx(1.6) and report['longest_gap_frames'] == 8
    report = score_stream([], drive())
    assert report['longest_gap_s'] is None and report['time_to_first_fix_s'] is None
    assert report['rate_hz'] == 0 and report['latency_s'] == {'p50': None, 'p95': None}


@pytest.mark.parametrize('truth', [True, False])
def test_jumps_are_steps_that_the_body_did_not_make(truth):
    # Off by a constant: no jump. Then half a metre away for three frames: out and back.
    offsets = [(0, 0.3)] * 4 + [(0.5, 0.3)] * 3 + [(0, 0.3)] * 3
    odometry = Trajectory(stamps(), np.linalg.inv(moved(np.eye(4), 3, 4, 0, 0, 0, 2)) @ way())
    report = score_stream(stream(offsets), drive(truth=truth, odometry=odometry))
    assert report['jumps']['count'] == 2
    assert report['jumps']['largest_m'] == pytest.approx(0.5, rel=0.01)
    turned = [()] * 5 + [(0, 0, 0, 0, 0, math.radians(7))] * 5
    report = score_stream(stream(turned), drive(truth=truth, odometry=odometry))
    assert report['jumps']['count'] == 1
    assert report['jumps']['largest_deg'] == pytest.approx(7)
    assert ('queries' in report) == truth


def test_a_confident_wrong_pose_is_counted():
    report = score_stream(stream([(0.6,)] + [()] * 9), drive())
    assert report['confident_but_wrong'] == 1


def test_frames_that_the_truth_leaves_out_are_no_queries_but_their_poses_are_counted():
    truth = Trajectory(stamps()[::2], np.array(way())[::2])
    known = Drive(stamps(), truth_at_frames(truth, stamps()))
    assert known.queries.tolist() == [True, False] * 5
    report = score_stream(stream([()] * 3 + [None] * 7), known)
    assert (report['queries'], report['localized'], report['poses_without_truth']) == (5, 2, 1)


def test_a_truth_with_stamps_of_its_own_is_interpolated_but_not_over_long_gaps():
    truth = Trajectory(stamps() + 7, np.array(way()))
    found = truth_at_frames(truth, stamps())
    assert np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:, 0, 3], [0.2 * i - 7e-9 for i in range(1, 10)], atol=1e-9)
    sparse = Trajectory(truth.stamps_ns[[0, 8]], truth.poses[[0, 8]])
    assert np.isnan(truth_at_frames(sparse, stamps())).all()


def test_stamps_that_are_no_frames_or_go_back_are_reported():
    poses = stream([()] * 4)
    strange = StampedPose(START + 1, np.eye(4))
    report = score_stream([poses[0], strange, poses[2], poses[1], poses[1]], drive())
    assert (report['unknown_stamps'], report['out_of_order']) == (1, 2)
    assert report['localized'] == 3


def test_streams_are_compared_on_the_frames_that_have_both():
    fast = stream([(0.10,)] * 5 + [None] * 2 + [(0.04,)] * 3)
    refined = stream([(0.01,)] * 4 + [None] + [(0.01,)] * 4 + [(0.05,)])
    report = compare_streams(refined, fast, drive())
    assert report['pairs'] == 7
    assert report['unrefined_median_translation_m'] == pytest.approx(0.10)
    assert report['refined_median_translation_m'] == pytest.approx(0.01)
    assert report['refined_closer'] == pytest.approx(6 / 7)
    assert compare_streams(refined, fast, drive(truth=False)) is None
    assert compare_streams([], fast, drive())['pairs'] == 0


def test_transforms_are_compared_with_the_truth_at_their_own_stamps():
    truth = Trajectory(stamps(), np.array(way()))
    between = stamps()[:-1] + PERIOD // 2
    poses = np.array([moved(pose, 0.0, 0.02 * i) for i, pose in enumerate(truth.at(between))])
    late = Trajectory(np.append(between, START + 10**12), np.concatenate((poses, poses[:1])))
    errors = transform_errors(late, truth)
    np.testing.assert_allclose(errors[:, 1], 0.02 * np.arange(9), atol=1e-9)
    np.testing.assert_allclose(errors[:, 0], 0.2 * np.arange(9))
    report = score_transforms(errors)
    assert report['samples'] == 9
    assert report['translation_m']['median'] == pytest.approx(0.08)
    assert report['translation_m']['max'] == pytest.approx(0.16)
    empty = score_transforms(transform_errors(Trajectory.of([]), truth))
    assert empty['samples'] == 0 and empty['rotation_deg']['max'] is None


def test_the_table_of_frames_has_a_line_for_each():
    text = format_frames(drive(), {'fast': stream([(0.03,), None] * 5), 'pose': []},
                         {START: 'accepted', START + PERIOD: 'too few matches'})
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 10 and rows[0]['stamp'] == '1700000000.000000000'
    assert float(rows[0]['fast_translation_error_m']) == pytest.approx(0.03)
    assert float(rows[0]['fast_nees']) == pytest.approx(9)
    assert rows[1]['outcome'] == 'too few matches' and rows[1]['fast_nees'] == ''
    assert {row['pose_latency_s'] for row in rows} == {''}
    rows = list(csv.DictReader(format_frames(
        drive(truth=False), {'fast': stream([()] * 10)}, {}).splitlines()))
    assert rows[0]['truth'] == '0' and rows[0]['fast_translation_error_m'] == ''
