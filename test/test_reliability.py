"""Claimed probabilities against what came true."""

import math

import cv2
from nerfmatch_ros.evaluation.metrics import PoseErrors
from nerfmatch_ros.evaluation.pictures import draw_reliability
from nerfmatch_ros.evaluation.reliability import (
    correct_poses,
    reliability,
    risk_coverage,
    summarize_reliability,
)
import numpy as np
import pytest


def test_honest_claims_come_true():
    random = np.random.default_rng(0)
    claimed = random.uniform(size=20000)
    honest = reliability(claimed, random.uniform(size=20000) < claimed)
    assert honest.expected_calibration_error < 0.02
    np.testing.assert_allclose(honest.claimed, honest.observed, atol=0.05)
    assert honest.counts.sum() == 20000
    boasting = reliability(claimed, random.uniform(size=20000) < claimed / 2)
    assert boasting.expected_calibration_error == pytest.approx(0.25, abs=0.02)


def test_bins_hold_what_they_should():
    curve = reliability(np.array([0.0, 0.05, 0.95, 1.0, 1.0]), np.array([0, 1, 1, 1, 0]), bins=4)
    assert curve.counts.tolist() == [2, 0, 0, 3]
    np.testing.assert_allclose(curve.claimed[[0, 3]], [0.025, 2.95 / 3])
    np.testing.assert_allclose(curve.observed[[0, 3]], [0.5, 2 / 3])
    assert np.isnan(curve.claimed[1:3]).all() and np.isnan(curve.observed[1:3]).all()
    assert curve.expected_calibration_error == pytest.approx(
        (2 * 0.475 + 3 * (2.95 - 2) / 3) / 5)


def test_risk_falls_where_the_probable_are_right():
    curve = risk_coverage(np.array([0.9, 0.2, 0.8, 0.1]), np.array([0, 1, 0, 1]))
    assert curve.coverage.tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(curve.risk, [0, 0, 1 / 3, 1 / 2])
    assert curve.area == pytest.approx((1 / 3 + 1 / 2) / 4)
    worst = risk_coverage(np.array([0.1, 0.8, 0.2, 0.9]), np.array([0, 1, 0, 1]))
    assert worst.area > curve.area and worst.risk[-1] == curve.risk[-1]


@pytest.mark.parametrize('seed', range(3))
def test_equal_claims_have_the_same_risk_in_any_order(seed):
    random = np.random.default_rng(seed)
    claimed, losses = random.integers(0, 3, 30) / 2, random.integers(0, 2, 30)
    order = random.permutation(30)
    first, second = risk_coverage(claimed, losses), risk_coverage(claimed[order], losses[order])
    np.testing.assert_allclose(first.risk, second.risk)
    flat = risk_coverage(np.full(30, 0.5), losses)
    np.testing.assert_allclose(flat.risk, losses.mean())


def test_what_nothing_judged_is_left_out():
    claimed, correct = np.array([0.9, math.nan, 0.1]), np.array([1, 0, 0])
    assert reliability(claimed, correct).counts.sum() == 2
    assert risk_coverage(claimed, 1 - correct).risk.tolist() == [0, 0.5]
    nothing = reliability(np.array([math.nan]), np.array([1]))
    assert math.isnan(nothing.expected_calibration_error)
    assert math.isnan(risk_coverage(np.array([math.nan]), np.array([1])).area)


def test_claims_that_are_none_are_refused():
    with pytest.raises(ValueError, match='2,.* probabilities for .1,'):
        reliability(np.array([0.1, 0.2]), np.array([1]))
    with pytest.raises(ValueError, match='from 0.5 to 1.5'):
        risk_coverage(np.array([0.5, 1.5]), np.array([1, 0]))


def errors():
    return PoseErrors(np.array([0.01, 0.04, 0.30, math.inf, 0.02]),
                      np.array([0.2, 3.0, 0.1, math.inf, 9.0]))


def test_correct_depends_on_distance_angle_and_size_of_the_map():
    assert correct_poses(errors(), 3.0).tolist() == [True, True, False, False, False]
    assert correct_poses(errors(), 40.0).tolist() == [True, False, True, False, False]
    limit = (math.inf, math.inf)
    assert correct_poses(errors(), 40.0, limit).all()
    report = summarize_reliability(np.full(5, 0.95), errors(), 3.0, limit)
    assert report['sure'] == 1 and report['sure_but_wrong'] == 0


def test_the_report_says_how_right_the_sure_ones_are():
    report = summarize_reliability(np.array([0.99, 0.95, 0.92, 0.0, 0.5]), errors(), 3.0)
    assert report['judged'] == 5 and report['sure'] == pytest.approx(0.6)
    assert report['sure_but_wrong'] == 1
    assert report['sure_worst_translation_m'] == 0.30
    assert report['sure_worst_rotation_deg'] == 3.0
    assert report['risk_coverage_area'] == pytest.approx((1 / 3 + 2 / 4 + 3 / 5) / 5)
    assert 0 < report['expected_calibration_error'] < 1


def test_a_map_without_a_judge_has_no_figures():
    assert summarize_reliability(np.full(5, math.nan), errors(), 3.0) is None
    unsure = summarize_reliability(np.full(5, 0.5), errors(), 3.0)
    assert unsure['sure'] == unsure['sure_but_wrong'] == unsure['sure_worst_translation_m'] == 0


def test_the_picture_shows_the_claims(tmp_path):
    random = np.random.default_rng(1)
    claimed = random.uniform(size=60)
    correct = random.uniform(size=60) < claimed
    pictures = []
    for name, probabilities in (('good', claimed), ('bad', 1 - claimed)):
        path = tmp_path / f'{name}.png'
        draw_reliability(reliability(probabilities, correct),
                         risk_coverage(probabilities, ~correct), path)
        pictures.append(cv2.imread(str(path)))
    assert pictures[0].std() > 5 and (pictures[0] != pictures[1]).any()
