"""What poses that are known tell of the errors that the network's own residuals do not show."""

from nerfmatch_ros.geometry.pose import perturb
from nerfmatch_ros.localization.geometry_pose import covariance_with, GeometryPose
from nerfmatch_ros.mapping.geometry_covariance import fit_covariance
import numpy as np
import pytest
import torch

LIMITS = (0.5, 0.2)


def erring(random, count, scale, metres, radians):
    """Give poses that err as `covariance_with` of these numbers says, and the true ones."""
    poses, truths = [], []
    for _ in range(count):
        root = random.normal(size=(6, 6)) * 0.01
        truth = np.eye(4)
        truth[:3, 3] = random.normal(size=3)
        known = GeometryPose(truth, '', root @ root.T, None, truth[:3, 3] + random.normal(size=3))
        error = np.linalg.cholesky(
            covariance_with(known, scale, metres, radians)) @ random.normal(size=6)
        pose = perturb(torch.from_numpy(truth), torch.from_numpy(error)).numpy()
        poses.append(GeometryPose(pose, '', known.covariance, None, known.middle))
        truths.append(truth)
    return poses, truths


@pytest.mark.parametrize('scale, metres, radians', [(2.0, 0.05, 0.03), (40.0, 0.1, 0.05)])
def test_what_errors_were_drawn_with_is_found(scale, metres, radians):
    poses, truths = erring(np.random.default_rng(0), 300, scale, metres, radians)
    found = fit_covariance(poses, truths, LIMITS)
    assert found[0] == pytest.approx(scale, rel=0.25)
    assert found[1] == pytest.approx(metres, rel=0.15)
    assert found[2] == pytest.approx(radians, rel=0.25)


def test_errors_beyond_what_is_right_do_not_make_the_common_part_larger_than_that():
    poses, truths = erring(np.random.default_rng(1), 50, 1.0, 5.0, 0.5)
    scale, metres, radians = fit_covariance(poses, truths, LIMITS)
    assert (metres, radians) == pytest.approx(LIMITS, rel=0.01) and scale > 10


def test_too_few_poses_give_the_limits_themselves():
    poses, truths = erring(np.random.default_rng(2), 3, 1.0, 0.01, 0.01)
    assert fit_covariance(poses, truths, LIMITS) == (1.0, *LIMITS)
    assert fit_covariance([], [], LIMITS) == (1.0, *LIMITS)
