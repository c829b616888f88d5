"""Two frames of the same cameras: the similarity between them."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.pose import so3_exp
from nerfmatch_ros.geometry.pose_alignment import align_poses
from nerfmatch_ros.geometry.similarity import Similarity
import numpy as np
import pytest
import torch


def some_poses(count, seed=0, line=False):
    generator = np.random.default_rng(seed)
    poses = np.tile(np.eye(4), (count, 1, 1))
    poses[:, :3, 3] = generator.normal(size=(count, 3)) * ([3, 0, 0] if line else [3, 2, 1])
    poses[:, :3, :3] = so3_exp(torch.from_numpy(generator.normal(size=(count, 3)))).numpy()
    return poses


def a_similarity(scale=1.7):
    rotation = so3_exp(torch.tensor([0.3, -0.9, 2.0], dtype=torch.float64)).numpy()
    return Similarity(scale, rotation, np.array([4.0, -2.0, 0.5]))


@pytest.mark.parametrize('line', [False, True])
def test_a_similarity_is_found_again(line):
    source, truth = some_poses(12, line=line), a_similarity()
    found = align_poses(source, truth.apply_to_pose(source))
    assert np.isclose(found.scale, truth.scale, rtol=1e-6)
    assert np.allclose(found.rotation, truth.rotation, atol=1e-6)
    assert np.allclose(found.translation, truth.translation, atol=1e-5)


def test_a_rigid_alignment_keeps_metres():
    source, truth = some_poses(12), a_similarity(scale=1.0)
    target = truth.apply_to_pose(source)
    target[:, :3, 3] *= 1.02
    assert align_poses(source, target, with_scale=False).scale == 1


def test_cameras_that_went_astray_do_not_count():
    source, truth = some_poses(30), a_similarity()
    target = truth.apply_to_pose(source)
    target[:5, :3, 3] += 50
    found = align_poses(source, target)
    assert np.allclose(found.apply(source[5:, :3, 3]), target[5:, :3, 3], atol=1e-2)


def test_too_few_cameras_are_refused():
    with pytest.raises(DataError, match='three cameras'):
        align_poses(some_poses(2), some_poses(2))


def test_cameras_at_one_place_have_no_scale():
    source = some_poses(5)
    source[:, :3, 3] = 1
    with pytest.raises(DataError, match='no scale'):
        align_poses(source, source)
    assert np.allclose(align_poses(source, source, with_scale=False).rotation, np.eye(3))
