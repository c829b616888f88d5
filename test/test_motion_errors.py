"""Errors of rough poses as numbers of deviation 1: separate ones, and those of odometry."""

import math

from nerfmatch_ros.geometry.pose import se3_exp, se3_log
from nerfmatch_ros.mapping.motion_errors import (
    ALIKE,
    CommonTurn,
    errors_of,
    OdometryErrors,
    SeparateErrors,
)
from nerfmatch_ros.mapping.pose_prior import PosePrior
import numpy as np
import pytest
import torch

COUNT = 12


@pytest.fixture
def way(generator):
    """Poses (K, 4, 4) that are not in the order of the way, and that order."""
    steps = se3_exp(torch.tensor([0.3, 0.1, 0.2, 0.1, 0.2, -0.1]) * (
        1 + 0.5 * torch.randn(COUNT, 6, generator=generator, dtype=torch.float64)))
    poses = [torch.eye(4, dtype=torch.float64)]
    for step in steps[1:]:
        poses.append(poses[-1] @ step)
    sequence = torch.randperm(COUNT, generator=generator).numpy()
    shuffled = np.empty((COUNT, 4, 4))
    shuffled[sequence] = torch.stack(poses).numpy()
    return shuffled, sequence


@pytest.fixture
def odometry(way):
    poses, sequence = way
    sigmas = np.stack([np.linspace(0.01, 0.03, COUNT - 1), np.linspace(0.02, 0.01, COUNT - 1)], 1)
    return OdometryErrors(poses, sequence, sigmas, (0.1, 0.05))


def draws(generator):
    return torch.randn(COUNT, 6, generator=generator)


def test_numbers_and_twists_stand_for_each_other(odometry, generator):
    numbers = draws(generator)
    for errors in (odometry, SeparateErrors((0.2, 0.05))):
        torch.testing.assert_close(errors.numbers(errors.twists(numbers)), numbers,
                                   atol=1e-4, rtol=1e-4)


def test_separate_errors_are_counted_in_deviations():
    errors = SeparateErrors((0.2, 0.05))
    expected = torch.tensor([[0.2, 0.2, 0.2, 0.05, 0.05, 0.05]])
    torch.testing.assert_close(errors.twists(torch.ones(1, 6)), expected)


def test_an_error_of_a_motion_moves_all_that_follows_as_one(way, odometry):
    poses, sequence = way
    numbers = torch.zeros(COUNT, 6)
    numbers[sequence[5], 4] = 1.0  # of the motion to the sixth camera, about its y axis
    moved = poses @ se3_exp(odometry.twists(numbers)).double().numpy()
    along = np.linalg.inv(poses[sequence][:-1]) @ poses[sequence][1:]
    found = np.linalg.inv(moved[sequence][:-1]) @ moved[sequence][1:]
    bent = np.linalg.inv(along) @ found
    others = [k for k in range(COUNT - 1) if k != 4]
    np.testing.assert_allclose(bent[others], np.eye(4)[None].repeat(COUNT - 2, 0), atol=1e-3)
    angle = math.acos((np.trace(bent[4, :3, :3]) - 1) / 2)
    assert angle == pytest.approx(odometry.steps[5, 4].item(), rel=0.02)


@pytest.mark.parametrize('kind', ['separate', 'odometry'])
def test_the_likeliest_errors_are_likelier_than_any_near_them(kind, odometry, generator):
    errors = odometry if kind == 'odometry' else SeparateErrors((0.05, 0.03))
    seen, noise = odometry.twists(draws(generator)) + 0.02 * draws(generator), (0.02, 0.01)
    alike = ALIKE if kind == 'odometry' else 1

    def charge(numbers):
        apart = (errors.twists(numbers) - seen) / torch.tensor(noise).repeat_interleave(3)
        return (numbers.square().sum() + apart.square().sum() / alike).item()

    found = errors.likeliest(seen, torch.tensor(noise))
    for _ in range(20):
        assert charge(found + 0.05 * draws(generator)) > charge(found)


def test_deviations_of_odometry_are_those_of_ways_about_their_mean(generator):
    poses = np.eye(4)[None].repeat(200, axis=0)
    errors = OdometryErrors(poses, np.arange(200), np.full((199, 2), 0.01), (0.1, 0.1))
    drawn = torch.stack([errors.twists(torch.randn(200, 6, generator=generator))
                         for _ in range(50)])
    apart = (drawn - drawn.mean(1, keepdim=True)).square().mean().sqrt().item()
    assert errors.deviations[1].item() == pytest.approx(apart, rel=0.15)


def test_a_prior_says_which_errors_there_are(way):
    poses, sequence = way
    separate = errors_of(PosePrior(poses, 0.1, 0.05), 3.0)
    torch.testing.assert_close(separate.deviations, torch.tensor([0.3, 0.05]))
    prior = PosePrior(poses, 0.1, 0.05, odometry=0.02, sequence=sequence)
    odometry = errors_of(prior, 3.0)
    np.testing.assert_allclose(odometry.steps[1:, [0, 3]], prior.motions()[1] * (3.0, 1.0),
                               rtol=1e-5)
    np.testing.assert_allclose(odometry.steps[0, [0, 3]], (0.3, 0.05), rtol=1e-5)


def test_a_turn_of_the_whole_is_none_of_the_cameras(way, generator):
    poses = way[0]
    frames, common = torch.arange(COUNT), CommonTurn(poses, 1.0)
    whole = se3_exp(torch.tensor([0.1, 0.2, 0.0, 0.01, -0.02, 0.01], dtype=torch.float64))
    turn = torch.tensor([0.0, 0.0, 0.0, 0.02, -0.01, 0.03], dtype=torch.float64)
    own = torch.from_numpy(np.linalg.inv(poses)) @ whole @ torch.from_numpy(poses)
    assert common(frames, se3_log(own).float()).abs().max() < 1e-3
    turned = common(frames, se3_log(own @ se3_exp(turn)).float())
    torch.testing.assert_close(turned, turn[3:].float(), atol=1.5e-3, rtol=0)
