"""Motions of frames: they begin at none, warps are fitted by one rigid motion, gradients flow."""

from nerfmatch_ros.geometry.pose import se3_exp, transform_points
from nerfmatch_ros.mapping.frame_motions import (
    circling,
    FrameTwists,
    HEAD_UNIT,
    LocalWarps,
    PIVOT,
    WarpsThenTwists,
)
from nerfmatch_ros.mapping.motion_errors import SeparateErrors
import pytest
import torch
import torch.nn.functional as F

KINDS = {'l2g': LocalWarps, 'barf': FrameTwists}
ERRORS = SeparateErrors((1.0, 1.0))


def pixels(generator, frames=4, count=10):
    plane = 2 * torch.rand(frames, count, 2, generator=generator) - 1
    return plane, F.normalize(torch.cat([plane, torch.ones(frames, count, 1)], -1), dim=-1)


@torch.no_grad()
def bend(warps, size, generator):
    head = warps.network.head.weight
    head.copy_(size / HEAD_UNIT * torch.randn(head.shape, generator=generator))


@pytest.mark.parametrize('kind', KINDS)
def test_motions_begin_at_none(kind, generator):
    plane, directions = pixels(generator)
    motions = KINDS[kind](4, ERRORS)
    rays, departure, *_ = motions.ray_motions(torch.arange(4), plane, directions)
    torch.testing.assert_close(rays, torch.eye(4).expand(4, 10, 4, 4))
    frames = motions.frame_motions(plane, directions)
    torch.testing.assert_close(frames, torch.eye(4).expand(4, 4, 4), atol=1e-5, rtol=0)
    assert departure.item() < 1e-10


def test_a_warp_that_is_rigid_is_found_without_departure(generator):
    plane, directions = pixels(generator)
    warps, twist = LocalWarps(4, ERRORS), torch.tensor([0.1, -0.2, 0.05, 0.3, 0.1, -0.2])
    with torch.no_grad():
        warps.network.head.bias.copy_(circling(twist / HEAD_UNIT, ERRORS, -1.0))
    _, departure, _, twists = warps.ray_motions(torch.arange(4), plane, directions)
    frames = warps.frame_motions(plane, directions)
    torch.testing.assert_close(frames, se3_exp(twist).expand(4, 4, 4), atol=1e-5, rtol=1e-5)
    assert departure.item() < 1e-10
    torch.testing.assert_close(twists, twist.expand(4, 6))


def test_no_rigid_motion_is_nearer_to_the_warp_than_the_fitted_one(generator):
    plane, directions = pixels(generator)
    warps = LocalWarps(4, ERRORS)
    bend(warps, 0.3, generator)
    rays, departure, *_ = warps.ray_motions(torch.arange(4), plane, directions)
    frames = warps.frame_motions(plane, directions)

    def departure_from(frames):
        ends = (rays[..., :3, :3] @ directions[..., None])[..., 0] + rays[..., :3, 3]
        rigid = frames[:, None]
        centres = rigid[..., :3, 3].expand_as(ends)
        moved = (rigid[..., :3, :3] @ directions[..., None])[..., 0] + rigid[..., :3, 3]
        return 0.5 * ((ends - moved).square() + (rays[..., :3, 3] - centres).square()).sum(-1)

    best = departure_from(frames).mean((-1))
    torch.testing.assert_close(best.mean(), departure, rtol=1e-4, atol=1e-7)
    assert (best > 1e-5).all()
    for _ in range(20):
        step = se3_exp(0.02 * torch.randn(4, 6, generator=generator))
        assert (departure_from(frames @ step).mean(-1) > best).all()


@pytest.mark.parametrize('kind', KINDS)
def test_only_frames_of_the_step_are_pulled(kind, generator):
    plane, directions = pixels(generator)
    motions = KINDS[kind](4, ERRORS)
    chosen = torch.tensor([2, 0])
    if kind == 'l2g':  # its first gradient is the head's alone, which all frames share
        bend(motions, 0.1, generator)
    rays, departure, *_ = motions.ray_motions(chosen, plane[chosen], directions[chosen])
    (rays[..., :3, 3].sum() + departure).backward()
    rows = motions.moves.grad if kind == 'barf' else motions.network.embedding.weight.grad
    assert (rows.abs().amax(-1) > 0).tolist() == [True, False, True, False]


@pytest.mark.parametrize('kind', KINDS)
def test_numbers_are_in_deviations_of_the_rough_poses(kind, generator):
    plane, directions = pixels(generator)
    motions = KINDS[kind](4, SeparateErrors((0.5, 0.1)))
    moves = circling(torch.ones(6), motions.errors, -1.0)
    with torch.no_grad():
        if kind == 'barf':
            motions.moves.copy_(moves.expand(4, 6))
        else:
            motions.network.head.bias.copy_(moves / HEAD_UNIT)
    expected = se3_exp(torch.tensor([0.5, 0.5, 0.5, 0.1, 0.1, 0.1]))
    torch.testing.assert_close(motions.frame_motions(plane, directions),
                               expected.expand(4, 4, 4), atol=1e-5, rtol=1e-5)
    numbers = motions.ray_motions(torch.arange(4), plane, directions)[2]
    torch.testing.assert_close(numbers, torch.ones(4, 6))


def test_a_shift_goes_around_what_lies_ahead():
    errors = SeparateErrors((0.05, 0.02))
    shift = torch.tensor([0.1, -0.2, 0.0, 0.0, 0.0, 0.0])
    pivot = torch.tensor([[0.0, 0.0, PIVOT]])
    motion = se3_exp(errors.twists(circling(shift, errors)))
    torch.testing.assert_close(transform_points(motion, pivot), pivot, atol=1e-4, rtol=0)
    torch.testing.assert_close(motion[:3, 3], torch.tensor([0.005, -0.01, 0.0]), atol=1e-4, rtol=0)


def test_warps_hand_over_to_twists_where_they_are_and_only_once(generator):
    plane, directions = pixels(generator)
    errors = SeparateErrors((0.5, 0.1))
    motions = WarpsThenTwists(LocalWarps(4, errors), FrameTwists(4, errors))
    bend(motions.warps, 0.1, generator)
    fitted = motions.frame_motions(plane, directions)
    assert motions.ray_motions(torch.arange(4), plane, directions)[1] > 1e-8
    motions.settle(plane, directions, torch.full((2,), 1e-4))
    torch.testing.assert_close(motions.frame_motions(plane, directions), fitted,
                               atol=1e-4, rtol=0)
    rays, departure, numbers, _ = motions.ray_motions(
        torch.tensor([2, 0]), plane[:2], directions[:2])
    assert departure == 0 and torch.equal(rays[:, 0], rays[:, 9])
    numbers.sum().backward()
    assert motions.warps.network.head.weight.grad is None
    with torch.no_grad():
        motions.twists.moves.zero_()
    motions.settle(plane, directions, torch.full((2,), 1e-4))
    assert not motions.twists.numbers.any()
