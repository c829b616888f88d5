"""Keyframes: which stamps, which places of the way, which picture."""

import itertools

import cv2
from nerfmatch_ros.data.keyframes import (
    even_segments,
    increasing,
    motion_segments,
    segments_within,
    sharpness,
    spread_evenly,
)
from nerfmatch_ros.geometry.pose import perturb
import numpy as np
import pytest
import torch


def way(count, metres=0.01, radians=0.0):
    """Give poses that move along x and turn about y, so much between two."""
    delta = torch.zeros(count, 6, dtype=torch.float64)
    delta[:, 0] = metres * torch.arange(count, dtype=torch.float64)
    delta[:, 4] = radians * torch.arange(count, dtype=torch.float64)
    return perturb(torch.eye(4, dtype=torch.float64).expand(count, 4, 4), delta).numpy()


def longest(stamps):
    """Give the length of the longest strictly increasing choice, by trying all."""
    for length in range(len(stamps), 0, -1):
        for chosen in itertools.combinations(stamps, length):
            if all(a < b for a, b in zip(chosen, chosen[1:])):
                return length
    return 0


def test_as_many_stamps_as_can_be_are_kept_in_order():
    generator = np.random.default_rng(5)
    for count in (0, 1, 2, 5, 9, 9, 9):
        stamps = generator.integers(0, 8, count)
        kept = stamps[increasing(stamps)]
        assert (np.diff(kept) > 0).all() and len(kept) == longest(stamps.tolist())


def test_a_stamp_of_another_century_costs_no_other():
    stamps = np.arange(100) * 10
    stamps[40] = 10**12
    kept = increasing(stamps)
    assert kept.sum() == 99 and not kept[40]


def test_of_equal_stamps_the_first_is_kept():
    assert increasing(np.array([1, 2, 2, 3, 3])).tolist() == [True, True, False, True, False]


@pytest.mark.parametrize(('metres', 'radians', 'stride'), [(0.045, 1.0, 5), (1.0, 0.07, 4)])
def test_a_segment_ends_before_the_stride_of_either_kind(metres, radians, stride):
    poses = way(1300, 0.01, 0.02)  # longer than a block that is looked at
    assert motion_segments(poses, metres, radians).tolist() == list(range(0, 1300, stride))


def test_a_robot_that_stands_and_shakes_stays_in_one_segment(generator):
    noise = 0.002 * torch.randn(400, 6, generator=generator, dtype=torch.float64)
    standing = perturb(torch.eye(4, dtype=torch.float64).expand(400, 4, 4), noise).numpy()
    assert motion_segments(standing, 0.02, 0.035).tolist() == [0]


def test_a_long_way_is_shared_evenly_by_as_many_segments_as_there_may_be(generator):
    poses = way(2000, 0.01, 0.002)
    jump = poses.copy()
    jump[1000:, 0, 3] += 10
    shaken = poses.copy()
    shaken[:, 0, 3] += 0.0002 * torch.randn(2000, generator=generator).numpy()
    for drive, longest in ((poses, 1), (jump, 5), (shaken, 2)):
        for most in (1, 7, 30, 300, 1999):
            starts, stride = segments_within(drive, 0.009, 0.01, most)
            assert len(starts) == most and starts[0] == 0
            steps = np.diff(starts)
            assert (steps > 0).all() and (most == 1 or np.ptp(steps) <= longest)
            total = np.linalg.norm(np.diff(drive[:, :3, 3], axis=0), axis=1).sum()
            assert stride == pytest.approx(total / 0.009 / most, rel=0.01)
    starts, stride = segments_within(poses, 0.045, 1.0, 2000)
    assert stride == 1 and len(starts) == pytest.approx(400, abs=1)


def test_where_the_robot_hurries_keyframes_follow_more_closely_in_time():
    poses = np.concatenate((way(900, 0.01), way(300, 0.03)))
    poses[900:, 0, 3] += 9
    starts, _ = segments_within(poses, 0.009, 0.01, 60)
    assert np.median(np.diff(starts[starts < 850])) == 30
    assert np.median(np.diff(starts[starts > 950])) == 10


def test_without_a_stride_every_frame_counts_and_too_many_are_thinned_evenly():
    poses = way(100, 0.0)
    assert len(segments_within(poses, 0.0, 0.1, 100)[0]) == 100
    starts, _ = segments_within(poses, 0.0, 0.1, 25)
    assert starts.tolist() == list(range(0, 100, 4)) == even_segments(100, 25).tolist()
    assert even_segments(3, 25).tolist() == [0, 1, 2] and even_segments(0, 25).size == 0


def test_no_frames_make_no_segments():
    assert motion_segments(np.zeros((0, 4, 4)), 0.1, 0.1).size == 0


def test_candidates_are_all_of_a_few_and_spread_over_many():
    assert spread_evenly(3, 6, 8) == [3, 4, 5]
    chosen = spread_evenly(100, 1100, 8)
    assert len(chosen) == 8 and np.diff(chosen).tolist() == [125] * 7
    assert chosen[0] - 100 == pytest.approx(1100 - chosen[-1], abs=1)


@pytest.mark.parametrize('width', [160, 1600])
def test_blur_of_any_kind_makes_a_picture_less_sharp(width, generator):
    scene = torch.randint(0, 256, (width * 3 // 4, width, 3), generator=generator).numpy()
    scene = cv2.GaussianBlur(scene.astype(np.uint8), (0, 0), width / 160)
    motion = cv2.blur(scene, (width // 16, 1))
    focus = cv2.GaussianBlur(scene, (0, 0), width / 50)
    assert sharpness(scene) > 2 * sharpness(motion) > 0
    assert sharpness(scene) > 2 * sharpness(focus) > 0
