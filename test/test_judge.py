"""The judge of poses: what it learns, what it never does, what it refuses."""

from dataclasses import replace
import math

from fake_localizer import estimate, moved
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.localization.judge import (
    Evidence,
    evidence_of,
    fit_judge,
    is_correct,
    Judge,
    judged_threshold,
    LogisticModel,
    photometric_evidence,
    PhotometricEvidence,
    TRAITS,
)
import numpy as np
import pytest
import yaml

# By trait: what speaks more for the pose than the middling evidence of `piece`.
BETTER = {
    'inliers': 400, 'inlier_ratio': 0.9, 'reprojection_error': 0.5, 'position_std': 0.001,
    'rotation_std': 0.0005, 'residual': 0.01, 'correlation': 0.97, 'overlap': 1.0,
    'agreement_m': 0.002, 'agreement_rad': 0.001}


def piece(refined=False, **changed):
    photometric = PhotometricEvidence(0.05, 0.7, 0.8, 0.9, 0.02, 0.01) if refined else None
    evidence = Evidence(120, 0.5, 2.0, 0.004, 0.002, photometric)
    for name, value in changed.items():
        if hasattr(evidence, name):
            evidence = replace(evidence, **{name: value})
        else:
            evidence = replace(evidence, photometric=replace(
                evidence.photometric, **{name: value}))
    return evidence


def drawn(count, seed, refined=False):
    """Poses are correct by a known logistic law of inliers, reprojection error, correlation."""
    random = np.random.default_rng(seed)
    evidence, truth = [], []
    for _ in range(count):
        inliers, error = np.exp(random.normal(4.5, 0.8)), np.exp(random.normal(0.5, 0.4))
        logit = 2 * (np.log(inliers) - 4.2) - 2 * (np.log(error) - 0.5)
        changed = {'inliers': int(inliers), 'reprojection_error': float(error)}
        if refined:
            correlation = random.uniform(0.2, 0.98)
            changed['correlation'] = float(correlation)
            logit += -2 * (np.log(1 - correlation) + 1)
        evidence.append(piece(refined, **changed))
        truth.append(1 / (1 + np.exp(-logit)))
    truth = np.array(truth)
    return evidence, truth, random.uniform(size=count) < truth


@pytest.mark.parametrize('refined', [False, True])
def test_a_judge_finds_the_law_that_samples_follow(refined):
    evidence, _, correct = drawn(2000, 1, refined)
    judge = fit_judge(evidence, correct)
    unseen, truth, _ = drawn(300, 2, refined)
    claimed = np.array([judge.probability(each) for each in unseen])
    assert np.abs(claimed - truth).mean() < 0.04
    weights = dict(zip(TRAITS['refined' if refined else 'fast'],
                       (judge.refined if refined else judge.fast).weights))
    assert weights['inliers'] == pytest.approx(2, abs=0.4)
    assert weights['reprojection_error'] == pytest.approx(2, abs=0.5)


def test_each_kind_of_evidence_has_its_own_model():
    fast, _, _ = drawn(60, 3)
    refined, _, _ = drawn(60, 4, refined=True)
    judge = fit_judge([*fast, *refined], [False] * 60 + [True] * 60)
    assert judge.fast.samples == judge.refined.samples == 60
    assert judge.probability(piece()) < 0.1 and judge.probability(piece(refined=True)) > 0.9
    alone = fit_judge(fast, [False] * 60)
    assert alone.refined is None
    assert alone.probability(piece(refined=True)) == alone.probability(piece())
    assert math.isnan(fit_judge(refined, [True] * 60).probability(piece()))
    assert judge.probability(None) == 0
    nothing_learned = Judge(None, None)
    assert math.isnan(nothing_learned.probability(None))
    assert math.isnan(nothing_learned.probability(piece()))


@pytest.mark.parametrize('name', BETTER)
@pytest.mark.parametrize('seed', range(3))
def test_better_evidence_never_makes_a_pose_less_likely(name, seed):
    evidence, _, correct = drawn(80, seed, refined=True)
    # Verdicts that say the opposite must not teach it the opposite.
    for verdicts in (correct, ~correct):
        judge = fit_judge(evidence, verdicts)
        better = piece(refined=True, **{name: BETTER[name]})
        assert judge.probability(better) >= judge.probability(piece(refined=True))


def test_opposite_verdicts_leave_no_weight_where_signs_are_held():
    evidence, _, correct = drawn(800, 5)
    weights = fit_judge(evidence, ~correct).fast.weights
    assert min(weights) >= 0 and weights[TRAITS['fast'].index('inliers')] == 0


@pytest.mark.parametrize('count', [1, 2, 10, 100])
def test_few_samples_claim_little(count):
    evidence, _, _ = drawn(count, 6)
    superb = piece(inliers=100000, inlier_ratio=1.0, reprojection_error=0.01,
                   position_std=1e-6, rotation_std=1e-7)
    hopeless = piece(inliers=1, inlier_ratio=0.0, reprojection_error=1e4, position_std=1e4,
                     rotation_std=10)
    right = fit_judge(evidence, [True] * count)
    assert right.probability(superb) == pytest.approx(1 - 1 / (count + 2))
    wrong = fit_judge(evidence, [False] * count)
    assert wrong.probability(hopeless) == pytest.approx(1 / (count + 2))


def test_evidence_unlike_all_samples_is_doubted_even_if_all_were_correct():
    evidence, _, _ = drawn(100, 7)
    judge = fit_judge(evidence, [True] * 100)
    typical = judge.probability(piece())
    assert typical > 0.9
    assert judge.probability(piece(
        inliers=12, inlier_ratio=0.05, reprojection_error=8, position_std=0.2,
        rotation_std=0.1)) < 0.5


def test_what_is_not_a_number_counts_as_the_worst():
    evidence, _, correct = drawn(200, 8)
    judge = fit_judge(evidence, correct)
    worst = judge.probability(piece(reprojection_error=1e9))
    assert judge.probability(piece(reprojection_error=math.nan)) == worst
    assert judge.probability(piece(reprojection_error=math.inf)) == worst


def test_the_order_of_samples_does_not_matter():
    evidence, _, correct = drawn(100, 9)
    first, second = fit_judge(evidence, correct), fit_judge(evidence[::-1], correct[::-1])
    np.testing.assert_allclose(first.fast.weights, second.fast.weights, atol=1e-3)


def test_a_judge_survives_yaml():
    evidence, _, correct = drawn(50, 10, refined=True)
    judge = fit_judge(evidence, correct)
    assert judge.fast is None
    assert Judge.from_dict(yaml.safe_load(yaml.safe_dump(judge.to_dict()))) == judge


def model(kind='fast', **changed):
    values = {'samples': 9, 'bias': -1.0, 'weights': dict.fromkeys(TRAITS[kind], 0.5)}
    return values | changed


@pytest.mark.parametrize('values, text', [
    ('yes', "judge is 'yes'; it must be a mapping"),
    ({'fast': None}, 'judge lacks refined'),
    ({'fast': None, 'refined': None, 'slow': 1}, 'judge does not know slow'),
    ({'fast': model(samples=0), 'refined': None}, 'judge.fast.samples is 0'),
    ({'fast': model(samples=True), 'refined': None}, 'judge.fast.samples is True'),
    ({'fast': model(bias=math.nan), 'refined': None}, 'judge.fast.bias is nan'),
    ({'fast': model(bias='1'), 'refined': None}, "judge.fast.bias is '1'"),
    ({'fast': model(weights={}), 'refined': None}, 'judge.fast.weights lacks inliers'),
    ({'fast': None, 'refined': model('fast')}, 'judge.refined.weights lacks residual'),
    ({'fast': model('refined'), 'refined': None}, 'judge.fast.weights does not know residual'),
    ({'fast': model(weights=dict.fromkeys(TRAITS['fast'], -0.1)), 'refined': None},
     'weights.inliers is -0.1; it must not be negative'),
])
def test_nonsense_is_refused_by_name(values, text):
    with pytest.raises(ConfigError) as caught:
        Judge.from_dict(values)
    assert text in str(caught.value)


def test_the_gain_of_an_alignment_may_count_either_way():
    weights = dict.fromkeys(TRAITS['refined'], 0.5) | {'residual_ratio': -0.5}
    judge = Judge.from_dict({'fast': None, 'refined': model('refined', weights=weights)})
    assert isinstance(judge.refined, LogisticModel)


def test_each_piece_of_evidence_needs_a_verdict():
    with pytest.raises(DataError, match='1 pieces of evidence for 2 verdicts'):
        fit_judge([piece()], [True, False])


def test_correct_depends_on_the_size_of_the_map():
    assert judged_threshold(3.0) == (0.05, math.radians(5))
    assert judged_threshold(40.0) == (pytest.approx(0.4), math.radians(1))
    for extent in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(DataError, match='extent'):
            judged_threshold(extent)
    pose = np.eye(4)
    turned = moved(pose, 0, 0.04, 0, math.radians(4))
    assert is_correct(turned, pose, 3.0) and not is_correct(turned, pose, 40.0)
    assert is_correct(moved(pose, 0.3), pose, 40.0) and not is_correct(moved(pose, 0.3), pose, 3)


def test_evidence_is_counted_in_working_pixels_and_unscaled():
    found = replace(estimate(np.eye(4)), inliers=60, matches=80, reprojection_error=3.0,
                    covariance=25 * np.diag([1, 4, 9, 0.01, 0.01, 0.16]))
    evidence = evidence_of(found, pixels_per_working_pixel=2.0, covariance_scale=25.0)
    assert evidence == Evidence(60, 0.75, 1.5, pytest.approx(3.0), pytest.approx(0.4))
    pooled = evidence_of(found, pixels_per_working_pixel=2.0, covariance_scale=25.0, views=5)
    assert pooled == replace(evidence, inliers=12)
    assert evidence_of(estimate(None), pixels_per_working_pixel=1.0, covariance_scale=1.0) is None


def test_photometric_evidence_measures_how_far_the_alignment_went():
    pose = np.eye(4)
    evidence = photometric_evidence(
        matched=pose, aligned=moved(pose, 0.03, 0, 0.04, 0, 0.02), residual_before=0.1,
        residual_after=0.05, correlation=0.9, overlap=0.8)
    assert evidence == PhotometricEvidence(0.05, 0.5, 0.9, 0.8, pytest.approx(0.05),
                                           pytest.approx(0.02))
