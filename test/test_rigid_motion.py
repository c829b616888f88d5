"""The numpy arithmetic of single poses equals that of geometry/pose.py."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.geometry import pose as reference
from nerfmatch_ros.localization import rigid_motion
import numpy as np
import pytest
import torch

component = st.floats(-1, 1, allow_nan=False)
direction = st.tuples(component, component, component).filter(lambda v: math.hypot(*v) > 1e-2)
angle = st.sampled_from((0.0, 1e-30, 1e-13, 1e-9, 1e-4, 0.3, 2.0, 3.1, math.pi - 1e-9, math.pi))
twist = st.tuples(direction, direction, angle).map(
    lambda parts: np.r_[parts[0], np.array(parts[1]) / math.hypot(*parts[1]) * parts[2]])


def make(delta):
    return rigid_motion.perturb(np.eye(4), delta)


@settings(max_examples=60, deadline=None)
@given(twist)
def test_exponential_and_logarithm_equal_the_tensors(delta):
    rotation = rigid_motion.rotation_exp(delta[3:])
    np.testing.assert_allclose(
        rotation, reference.so3_exp(torch.from_numpy(delta[3:])), atol=1e-14)
    back = rigid_motion.rotation_log(rotation)
    np.testing.assert_allclose(rigid_motion.rotation_exp(back), rotation, atol=1e-14)
    if np.linalg.norm(delta[3:]) < 3.11:
        np.testing.assert_allclose(back, delta[3:], atol=1e-13)


@settings(max_examples=40, deadline=None)
@given(twist, twist, twist)
def test_perturb_difference_and_inverse_equal_the_tensors(first, second, delta):
    a, b = make(first), make(second)
    a64, b64 = torch.from_numpy(a), torch.from_numpy(b)
    np.testing.assert_allclose(
        rigid_motion.perturb(a, delta), reference.perturb(a64, torch.from_numpy(delta)),
        atol=1e-13)
    np.testing.assert_allclose(rigid_motion.inverse(a) @ a, np.eye(4), atol=1e-13)
    change = rigid_motion.difference(a, b)
    np.testing.assert_allclose(rigid_motion.perturb(a, change), b, atol=1e-13)
    metres, radians = reference.pose_distance(a64, b64)
    np.testing.assert_allclose(rigid_motion.distance(a, b), (metres, radians), atol=1e-7)


def test_inputs_stay_as_they_were():
    pose, delta = make(np.arange(6) / 3), np.arange(6) / 7
    kept = pose.copy(), delta.copy()
    rigid_motion.perturb(pose, delta)
    rigid_motion.inverse(pose)
    rigid_motion.difference(pose, np.eye(4))
    np.testing.assert_array_equal(pose, kept[0])
    np.testing.assert_array_equal(delta, kept[1])


@pytest.mark.parametrize('spoil', (
    lambda m: m[:3], lambda m: m * np.nan, lambda m: m + np.inf, lambda m: m * 1.01,
    lambda m: np.diag((1.0, 1, -1, 1)) @ m, lambda m: m + np.eye(4)[3], lambda m: m * 0,
    lambda m: m.astype(str), lambda m: m.astype(complex), lambda m: m[None]))
def test_what_is_no_rigid_motion_is_recognised(spoil):
    pose = make(np.arange(6) / 3)
    assert rigid_motion.is_pose(pose)
    assert rigid_motion.is_pose(pose.astype(np.float32))
    assert not rigid_motion.is_pose(spoil(pose))
