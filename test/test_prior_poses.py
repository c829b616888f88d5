"""Priors of a tracked measurement: the image before on a drive, else near the truth."""

from dataclasses import replace
import math

from fake_localizer import moved, queries
from nerfmatch_ros.evaluation.prior_poses import IMAGE_BEFORE, is_drive, NEAR_TRUTH, prior_poses
from nerfmatch_ros.geometry.pose import pose_distance
import numpy as np
import pytest
import torch


def drive(step, turn=0.0, count=6):
    return [replace(image, map_from_camera=moved(
        np.eye(4), k * step, 0, 0, 0, 0, k * math.radians(turn)))
        for k, image in enumerate(queries(count))]


def test_short_steps_are_a_drive_and_long_ones_or_turns_are_not():
    assert is_drive(drive(0.05), extent=3.0)
    assert not is_drive(drive(0.05), extent=1.0)
    assert not is_drive(drive(0.05, turn=8), extent=3.0)
    assert not is_drive(drive(0.05)[:1], extent=3.0)
    jump = drive(0.05)[:4] + [replace(image, map_from_camera=moved(image.map_from_camera, 9.0))
                              for image in drive(0.05)[4:]]
    assert is_drive(jump, extent=3.0)


def test_on_a_drive_the_prior_is_the_pose_of_the_image_before():
    images = drive(0.05)
    priors, words = prior_poses(images, 3.0)
    assert words == IMAGE_BEFORE and len(priors) == len(images)
    for before, prior in zip(images[:-1], priors[1:]):
        np.testing.assert_array_equal(prior, before.map_from_camera)
    assert not np.array_equal(priors[0], images[0].map_from_camera)


def test_elsewhere_the_truth_is_moved_by_a_fixed_amount_that_depends_on_the_image_alone():
    images = drive(2.0)
    priors, words = prior_poses(images, 3.0)
    assert words == NEAR_TRUTH and '2 cm' in words and '1 degree' in words
    for image, prior in zip(images, priors):
        metres, radians = pose_distance(*map(torch.from_numpy, (prior, image.map_from_camera)))
        assert float(metres) == pytest.approx(0.02, rel=1e-4)
        assert math.degrees(radians) == pytest.approx(1.0, rel=1e-4)
    again, _ = prior_poses(images[2:], 3.0)
    np.testing.assert_array_equal(again[0], priors[2])
    assert not np.allclose(priors[0][:3, 3] - images[0].map_from_camera[:3, 3],
                           priors[1][:3, 3] - images[1].map_from_camera[:3, 3])
