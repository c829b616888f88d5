"""Calibration of a map against a localizer whose errors are known."""

from dataclasses import dataclass, replace
import math
from types import SimpleNamespace

from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.calibration import Calibration
from nerfmatch_ros.localization.judge import Evidence, PhotometricEvidence
from nerfmatch_ros.localization.rigid_motion import difference, distance, perturb
from nerfmatch_ros.mapping.calibrate import calibrate, CalibrationConfig, covariance_scale, plan
from nerfmatch_ros.mapping.picture_variations import KINDS
import numpy as np
import pytest
import yaml

CAMERA = Camera('PINHOLE', 32, 24, 30.0, 30.0, 15.5, 11.5)


@dataclass(frozen=True, eq=False)
class Estimate(PoseEstimate):
    evidence: Evidence | None = None


def photographs(count):
    random = np.random.default_rng(0)
    images = []
    for k in range(count):
        pose = perturb(np.eye(4), random.normal(size=6))
        pixels = random.integers(0, 256, (24, 32, 3), np.uint8)
        images.append(PosedImage(f'photo {k}', CAMERA, pose, pixels=pixels,
                                 depth=np.ones((24, 32), np.float32)))
    return images


class NoisyLocalizer:
    """Errs by `true_scale` times its covariance; on pictures unlike the original by metres."""

    def __init__(self, images, true_scale=9.0, photometric=True, evidence=True, extent=3.0):
        self.images = {image.name: image for image in images}
        self.true_scale, self.photometric, self.evidence = true_scale, photometric, evidence
        self.scene_map = SimpleNamespace(extent=extent)
        self.asked, self.refined = [], []
        self.random = np.random.default_rng(1)

    def localize(self, image, prior=None):
        self.asked.append((image, prior))
        return self.answer(image, 1.0, None)

    def refine(self, image, map_from_camera):
        self.refined.append((image, map_from_camera))
        return self.answer(image, 2.0, PhotometricEvidence(0.03, 0.5, 0.9, 0.95, 0.01, 0.005))

    def answer(self, image, factor, photometric):
        original = self.images[image.name]
        likeness = np.corrcoef(image.pixels.ravel(), original.pixels.ravel())[0, 1]
        if likeness < 0.2:
            return Estimate(None, 'too unlike', None, 0, 100, math.nan)
        deviations = np.repeat([0.002, 0.001], 3)
        error = math.sqrt(factor * self.true_scale) * deviations * self.random.normal(size=6)
        if likeness < 0.7:
            error[0] += 1.0
        inliers = int(300 * likeness)
        evidence = Evidence(inliers, inliers / 400, 1.0, 0.002, 0.001,
                            photometric if self.photometric else None)
        return Estimate(perturb(original.map_from_camera, error), '', np.diag(deviations ** 2),
                        inliers, 400, 1.0, evidence=evidence if self.evidence else None)


def run(localizer, images, trials=240, **options):
    config = CalibrationConfig(trials=trials, **options)
    return calibrate(localizer, images, report=lambda done, numbers: None, config=config)


def test_covariance_and_judge_are_learned_from_what_went_wrong():
    images = photographs(6)
    calibration = run(NoisyLocalizer(images), images)
    assert 7 < calibration.covariance_scale < 14
    assert 14 < calibration.refined_covariance_scale < 28
    assert (calibration.limit_m, calibration.limit_rad) == (0.05, math.radians(5))
    good = Evidence(290, 290 / 400, 1.0, 0.002, 0.001)
    assert calibration.judge.probability(good) > 0.9
    assert calibration.judge.probability(replace(
        good, inliers=100, inlier_ratio=0.25)) < 0.3
    assert calibration.judge.refined.samples == calibration.judge.fast.samples > 100


def test_scales_are_of_the_bare_covariance_whatever_the_localizer_applies():
    images = photographs(6)
    bare = run(NoisyLocalizer(images), images)
    scaled = calibrate(NoisyLocalizer(images), images, report=lambda done, numbers: None,
                       config=CalibrationConfig(trials=240), scales=(4.0, 3.0))
    assert scaled.covariance_scale == pytest.approx(4 * bare.covariance_scale)
    assert scaled.refined_covariance_scale == pytest.approx(3 * bare.refined_covariance_scale)


def test_the_localizer_never_sees_the_truth_and_starts_are_wrong_by_what_is_asked():
    images = photographs(4)
    localizer = NoisyLocalizer(images)
    run(localizer, images, trials=48)
    assert len(localizer.asked) == len(localizer.refined) == 48
    truth = {image.name: image.map_from_camera for image in images}
    priors = [(image, prior) for image, prior in localizer.asked if prior is not None]
    moved = [distance(prior, truth[image.name]) for image, prior in priors]
    assert len(priors) == 24
    assert all(0.02 <= metres <= 0.5 and math.radians(0.5) <= radians <= math.radians(10)
               for metres, radians in moved)
    assert min(moved)[0] < 0.06 and max(moved)[0] > 0.2
    for image, _ in localizer.asked + localizer.refined:
        assert image.map_from_camera is None and image.depth_map() is None


def test_refinement_starts_from_the_pose_that_was_found_or_from_a_wrong_one():
    images = photographs(4)
    localizer = NoisyLocalizer(images)
    run(localizer, images, trials=24)
    for (image, prior), (same, start) in zip(localizer.asked, localizer.refined):
        assert image is same
        off = distance(start, localizer.images[image.name].map_from_camera)[0]
        assert start is prior if prior is not None else off > 0


def test_poses_that_no_photometric_evidence_speaks_for_belong_to_the_fast_ones():
    images = photographs(4)
    calibration = run(NoisyLocalizer(images, photometric=False), images, trials=60)
    assert calibration.judge.refined is None and calibration.refined_covariance_scale == 1.0
    assert calibration.judge.fast.samples > 60
    localizer = NoisyLocalizer(images)
    assert run(localizer, images, trials=20, refine=False).judge.refined is None
    assert not localizer.refined


def test_aligned_poses_without_evidence_count_for_their_covariance_alone():
    images = photographs(4)
    localizer = NoisyLocalizer(images)
    answer = localizer.refine
    localizer.refine = lambda image, pose: replace(answer(image, pose), evidence=None)
    calibration = run(localizer, images)
    assert calibration.judge.refined is None
    assert calibration.judge.fast.samples <= 240
    assert calibration.refined_covariance_scale > 1.5 * calibration.covariance_scale


def test_the_same_map_is_calibrated_the_same():
    images = photographs(3)
    first, second = (run(NoisyLocalizer(images), images, trials=40) for _ in range(2))
    assert first == second


def test_progress_ends_at_one_and_counts_poses():
    images, heard = photographs(2), []
    calibrate(NoisyLocalizer(images), images, config=CalibrationConfig(trials=10),
              report=lambda done, numbers: heard.append((done, numbers)))
    assert [done for done, _ in heard] == pytest.approx(np.arange(1, 11) / 10)
    assert 0 < heard[-1][1]['correct'] <= heard[-1][1]['poses'] <= 20


def test_too_many_photographs_are_thinned_evenly():
    images = photographs(10)
    localizer = NoisyLocalizer(images)
    run(localizer, images, trials=12, photographs=4)
    assert {image.name for image, _ in localizer.asked} == {
        'photo 0', 'photo 3', 'photo 6', 'photo 9'}


@pytest.mark.parametrize('images', [1, 3, 12])
def test_trials_meet_every_kind_both_ways(images):
    trials = plan(images, 120)
    assert len(trials) == 120
    assert {(trial.kind, trial.prior) for trial in trials} == {
        (kind, prior) for kind in KINDS for prior in (False, True)}
    counts = [sum(trial.image == k for trial in trials) for k in range(images)]
    assert max(counts) - min(counts) <= 1


def test_an_honest_covariance_keeps_its_scale_and_outliers_do_not_matter():
    random = np.random.default_rng(2)
    nees = random.chisquare(6, 2000)
    assert covariance_scale(nees, 1.0) == pytest.approx(1, abs=0.05)
    assert covariance_scale(9 * nees, 1.0) == pytest.approx(9, abs=0.5)
    assert covariance_scale([*9 * nees, *[1e9] * 200], 1.0) == pytest.approx(10, abs=1)
    assert covariance_scale(0.01 * nees, 1.0) == 1 and covariance_scale(1e6 * nees, 1.0) == 400
    assert covariance_scale(nees[:3], 25.0) == 25


def test_large_maps_start_from_further_off():
    images = photographs(4)
    localizer = NoisyLocalizer(images, extent=100.0)
    calibration = run(localizer, images, trials=24)
    assert calibration.limit_m == pytest.approx(1.0)
    truth = {image.name: image.map_from_camera for image in images}
    offs = [np.linalg.norm(difference(prior, truth[image.name])[:3])
            for image, prior in localizer.asked if prior is not None]
    assert max(offs) > 2


def test_what_cannot_be_calibrated_says_so():
    images = photographs(2)
    with pytest.raises(DataError, match='no photographs were kept'):
        run(NoisyLocalizer([]), [])
    with pytest.raises(DataError, match='photo 1 has no pose'):
        run(NoisyLocalizer(images), [images[0], replace(images[1], map_from_camera=None)])
    with pytest.raises(DataError, match='without evidence'):
        run(NoisyLocalizer(images, evidence=False), images)
    for options, text in (({'trials': 0}, 'trials is 0'), ({'photographs': 0}, 'photographs is 0'),
                          ({'start_distance': (2.0, 1.0)}, 'start_distance is 2 to 1'),
                          ({'start_angle': (0.0, 1.0)}, 'start_angle is 0 to 1')):
        with pytest.raises(ConfigError, match=text):
            CalibrationConfig(**options)


def test_a_calibration_survives_yaml_and_nonsense_is_refused():
    images = photographs(2)
    calibration = run(NoisyLocalizer(images), images, trials=30)
    values = yaml.safe_load(yaml.safe_dump(calibration.to_dict()))
    assert Calibration.from_dict(values) == calibration
    for wrong, text in (
            ([], 'needs exactly'), (values | {'extra': 1}, 'extra'),
            ({key: values[key] for key in ('judge',)}, 'needs exactly'),
            (values | {'covariance_scale': 0}, 'covariance_scale is 0'),
            (values | {'limit_m': math.nan}, 'limit_m is nan'),
            (values | {'limit_rad': 'x'}, "limit_rad is 'x'"),
            (values | {'judge': {}}, 'calibration.judge lacks fast, refined')):
        with pytest.raises(ConfigError, match=text):
            Calibration.from_dict(wrong)
