import csv
from dataclasses import replace
import json
import math

import cv2
from fake_localizer import estimate, FakeLocalizer, moved, queries
from nerfmatch_ros.data.tum import read_tum
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.evaluation.evaluate import evaluate, json_ready
from nerfmatch_ros.evaluation.pictures import plane_of_largest_extent
import numpy as np
import pytest

FILES = {'report.json', 'poses.tum', 'true_poses.tum', 'errors.csv', 'trajectory.png', 'worst.png'}


def mixed_answers(images):
    """1 cm, 2 cm, 20 cm, 70 cm and sure of it, then one failure."""
    poses = [image.map_from_camera for image in images]
    return [
        estimate(moved(poses[0], 0.01)), estimate(moved(poses[1], 0, 0.02, 0, 0.01)),
        estimate(moved(poses[2], 0.2), std=0.2), estimate(moved(poses[3], 0.7), std=0.02),
        estimate(None, reason='too few matches')]


def test_report_counts_every_query(tmp_path):
    images = queries(5)
    report = evaluate(FakeLocalizer(mixed_answers(images)), images, tmp_path)
    assert report['queries'] == 5 and report['localized'] == 4
    assert report['median_translation_m'] == pytest.approx(0.2)
    assert report['median_rotation_deg'] == pytest.approx(0, abs=1e-6)
    assert report['recall'] == {
        '5cm_5deg': 0.4, '10cm_1deg': 0.4, '25cm_2deg': 0.6, '50cm_5deg': 0.6,
        '1pct_extent_1deg': 0.4}
    assert set(report['seconds_per_image']) == {'median', 'p95'}
    assert report['map_extent_m'] == 3.0
    assert report['confident_but_wrong'] == 1
    assert report['failures'] == {'too few matches': 1}
    nees = [1, 4 + 1, 1, 35 ** 2]
    assert report['anees'] == pytest.approx(np.mean(nees), rel=1e-6)


def test_files_are_complete_and_agree(tmp_path):
    images = queries(5)
    report = evaluate(FakeLocalizer(mixed_answers(images)), images, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    assert json.loads((tmp_path / 'report.json').read_text()) == report
    rows = list(csv.DictReader((tmp_path / 'errors.csv').open()))
    assert [row['name'] for row in rows] == [image.name for image in images]
    assert [row['localized'] for row in rows] == ['1', '1', '1', '1', '0']
    assert rows[-1]['reason'] == 'too few matches' and rows[-1]['translation_error_m'] == ''
    assert float(rows[1]['translation_error_m']) == pytest.approx(0.02, rel=1e-5)
    assert float(rows[1]['position_std_m']) == pytest.approx(0.01)
    assert [stamp for stamp, _ in read_tum(tmp_path / 'poses.tum')] == [0, 1, 2, 3]
    assert len(read_tum(tmp_path / 'true_poses.tum')) == 5
    for name in ('trajectory.png', 'worst.png'):
        assert cv2.imread(str(tmp_path / name)).std() > 5


def test_probabilities_are_held_against_what_came_true(tmp_path):
    images = queries(5)
    claims = (0.95, 0.8, 0.4, 0.97, 0.0)
    answers = [replace(answer, probability=claim)
               for answer, claim in zip(mixed_answers(images), claims)]
    report = evaluate(FakeLocalizer(answers), images, tmp_path)
    assert report['reliability']['judged'] == 5
    assert report['reliability']['sure'] == pytest.approx(0.4)
    assert report['reliability']['sure_but_wrong'] == 1
    assert report['reliability']['sure_worst_translation_m'] == pytest.approx(0.7)
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, 'reliability.png'}
    assert cv2.imread(str(tmp_path / 'reliability.png')).std() > 5


def test_without_a_judge_there_is_no_reliability(tmp_path):
    images = queries(5)
    assert evaluate(FakeLocalizer(mixed_answers(images)), images, tmp_path)['reliability'] is None


def test_stamps_are_kept_where_images_have_them(tmp_path):
    images = queries(3, stamped=True)
    evaluate(FakeLocalizer([estimate(i.map_from_camera) for i in images]), images, tmp_path)
    assert [stamp for stamp, _ in read_tum(tmp_path / 'poses.tum')] == [100.5, 101.5, 102.5]


def test_same_run_gives_the_same_poses_and_pictures(tmp_path):
    images = queries(5)
    for folder in 'ab':
        evaluate(FakeLocalizer(mixed_answers(images)), images, tmp_path / folder)
    for name in ('poses.tum', 'true_poses.tum', 'trajectory.png', 'worst.png'):
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()


def test_localizer_never_sees_the_truth(tmp_path):
    images = queries(2)
    localizer = FakeLocalizer([estimate(image.map_from_camera) for image in images])
    evaluate(localizer, images, tmp_path)
    for image in localizer.asked:
        assert image.map_from_camera is None and image.depth_map() is None
    assert all(image.map_from_camera is not None for image in images)


def test_nothing_localized_is_valid_json_with_null(tmp_path):
    images = queries(3)
    report = evaluate(FakeLocalizer([estimate(None, reason='dark')] * 3), images, tmp_path)
    assert report['median_translation_m'] is None and report['median_rotation_deg'] is None
    assert report['anees'] is None and report['failures'] == {'dark': 3}
    assert set(report['recall'].values()) == {0}
    text = (tmp_path / 'report.json').read_text()
    assert 'NaN' not in text and 'Infinity' not in text
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_images_without_truth_are_refused(tmp_path):
    with pytest.raises(DataError, match='no images'):
        evaluate(FakeLocalizer([]), [], tmp_path)
    image = queries(1)[0]
    object.__setattr__(image, 'map_from_camera', None)
    with pytest.raises(DataError, match='query-000'):
        evaluate(FakeLocalizer([]), [image], tmp_path)


def test_top_view_takes_the_two_widest_axes_in_order():
    points = np.random.default_rng(7).uniform(size=(30, 3))
    assert plane_of_largest_extent(points * [3, 0.1, 2]) == (0, 2)
    assert plane_of_largest_extent(points * [0.1, 2, 3]) == (1, 2)


def test_json_ready_turns_numpy_and_infinity_into_plain_values():
    value = {'a': np.float32(0.5), 'b': [math.inf, np.int64(3)], 'c': np.eye(2), 'd': None}
    assert json.loads(json.dumps(json_ready(value), allow_nan=False)) == {
        'a': 0.5, 'b': [None, 3], 'c': [[1, 0], [0, 1]], 'd': None}
