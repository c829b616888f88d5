"""Encodings against sampled truth, their limits, and the published code's numbers."""

from nerfmatch_ros.radiance_field.encoding import (
    conical_frustums,
    direction_encoding,
    frustum_distances,
    integrated_positional_encoding,
    positional_encoding,
)
from official_parity import Fixture, needs_fixtures
import pytest
import torch


def unit(vectors):
    return vectors / vectors.norm(dim=-1, keepdim=True)


def test_positional_encoding_lists_sines_then_cosines_octave_by_octave():
    x = torch.tensor([[0.3, -0.7, 1.1]])
    expected = torch.cat([x.sin(), (2 * x).sin(), x.cos(), (2 * x).cos()], dim=-1)
    torch.testing.assert_close(positional_encoding(x, 2), expected)


def test_direction_encoding_ends_with_the_direction():
    x = unit(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)))
    assert direction_encoding(x, 4).shape == (5, 27)
    torch.testing.assert_close(direction_encoding(x, 4)[:, 24:], x)


def test_without_variance_the_integrated_encoding_is_the_positional_one():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(
        integrated_positional_encoding(x, torch.zeros_like(x), 6), positional_encoding(x, 6))


def test_octaves_finer_than_the_gaussian_fade_and_coarser_ones_stay():
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(2))
    encoded = integrated_positional_encoding(x, torch.full_like(x, 2.0 ** -10), 12)
    sines, cosines = encoded.view(7, 2, 12, 3).unbind(1)
    power = (sines ** 2 + cosines ** 2)
    assert (power[:, 0] > 0.998).all()
    assert (power[:, -2:] < 1e-6).all()
    assert (power.diff(dim=1) <= 1e-6).all()


def test_integrated_encoding_is_the_mean_over_the_gaussian():
    generator = torch.Generator().manual_seed(3)
    mean = torch.tensor([0.4, -0.2, 0.9], dtype=torch.float64)
    variance = torch.tensor([0.02, 0.1, 0.005], dtype=torch.float64)
    draws = torch.randn(200_000, 3, generator=generator, dtype=torch.float64)
    sampled = positional_encoding(mean + variance.sqrt() * draws, 4).mean(dim=0)
    torch.testing.assert_close(
        integrated_positional_encoding(mean, variance, 4), sampled, atol=0.01, rtol=0)


@pytest.mark.parametrize('start, end', [(0.0, 1.0), (0.5, 1.5), (2.0, 2.2)])
def test_frustum_gaussian_has_the_moments_of_points_in_the_cone(start, end):
    generator = torch.Generator().manual_seed(4)
    count, radius = 400_000, 0.3
    u = torch.rand(3, count, generator=generator, dtype=torch.float64)
    # Even in volume: the area of the cone grows with the square of the distance.
    distance = (start ** 3 + u[0] * (end ** 3 - start ** 3)) ** (1 / 3)
    reach, angle = radius * distance * u[1].sqrt(), 2 * torch.pi * u[2]
    points = torch.stack([reach * angle.cos(), reach * angle.sin(), distance], dim=-1)
    axis = torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)
    mean, variance = conical_frustums(
        torch.zeros_like(axis), axis, axis.new_tensor([radius]), axis.new_tensor([[start, end]]))
    torch.testing.assert_close(mean[0, 0], points.mean(dim=0), atol=2e-3, rtol=0)
    torch.testing.assert_close(variance[0, 0], points.var(dim=0), atol=5e-4, rtol=0.01)


def test_thin_empty_and_apex_intervals_stay_finite():
    edges = torch.tensor([[0.0, 0.0, 1e-6, 0.5, 0.5, 0.5 + 1e-7, 1.0]], requires_grad=True)
    moments = frustum_distances(edges)
    sum(moment.sum() for moment in moments).backward()
    assert all(torch.isfinite(moment).all() for moment in moments)
    assert torch.isfinite(edges.grad).all()
    assert (moments[1] >= 0).all()


def test_gaussians_turn_with_the_rays():
    """The trace of the covariance does not depend on the direction, the mean lies on the ray."""
    directions = unit(torch.randn(6, 3, generator=torch.Generator().manual_seed(5)))
    edges = torch.linspace(0.1, 2, 9).expand(6, -1)
    origins = torch.ones(6, 3)
    mean, variance = conical_frustums(origins, directions, torch.full((6,), 0.01), edges)
    torch.testing.assert_close(variance.sum(-1), variance.sum(-1)[:1].expand(6, -1))
    offset = mean - origins[:, None]
    assert torch.linalg.cross(offset, directions[:, None].expand_as(offset)).abs().max() < 1e-6


@needs_fixtures
@pytest.mark.parametrize('name', ['nerf_app', 'nerf_noapp'])
@pytest.mark.parametrize('step', ['det', 'rnd'])
@pytest.mark.parametrize('network', ['coarse', 'fine'])
def test_gaussians_and_encodings_equal_the_published_ones(name, step, network):
    fixture = Fixture(name)
    rays = fixture['rays']
    mean, variance = conical_frustums(
        rays[:, :3], rays[:, 3:6], rays[:, 11], fixture[f'{step}_t_{network}'])
    torch.testing.assert_close(mean, fixture[f'{step}_mean_{network}'], rtol=1e-4, atol=1e-6)
    # Variances of thin intervals are differences of nearly equal numbers in the published form.
    torch.testing.assert_close(
        variance, fixture[f'{step}_var_{network}'], rtol=1e-4, atol=1e-10)
    published = fixture[f'{step}_mlp_in_{network}_ray0']
    encoded = integrated_positional_encoding(
        fixture[f'{step}_mean_{network}'][0], fixture[f'{step}_var_{network}'][0], 15)
    torch.testing.assert_close(encoded, published[:, :90], rtol=1e-4, atol=1e-5)
    view = direction_encoding(rays[:1, 8:11], 4).expand(len(published), -1)
    torch.testing.assert_close(view, published[:, 90:117], rtol=1e-4, atol=1e-6)
