"""The steps of a registration: their order, what they are told, and going on after a stop."""

import csv
from dataclasses import replace
from types import SimpleNamespace

from fake_localizer import queries
from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.mapping import register_poses
from nerfmatch_ros.mapping.register_poses import in_order, register, RegistrationConfig, TABLE
import numpy as np
import pytest

BOTH = RegistrationConfig(steps=('l2g', 'features'))


@pytest.fixture
def steps(monkeypatch):
    """Stand for both steps: the first moves along x, the second along y; calls are recorded."""
    asked = []

    def result(poses, axis):
        moved = poses.copy()
        moved[:, axis, 3] += 0.1
        return SimpleNamespace(poses=moved, numbers={'axis': axis})

    def by_field(images, rough, config, **options):
        asked.append((config.method, rough, options))
        return result(rough, 0)

    def consistent(images, prior, *, start, config, report):
        asked.append(('features', start, prior))
        return result(start, 1)

    monkeypatch.setattr(register_poses, 'register_by_field', by_field)
    monkeypatch.setattr(register_poses, 'make_consistent', consistent)
    return asked


def test_each_step_begins_where_the_last_one_ended(steps, tmp_path):
    images = queries(5)
    given = np.stack([image.map_from_camera for image in images])
    found = register(images, BOTH, work=tmp_path)
    assert [asked[0] for asked in steps] == ['l2g', 'features']
    assert np.allclose(steps[1][1][:, 0, 3], given[:, 0, 3] + 0.1)
    assert np.allclose(steps[1][2].poses, given)  # the prior stays what was given
    poses = np.stack([image.map_from_camera for image in found.images])
    assert np.allclose(poses[:, :2, 3], given[:, :2, 3] + 0.1)
    assert found.notes['l2g']['moved_median_m'] == pytest.approx(0.1)
    assert found.notes['moved_median_m'] == pytest.approx(0.1 * 2 ** 0.5)
    assert found.notes['given_from_registered_scale'] == pytest.approx(1)


def test_finished_steps_are_not_done_again(steps, tmp_path):
    images, config = queries(5), RegistrationConfig(steps=('barf', 'features'))
    first = register(images, config, work=tmp_path)
    again = register(images, config, work=tmp_path)
    assert len(steps) == 2
    for one, other in zip(first.images, again.images):
        assert np.array_equal(one.map_from_camera, other.map_from_camera)


def test_a_step_that_was_cut_short_is_done_anew_and_the_one_before_is_not(
        steps, tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt
    consistent = register_poses.make_consistent
    monkeypatch.setattr(register_poses, 'make_consistent', killed)
    with pytest.raises(KeyboardInterrupt):
        register(queries(5), BOTH, work=tmp_path)
    monkeypatch.setattr(register_poses, 'make_consistent', consistent)
    before = len(steps)
    register(queries(5), BOTH, work=tmp_path)
    assert [asked[0] for asked in steps[before:]] == ['features']


def test_a_table_tells_what_became_of_every_pose(steps, tmp_path):
    register(queries(5), RegistrationConfig(steps=('features',)), work=tmp_path)
    rows = list(csv.DictReader((tmp_path / TABLE).open()))
    assert len(rows) == 5
    for row in rows:
        assert float(row['ty']) == pytest.approx(float(row['given_ty']) + 0.1)
        assert float(row['moved_m']) == pytest.approx(0.1)


def test_the_way_is_in_the_order_of_the_stamps():
    images = [replace(image, stamp=stamp) for image, stamp in zip(queries(3), (3.0, 1.0, 2.0))]
    assert in_order(images).tolist() == [1, 2, 0]
    assert in_order(queries(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize('named', [(), ('look',), ('l2g', 'l2g')])
def test_steps_that_make_no_registration_are_refused(named):
    with pytest.raises(ConfigError, match='l2g, barf, features'):
        RegistrationConfig(steps=named)


@pytest.mark.parametrize('options', [
    {'minutes_share': 1.0}, {'translation': 0.0}, {'rotation': float('nan')}, {'odometry': -1.0}])
def test_numbers_that_make_no_sense_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        RegistrationConfig(**options)
