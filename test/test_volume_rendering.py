"""Compositing on walls whose answer is known, and the losses against their definitions."""

from nerfmatch_ros.radiance_field.volume_rendering import (
    composite,
    depth_loss,
    distortion_loss,
    interval_weights,
    median_distance,
    midpoints,
)
import pytest
import torch


def wall(distance, count=200, density=1e4):
    """Edges to 4 units and an opaque density from `distance` (R,) on."""
    edges = torch.linspace(0, 4, count + 1).expand(len(distance), -1)
    return torch.where(midpoints(edges) > distance[:, None], density, 0.0), edges


def random_weights(generator, rays=20, samples=15):
    edges = torch.rand(rays, samples + 1, generator=generator, dtype=torch.float64)
    edges = edges.cumsum(-1)
    density = torch.rand(rays, samples, generator=generator, dtype=torch.float64)
    return interval_weights(density, edges), edges


def test_a_wall_is_seen_where_it_stands_in_its_colour(generator):
    distance = torch.tensor([0.5, 1.7, 3.2])
    density, edges = wall(distance)
    weights = interval_weights(density, edges)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3))
    assert (median_distance(weights, edges) - distance).abs().max() <= 4 / 200
    colour = torch.rand(3, 200, 3, generator=generator)
    behind = density[..., None] > 0
    colour = torch.where(behind, torch.tensor([0.2, 0.5, 0.9]), colour)
    torch.testing.assert_close(composite(weights, colour),
                               torch.tensor([0.2, 0.5, 0.9]).expand(3, -1))


def test_weights_and_rest_transmittance_sum_to_one(generator):
    edges = torch.rand(30, 41, generator=generator, dtype=torch.float64).sort(-1).values
    density = 20 * torch.rand(30, 40, generator=generator, dtype=torch.float64) ** 3
    weights = interval_weights(density, edges)
    rest = torch.exp(-(density * edges.diff(dim=-1)).sum(-1))
    assert (weights >= 0).all() and (weights.sum(-1) <= 1).all()
    torch.testing.assert_close(weights.sum(-1) + rest, torch.ones(30, dtype=torch.float64))


def test_weights_equal_the_recursion_over_alphas(generator):
    edges = torch.rand(5, 13, generator=generator).cumsum(-1)
    density = torch.rand(5, 12, generator=generator)
    alpha = 1 - torch.exp(-density * edges.diff(dim=-1))
    passing, expected = torch.ones(5), []
    for s in range(12):
        expected.append(passing * alpha[:, s])
        passing = passing * (1 - alpha[:, s])
    torch.testing.assert_close(interval_weights(density, edges), torch.stack(expected, -1))


def test_weights_are_differentiable(generator):
    edges = torch.rand(3, 6, generator=generator, dtype=torch.float64).cumsum(-1)
    density = torch.rand(3, 5, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        interval_weights, (density.requires_grad_(), edges.requires_grad_()))


def test_the_median_lies_on_one_of_two_surfaces():
    edges = torch.linspace(0, 4, 41)[None]
    density = torch.zeros(1, 40)
    density[0, 10], density[0, 30] = 12.0, 1e4  # the first lets 30 % pass
    weights = interval_weights(density, edges)
    assert abs(median_distance(weights, edges).item() - 1.05) < 0.06


def test_an_empty_ray_has_a_finite_median():
    edges = torch.linspace(0.5, 4, 41)[None]
    assert median_distance(torch.zeros(1, 40), edges).isfinite().all()


def test_distortion_loss_equals_its_double_sum(generator):
    weights, edges = random_weights(generator)
    position = edges / edges[:, -1:]
    centre = midpoints(position)
    between = (weights[:, :, None] * weights[:, None]
               * (centre[:, :, None] - centre[:, None]).abs()).sum((1, 2))
    within = (weights ** 2 * position.diff(dim=-1)).sum(-1) / 3
    torch.testing.assert_close(distortion_loss(weights, edges), (between + within).mean())


@pytest.mark.parametrize('distance', [0.8, 2.5])
def test_depth_loss_is_zero_on_the_right_surface_and_not_beside_it(distance):
    density, edges = wall(torch.tensor([distance]))
    weights = interval_weights(density, edges)
    tolerance = torch.tensor([0.03])
    right = depth_loss(weights, edges, torch.tensor([distance]), tolerance)
    assert right.item() < 1e-5
    for wrong in (distance - 0.2, distance + 0.2):
        assert depth_loss(weights, edges, torch.tensor([wrong]), tolerance).item() > 0.3


def test_depth_loss_charges_an_empty_and_a_smeared_ray():
    edges = torch.linspace(0, 4, 41)[None]
    distance, tolerance = torch.tensor([2.0]), torch.tensor([0.02])
    assert depth_loss(torch.zeros(1, 40), edges, distance, tolerance).item() > 0.4
    smeared = torch.full((1, 40), 1 / 40)  # its mean distance is right
    assert depth_loss(smeared, edges, distance, tolerance).item() > 0.3


def test_depth_loss_moves_density_towards_the_measured_distance():
    edges = torch.linspace(0, 4, 41)[None]
    density = torch.ones(1, 40, requires_grad=True)
    depth_loss(interval_weights(density, edges), edges, torch.tensor([2.05]),
               torch.tensor([0.02])).sum().backward()
    assert density.grad[0, 20] < 0  # a step down the gradient raises the density there
    assert (density.grad[0, :15] > 0).all()
