"""The similarity between two trajectories: exact, robust, decided where centres leave it open."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import se3_exp
from nerfmatch_ros.geometry.similarity import Similarity
from nerfmatch_ros.geometry.trajectory_alignment import align_trajectories
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

TRUE = Similarity(1.7, Rotation.from_euler('xyz', [0.4, -1.0, 2.0]).as_matrix(), [3.0, -1.0, 0.5])


def poses(generator, count=20):
    return se3_exp(torch.randn(count, 6, generator=generator, dtype=torch.float64)).numpy()


def assert_same(found, true, tolerance=1e-9):
    np.testing.assert_allclose(found.scale, true.scale, atol=tolerance)
    np.testing.assert_allclose(found.rotation, true.rotation, atol=tolerance)
    np.testing.assert_allclose(found.translation, true.translation, atol=tolerance)


@pytest.mark.parametrize('robust', [False, True])
def test_the_similarity_that_moved_the_poses_is_found(robust, generator):
    source = poses(generator)
    found = align_trajectories(source, TRUE.apply_to_pose(source), robust=robust)
    assert_same(found, TRUE)


def test_a_few_wrong_poses_do_not_move_the_others(generator):
    source = poses(generator)
    target = TRUE.apply_to_pose(source)
    noise = torch.randn(20, 3, generator=generator, dtype=torch.float64).numpy()
    target[:, :3, 3] += 0.01 * noise
    target[:3, :3, 3] += 5.0
    assert_same(align_trajectories(source, target, robust=True), TRUE, 0.05)
    assert abs(align_trajectories(source, target).translation - TRUE.translation).max() > 0.2


def test_on_a_straight_way_the_orientations_decide_the_roll(generator):
    source = poses(generator)
    source[:, :3, 3] = np.linspace(0, 4, 20)[:, None] * [0.6, 0.0, 0.8]
    assert_same(align_trajectories(source, TRUE.apply_to_pose(source)), TRUE)


def test_cameras_in_one_place_are_refused(generator):
    source = poses(generator)
    source[:, :3, 3] = 1.0
    with pytest.raises(DataError, match='one place'):
        align_trajectories(source, source)
    assert_same(align_trajectories(source, source, with_scale=False),
                Similarity(1.0, np.eye(3), np.zeros(3)))


def test_a_rigid_alignment_keeps_metres(generator):
    source = poses(generator)
    found = align_trajectories(source, TRUE.apply_to_pose(source), with_scale=False)
    assert found.scale == 1
    np.testing.assert_allclose(found.rotation, TRUE.rotation, atol=1e-9)
