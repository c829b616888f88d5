"""Poses and covariances along the lever from camera to body; which covariances can be used."""

import math
import zlib

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.localization.absolute_pose import floored
from nerfmatch_ros.localization.body_pose import (
    body_from_camera,
    camera_from_body,
    condition,
    flatten,
    prior_covariance,
    usable_covariance,
)
from nerfmatch_ros.localization.rigid_motion import difference, inverse, perturb
import numpy as np
import pytest

DEVIATION = np.repeat((0.03, 0.02), 3)
BASE_FROM_CAMERA = perturb(np.eye(4), np.array((1.5, -0.4, 0.8, 0.3, -1.2, 0.5)))
MAP_FROM_CAMERA = perturb(np.eye(4), np.array((4.0, 2.0, 1.0, -0.5, 0.9, 2.0)))


@pytest.fixture
def rng(request):
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


def random_covariance(rng):
    mixed = rng.normal(size=(6, 6)) + 2 * np.eye(6)
    return mixed @ mixed.T * np.outer(DEVIATION, DEVIATION) / 10


def test_covariance_of_the_body_is_that_of_sampled_cameras(rng):
    """4000 cameras drawn from the covariance; their bodies scatter as the lever arm predicts."""
    covariance = random_covariance(rng)
    body, predicted = body_from_camera(MAP_FROM_CAMERA, covariance, BASE_FROM_CAMERA)
    deltas = rng.multivariate_normal(np.zeros(6), covariance, 4000)
    bodies = [body_from_camera(perturb(MAP_FROM_CAMERA, d), None, BASE_FROM_CAMERA)[0]
              for d in deltas]
    samples = np.array([difference(body, other) for other in bodies])
    sampled = samples.T @ samples / len(samples)
    size = np.linalg.norm(predicted)
    assert np.linalg.norm(sampled - predicted) < 0.06 * size
    assert np.linalg.norm(sampled - covariance) > 0.3 * size  # the lever matters
    nees = np.einsum('ni,ij,nj->n', samples, np.linalg.inv(predicted), samples)
    assert 5.7 < nees.mean() < 6.3


def test_camera_and_body_are_inverse_directions(rng):
    covariance = random_covariance(rng)
    body, moved = body_from_camera(MAP_FROM_CAMERA, covariance, BASE_FROM_CAMERA)
    np.testing.assert_allclose(body @ BASE_FROM_CAMERA, MAP_FROM_CAMERA, atol=1e-14)
    camera, back = camera_from_body(body, moved, BASE_FROM_CAMERA)
    np.testing.assert_allclose(camera, MAP_FROM_CAMERA, atol=1e-14)
    np.testing.assert_allclose(back, covariance, atol=1e-14)


def test_lever_of_a_heading_error_is_across_the_lever():
    """A camera 2 m ahead: heading noise of the camera is sideways noise of the body."""
    ahead = perturb(np.eye(4), np.array((2.0, 0, 0, 0, 0, 0)))
    covariance = np.diag((1e-4, 1e-4, 1e-4, 1e-4, 1e-4, 1e-2))
    _, body = body_from_camera(np.eye(4), covariance, ahead)
    np.testing.assert_allclose(body[1, 1], 1e-4 + 4 * 1e-2)
    np.testing.assert_allclose(body[0, 0], 1e-4)
    np.testing.assert_allclose(body[1, 5], -2 * 1e-2)
    # The axes are the map's: turned by 90 degrees the noise lies along x.
    turned = perturb(np.eye(4), np.array((0, 0, 0, 0, 0, math.pi / 2)))
    _, body = body_from_camera(turned, covariance, ahead)
    np.testing.assert_allclose(body[0, 0], 1e-4 + 4 * 1e-2)


def test_pose_without_covariance_stays_without():
    assert body_from_camera(MAP_FROM_CAMERA, None, BASE_FROM_CAMERA)[1] is None
    assert camera_from_body(MAP_FROM_CAMERA, None, BASE_FROM_CAMERA)[1] is None
    assert flatten(MAP_FROM_CAMERA, None)[1] is None


@settings(max_examples=40, deadline=None)
@given(st.tuples(*3 * [st.floats(-50, 50)]), st.floats(-3, 3), st.floats(-0.4, 0.4),
       st.floats(-0.4, 0.4))
def test_flat_pose_keeps_place_and_heading(place, heading, pitch, roll):
    def turn(*vector):
        return perturb(np.eye(4), np.array((0, 0, 0, *vector), float))
    pose = turn(0, 0, heading) @ turn(0, pitch, 0) @ turn(roll, 0, 0)
    pose[:3, 3] = place
    covariance = random_covariance(np.random.default_rng(5))
    flat, planar = flatten(pose, covariance)
    expected = turn(0, 0, heading)
    expected[:2, 3] = place[:2]
    np.testing.assert_allclose(flat, expected, atol=1e-12)
    kept, known = [0, 1, 5], [2, 3, 4]
    np.testing.assert_array_equal(planar[np.ix_(kept, kept)], covariance[np.ix_(kept, kept)])
    np.testing.assert_array_equal(planar[np.ix_(kept, known)], 0)
    assert usable_covariance(planar)
    assert np.sqrt(np.diag(planar))[known].max() < 0.0011
    again, same = flatten(flat, planar)
    np.testing.assert_allclose(again, flat, atol=1e-15)
    np.testing.assert_array_equal(same, planar)


def test_flattening_leaves_its_inputs(rng):
    covariance = random_covariance(rng)
    kept = MAP_FROM_CAMERA.copy(), covariance.copy()
    flatten(MAP_FROM_CAMERA, covariance)
    body_from_camera(MAP_FROM_CAMERA, covariance, BASE_FROM_CAMERA)
    prior_covariance(covariance)
    np.testing.assert_array_equal(MAP_FROM_CAMERA, kept[0])
    np.testing.assert_array_equal(covariance, kept[1])


def test_condition_is_free_of_units(rng):
    covariance = random_covariance(rng)
    units = np.array((1000, 1000, 1000, 180 / math.pi, 60, 1e-3))
    assert condition(covariance) == pytest.approx(condition(covariance * np.outer(units, units)))
    assert condition(np.diag((1e-6, 1e6, 1, 2, 3, 4))) == pytest.approx(1)


def unusable():
    spoiled = {}
    for name, value in (('nan', math.nan), ('infinite', math.inf), ('zero', 0.0),
                        ('negative', -1e-3)):
        spoiled[name] = np.diag(DEVIATION ** 2)
        spoiled[name][4, 4] = value
    direction = np.ones((6, 1)) / math.sqrt(6)
    spoiled['one direction unknown'] = (
        np.eye(6) + 1e9 * direction @ direction.T)  # points on a line
    spoiled['singular'] = np.ones((6, 6))
    spoiled['indefinite'] = np.eye(6) + 2 * np.eye(6)[:, ::-1]
    spoiled['not symmetric'] = np.eye(6) + np.triu(np.full((6, 6), 0.1), 1)
    spoiled['nan beside the diagonal'] = np.diag(DEVIATION ** 2)
    spoiled['nan beside the diagonal'][0, 5] = math.nan
    spoiled['zeros'] = np.zeros((6, 6))
    spoiled['overflowing'] = np.full((6, 6), 1e308) + np.diag(np.full(6, 1e-320))
    spoiled['a row'] = np.ones(36)
    spoiled['too small'] = np.eye(3)
    spoiled['text'] = np.full((6, 6), 'x')
    return spoiled


@pytest.mark.parametrize('name', unusable())
def test_fault_19_covariance_of_a_degenerate_pose_is_refused(name, recwarn):
    """Collinear points, NaN and the like: there is no fix, and no exception either."""
    assert not usable_covariance(unusable()[name])
    assert not recwarn.list


def test_honest_covariances_are_usable(rng):
    for _ in range(20):
        assert usable_covariance(random_covariance(rng))
    assert usable_covariance(np.diag(DEVIATION ** 2).astype(np.float32))
    assert usable_covariance(1e6 * np.eye(6))


def test_floors_raise_what_is_too_sure_and_nothing_else(rng):
    honest = random_covariance(rng)
    np.testing.assert_allclose(floored(honest), honest, rtol=1e-9, atol=1e-15)
    raised = floored(1e-12 * np.eye(6))
    np.testing.assert_allclose(
        np.sqrt(np.diag(raised)), np.repeat((0.001, math.radians(0.05)), 3))


def test_fault_31_zero_variances_of_a_prior_become_the_default():
    default = prior_covariance(np.zeros((6, 6)))
    np.testing.assert_allclose(
        np.sqrt(np.diag(default)), np.repeat((0.5, math.radians(15)), 3))
    # What a map display sends: x, y and the heading are given, the rest is zero.
    sent = np.zeros((6, 6))
    sent[0, 0], sent[1, 1], sent[0, 1], sent[1, 0], sent[5, 5] = 0.25, 0.3, 0.1, 0.1, 0.07
    completed = prior_covariance(sent)
    assert usable_covariance(completed)
    kept = np.ix_((0, 1, 5), (0, 1, 5))
    np.testing.assert_array_equal(completed[kept], sent[kept])
    np.testing.assert_array_equal(np.diag(completed)[2:5], np.diag(default)[2:5])
    # A covariance with something unknown cannot be known either.
    sent[2, 5] = sent[5, 2] = 0.2
    np.testing.assert_array_equal(prior_covariance(sent), completed)


def test_inverse_extrinsic_has_the_opposite_lever(rng):
    covariance = random_covariance(rng)
    one = body_from_camera(MAP_FROM_CAMERA, covariance, BASE_FROM_CAMERA)
    other = camera_from_body(MAP_FROM_CAMERA, covariance, inverse(BASE_FROM_CAMERA))
    np.testing.assert_allclose(one[0], other[0], atol=1e-14)
    np.testing.assert_allclose(one[1], other[1], atol=1e-14)
