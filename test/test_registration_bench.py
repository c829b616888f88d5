"""Errors of registered poses: free of the frame they are in, honest about stages that give up."""

import math

from nerfmatch_ros.data.pose_noise import noisy
from nerfmatch_ros.errors import DataError
from nerfmatch_ros.evaluation.registration_bench import bench_registration, pose_errors, table
from nerfmatch_ros.geometry.pose import se3_exp
from nerfmatch_ros.geometry.similarity import Similarity
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch


@pytest.fixture
def true(generator):
    return se3_exp(torch.randn(30, 6, generator=generator, dtype=torch.float64)).numpy()


def test_another_frame_and_scale_are_no_error(true):
    moved = Similarity(0.4, Rotation.from_euler('z', 1.0).as_matrix(), [1, 2, 3])
    errors = pose_errors(moved.apply_to_pose(true), true)
    np.testing.assert_allclose(errors.metres, 0, atol=1e-9)
    np.testing.assert_allclose(errors.radians, 0, atol=1e-7)
    assert errors.scale == pytest.approx(1 / 0.4)


def test_errors_are_those_that_were_made(true, generator):
    metres, radians = 0.002, 0.01
    rough = noisy(true, metres, radians, generator)
    errors = pose_errors(rough, true)
    # The mean length of a vector of three normal errors is 1.6 times their deviation.
    assert errors.metres.mean() == pytest.approx(1.6 * metres, rel=0.25)
    assert errors.radians.mean() == pytest.approx(1.6 * radians, rel=0.25)
    summary = errors.summary()
    assert summary['mean_cm'] == pytest.approx(100 * errors.metres.mean())
    assert summary['worst_deg'] == pytest.approx(np.degrees(errors.radians.max()))


def test_stages_get_rough_poses_and_are_told_apart(true, generator):
    rough = noisy(true, 0.05, 0.05, generator)
    seen = []

    def half_way(poses):
        seen.append(poses.copy())
        poses[:, :3, 3] = 0.5 * (poses[:, :3, 3] + true[:, :3, 3])
        return poses

    def gives_up(poses):
        seen.append(poses.copy())
        raise DataError('nothing to see')

    results = bench_registration(rough, true, {'half': half_way, 'none': gives_up})
    assert [result.name for result in results] == ['rough', 'half', 'none']
    assert all((poses == rough).all() for poses in seen) and len(seen) == 2
    means = [result.errors.metres.mean() for result in results]
    assert means[1] < 0.6 * means[0] and means[2] == math.inf
    assert results[2].reason == 'nothing to see'
    lines = table(results).splitlines()
    assert len(lines) == 5 and lines[4].startswith('| none | - | - |')
    assert lines[2].count('1 / 1') == 1
