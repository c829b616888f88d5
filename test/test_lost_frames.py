"""Frames that were lost are put where others are, if that shows them better and may well be."""

from nerfmatch_ros.geometry.pose import inverse, se3_exp, se3_log
from nerfmatch_ros.mapping.lost_frames import places_of_lost
from nerfmatch_ros.mapping.motion_errors import SeparateErrors
import pytest
import torch

COUNT, SCALE = 20, 2.0
ERRORS = SeparateErrors((0.15 * SCALE, 0.15))


@pytest.fixture
def way(generator):
    """True poses (K, 4, 4) every 5 cm and 2 degrees, and rough ones that are off as ERRORS say."""
    step = se3_exp(torch.tensor([0.05, 0.0, 0.0, 0.0, 0.035, 0.0]))
    true = [torch.eye(4)]
    for _ in range(COUNT - 1):
        true.append(true[-1] @ step)
    true = torch.stack(true)
    return true, true @ se3_exp(0.15 * torch.randn(COUNT, 6, generator=generator))


def shown_at(true):
    def shown(frames, poses):
        return se3_log(inverse(true[frames]) @ poses).square().sum(-1) + 0.01
    return shown


def placed(rough, numbers):
    twists = ERRORS.twists(numbers) / torch.tensor([SCALE] * 3 + [1.0] * 3)
    return rough @ se3_exp(twists)


def test_a_lost_frame_goes_where_its_neighbours_are(way):
    true, rough = way
    moved = true.clone()
    moved[7] = true[7] @ se3_exp(torch.tensor([0.0, 0.3, 0.0, 0.5, 0.0, 0.0]))
    lost, numbers = places_of_lost(rough, moved, ERRORS, SCALE, 0.2, 1e-6, shown_at(true))
    assert lost.tolist() == [7]
    apart = se3_log(inverse(true[7]) @ placed(rough[7], numbers[0])).abs().max()
    assert apart < 0.06  # at a neighbour's place


def test_frames_that_are_shown_well_stay(way):
    true, rough = way
    lost, numbers = places_of_lost(rough, true, ERRORS, SCALE, 1.0, 1e-6, shown_at(true))
    assert lost.shape == (0,) and numbers.shape == (0, 6)


def test_no_frame_goes_farther_than_its_rough_pose_may_be_off(way):
    true, rough = way
    moved = true.clone()
    rough[7] = moved[7] = true[7] @ se3_exp(torch.tensor([9.0, 0.0, 0.0, 0.0, 0.0, 0.0]))
    lost, _ = places_of_lost(rough, moved, ERRORS, SCALE, 0.2, 1e-6, shown_at(true))
    assert lost.tolist() == []
