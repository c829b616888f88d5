"""Evaluation against truth that was measured in another frame than the map's."""

from dataclasses import replace

from fake_localizer import circle, estimate, FakeLocalizer, moved, queries
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.evaluation.evaluate import evaluate
from nerfmatch_ros.geometry.pose import so3_exp
from nerfmatch_ros.geometry.similarity import Similarity
import numpy as np
import pytest
import torch

TRUTH_FROM_MAP = Similarity(
    2.0, so3_exp(torch.tensor([0.2, 0.4, -1.0], dtype=torch.float64)).numpy(), [5.0, 1.0, -3.0])


def in_truth(images, similarity=TRUTH_FROM_MAP):
    return [replace(i, map_from_camera=similarity.apply_to_pose(i.map_from_camera))
            for i in images]


def localizer_of(answers, names=()):
    localizer = FakeLocalizer(answers)
    localizer.scene_map.reference_names = list(names) or [f'map-{k}' for k in range(12)]
    return localizer


def test_errors_are_those_in_the_frame_of_truth(tmp_path):
    images = queries(6)
    answers = [estimate(moved(image.map_from_camera, 0, 0.01)) for image in images]
    known = in_truth([replace(image, name=f'map-{k}') for k, image in enumerate(queries(12))])
    report = evaluate(localizer_of(answers), in_truth(images), tmp_path, align='similarity',
                      known=known)
    # A centimetre of the map is two of truth, and the covariance grew with it.
    assert report['median_translation_m'] == pytest.approx(0.02, rel=1e-6)
    assert report['anees'] == pytest.approx(1, rel=1e-6)
    assert report['map_extent_m'] == pytest.approx(6)
    assert report['alignment']['by'] == 'map cameras'
    assert report['alignment']['cameras'] == 12
    assert report['alignment']['scale'] == pytest.approx(2)


def test_queries_serve_where_no_map_camera_is_known(tmp_path):
    images = queries(8)
    answers = [estimate(image.map_from_camera) for image in images[:7]] + [estimate(None)]
    report = evaluate(localizer_of(answers), in_truth(images), tmp_path, align='similarity')
    assert report['alignment']['by'] == 'queries' and report['alignment']['cameras'] == 7
    assert report['median_translation_m'] < 1e-6 and report['localized'] == 7


def test_a_rigid_alignment_leaves_a_wrong_scale_to_be_seen(tmp_path):
    images = queries(6)
    answers = [estimate(image.map_from_camera) for image in images]
    report = evaluate(localizer_of(answers), in_truth(images), tmp_path, align='rigid')
    assert report['median_translation_m'] > 0.5 and report['alignment']['scale'] == 1


def test_nothing_is_aligned_unasked(tmp_path):
    images = queries(6)
    answers = [estimate(image.map_from_camera) for image in images]
    report = evaluate(localizer_of(answers), in_truth(images), tmp_path)
    assert report['median_translation_m'] > 1 and 'alignment' not in report


def test_too_few_cameras_are_a_clear_error(tmp_path):
    images = queries(4)
    answers = [estimate(image.map_from_camera) for image in images[:2]] + [estimate(None)] * 2
    with pytest.raises(DataError, match='2 cameras are known'):
        evaluate(localizer_of(answers), in_truth(images), tmp_path, align='rigid')


def test_the_worst_are_drawn_from_where_the_map_has_them(tmp_path):
    images, seen = queries(4), []
    localizer = localizer_of([estimate(image.map_from_camera) for image in images])

    def render(camera, pose):
        seen.append(pose)
        return np.zeros((camera.height, camera.width, 3), np.uint8)

    localizer.render = render
    evaluate(localizer, in_truth(images), tmp_path, align='similarity')
    centres = np.array(circle(4))
    assert all(np.abs(centres - pose).max(axis=(1, 2)).min() < 1e-6 for pose in seen) and seen
