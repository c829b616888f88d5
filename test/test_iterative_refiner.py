"""Refinement accepts only what more of the image's evidence supports."""

from fake_localizer import moved
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.iterative_refiner import is_better, refine
import numpy as np
import pytest


def estimate(inliers, error=1.0, x=0.0):
    return PoseEstimate(moved(np.eye(4), x), '', np.eye(6), inliers, 100, error)


FAILED = PoseEstimate(None, 'too few', None, 3, 100, float('nan'))


@pytest.mark.parametrize('new, old, better', [
    (estimate(60), estimate(50), True),
    (estimate(50), estimate(60), False),
    (estimate(50, 0.5), estimate(52, 1.0), True),
    (estimate(50, 1.0), estimate(52, 0.5), False),
    (estimate(20, 0.1), estimate(50, 1.0), False),
    (estimate(50), estimate(50), False),
    (estimate(4), FAILED, True),
    (FAILED, estimate(4), False),
    (FAILED, FAILED, False),
])
def test_better_means_more_inliers_or_as_many_that_agree_more_closely(new, old, better):
    assert is_better(new, old) == better


def run(first, answers, rounds=5, **options):
    asked = []

    def step(best):
        asked.append(best)
        return answers[len(asked) - 1]

    return refine(first, step, rounds, **options), asked


def test_each_round_looks_from_the_best_estimate_so_far():
    answers = [estimate(40, x=0.1), estimate(60, x=0.2), estimate(10)]
    result, asked = run(estimate(20), answers)
    assert result is answers[1]
    assert [best.inliers for best in asked] == [20, 40, 60]


def test_a_worse_round_ends_the_refinement_without_harm():
    first = estimate(50)
    for worse in (estimate(20), FAILED):
        result, asked = run(first, [worse])
        assert result is first and len(asked) == 1


def test_a_pose_at_rest_is_the_last():
    answers = [estimate(60, x=0.0005), estimate(90, x=0.5)]
    result, asked = run(estimate(50), answers)
    assert result is answers[0] and len(asked) == 1
    result, asked = run(estimate(50), [*answers, estimate(1)], at_rest=(1e-6, 1e-6))
    assert result is answers[1]


def test_rounds_are_limited():
    result, asked = run(estimate(10), [estimate(20 * 2 ** k, x=k + 1) for k in range(9)], rounds=3)
    assert len(asked) == 3 and result.inliers == 80
    first = estimate(10)
    assert run(first, [], rounds=0) == (first, [])


def test_without_a_pose_there_is_nothing_to_refine():
    assert run(FAILED, []) == (FAILED, [])
