"""Sampling of rays: spacing, increasing edges, determinism, the histogram that is followed."""

from nerfmatch_ros.radiance_field.ray_sampler import (
    distance_at,
    guide_weights,
    sample_edges,
    spread,
)
from nerfmatch_ros.radiance_field.volume_rendering import interval_weights
import pytest
import torch


def histogram(generator, rays=50, bins=32):
    weights = torch.rand(rays, bins, generator=generator) ** 4
    weights[:, ::5] = 0
    return weights


@pytest.mark.parametrize('stratified', [False, True])
def test_positions_increase_from_zero_to_one(generator, stratified):
    positions = sample_edges(histogram(generator), 24, generator if stratified else None)
    assert positions.shape == (50, 25)
    assert (positions.diff(dim=-1) >= 0).all()
    assert (positions[:, 0] == 0).all() and (positions[:, -1] == 1).all()


def test_without_generator_sampling_is_deterministic(generator):
    weights = histogram(generator)
    assert torch.equal(sample_edges(weights, 24), sample_edges(weights, 24))
    assert not torch.equal(sample_edges(weights, 24, generator),
                           sample_edges(weights, 24, generator))


def test_each_interval_holds_the_same_share_of_the_histogram(generator):
    weights = histogram(generator, rays=4) + 1e-3
    positions = sample_edges(weights, 16)
    cdf = torch.cat([torch.zeros(4, 1), weights.cumsum(-1)], -1) / weights.sum(-1, keepdim=True)
    at = positions * weights.shape[1]
    low = at.long().clamp(max=weights.shape[1] - 1)
    reached = cdf.gather(1, low) + (at - low) * (cdf.gather(1, low + 1) - cdf.gather(1, low))
    torch.testing.assert_close(
        reached, torch.linspace(0, 1, 17).expand(4, -1), atol=1e-4, rtol=0)


def test_stratified_edges_follow_the_histogram(generator):
    weights = torch.tensor([[1.0, 0, 3, 6]]).expand(4000, -1)
    inner = sample_edges(weights, 10, generator)[:, 1:-1]
    # The inner edges cover the quantiles 0.05 to 0.95, so the outer bins lose half a step each.
    share = torch.histc(inner, 4, 0, 1) / inner.numel()
    expected = torch.tensor([0.5, 0, 3, 5.5]) / 9
    torch.testing.assert_close(share, expected, atol=0.01, rtol=0)


def test_an_empty_histogram_gives_finite_positions():
    assert sample_edges(torch.zeros(3, 8), 4).isfinite().all()


def test_distances_run_from_near_to_far_linearly_and_then_in_inverse_distance():
    near, far = torch.tensor([0.1, 0.5, 2.0]), torch.tensor([0.9, 20.0, 60.0])
    s = torch.linspace(0, 1, 101).expand(3, -1)
    distance = distance_at(s, near, far)
    torch.testing.assert_close(distance[:, 0], near)
    torch.testing.assert_close(distance[:, -1], far, rtol=1e-3, atol=0)
    assert (distance.diff(dim=-1) > 0).all()
    steps = distance[0].diff()
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-3, atol=0)
    inverse = (1 / distance[2]).diff()
    torch.testing.assert_close(inverse, inverse[:1].expand_as(inverse), rtol=2e-2, atol=0)


def test_guide_weights_without_cap_are_the_volume_rendering_weights(generator):
    density = 5 * torch.rand(7, 20, generator=generator)
    edges = torch.rand(7, 21, generator=generator).sort(dim=-1).values
    torch.testing.assert_close(guide_weights(density, edges, 1 - 1e-6),
                               interval_weights(density, edges), atol=1e-5, rtol=1e-4)


def test_no_guide_interval_hides_more_than_its_largest_opacity():
    density, edges = torch.full((1, 6), 1e6), torch.linspace(0, 1, 7)[None]
    weights = guide_weights(density, edges, 0.5)
    torch.testing.assert_close(weights[0], 0.5 ** torch.arange(1, 7.0))


def test_spread_gives_neighbours_a_share():
    weights = torch.tensor([[0.0, 0, 1, 0, 0.9, 0]])
    expected = torch.tensor([[0.0, 0.7, 1, 0.7, 0.9, 0.63]])
    torch.testing.assert_close(spread(weights, 0.7), expected)
    assert weights[0, 1] == 0  # the argument is left as it is
