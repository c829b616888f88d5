"""Properties of similarities."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.similarity import Similarity
import numpy as np
import pytest
from scipy.spatial.transform import Rotation
import torch

SIMILARITY = Similarity(0.4, Rotation.from_rotvec((.3, -1, .2)).as_matrix(), (1., -2, 3))


def test_inverse_undoes_a_similarity():
    points = np.random.default_rng(0).normal(size=(5, 3))
    np.testing.assert_allclose(SIMILARITY.inverse().apply(SIMILARITY.apply(points)), points)


def test_distances_grow_by_the_scale():
    a, b = np.random.default_rng(1).normal(size=(2, 3))
    moved = np.linalg.norm(SIMILARITY.apply(a) - SIMILARITY.apply(b))
    assert moved == pytest.approx(0.4 * np.linalg.norm(a - b))


def test_tensors_keep_their_dtype_and_gradient():
    points = torch.ones(2, 3, requires_grad=True)
    moved = SIMILARITY.apply(points)
    assert moved.dtype == torch.float32
    np.testing.assert_allclose(moved.detach(), SIMILARITY.apply(np.ones((2, 3))), rtol=1e-6)
    moved.sum().backward()
    assert points.grad.abs().sum() > 0


def test_poses_stay_rigid_and_see_the_scaled_world():
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_rotvec((0, .5, 0)).as_matrix()
    pose[:3, 3] = (1, 2, 3)
    in_camera = np.array([.3, -.2, 2.])
    in_source = pose[:3, :3] @ in_camera + pose[:3, 3]
    moved = SIMILARITY.apply_to_pose(pose)
    np.testing.assert_allclose(
        moved[:3, :3] @ (0.4 * in_camera) + moved[:3, 3], SIMILARITY.apply(in_source))
    assert np.linalg.det(moved[:3, :3]) == pytest.approx(1)
    assert (pose[:3, 3] == (1, 2, 3)).all()  # the input is left alone


def test_a_similarity_survives_its_dictionary():
    back = Similarity.from_dict(SIMILARITY.to_dict())
    assert back.scale == SIMILARITY.scale
    np.testing.assert_array_equal(back.rotation, SIMILARITY.rotation)
    np.testing.assert_array_equal(back.translation, SIMILARITY.translation)


@pytest.mark.parametrize('change, message', [
    ({'scale': 0}, 'scale'), ({'scale': float('nan')}, 'nan'),
    ({'rotation': -np.eye(3)}, 'rotation'), ({'translation': (1, 2)}, 'translation'),
    ({'shear': 1}, 'shear')])
def test_what_is_no_similarity_is_refused(change, message):
    with pytest.raises(DataError, match=message):
        Similarity.from_dict({**SIMILARITY.to_dict(), **change})
