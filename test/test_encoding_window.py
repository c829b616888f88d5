"""Coarse to fine: bands of an encoding open one after the other, on both fields."""

from nerfmatch_ros.radiance_field.encoding_window import band_weights, opened_bands
from nerfmatch_ros.radiance_field.field import Rays
from nerfmatch_ros.radiance_field.volume_rendering import interval_weights
import pytest
from tiny_build import TINY, TINY_MIP
import torch

CONFIGS = {'grid': TINY, 'mip': TINY_MIP}


def field_of(kind, generator, detail=1.0):
    torch.manual_seed(0)
    field = CONFIGS[kind].field.make(1)
    with torch.no_grad():
        for value in field.parameters():
            value.copy_(0.3 * torch.randn(value.shape, generator=generator))
        for name, value in field.named_parameters():
            if name.endswith('density_head.bias'):
                value.fill_(1.0)  # so that no ray sees nothing
    field.detail = detail
    return field.eval()


def test_bands_open_one_after_the_other_and_smoothly():
    torch.testing.assert_close(band_weights(4, 0.0), torch.zeros(4))
    torch.testing.assert_close(band_weights(4, 4.0), torch.ones(4))
    torch.testing.assert_close(band_weights(4, 1.5), torch.tensor([1.0, 0.5, 0.0, 0.0]))
    opened = torch.stack([band_weights(5, x) for x in torch.linspace(0, 5, 101).tolist()])
    assert (opened.diff(dim=0) >= 0).all() and opened.diff(dim=0).max() < 0.1
    assert (opened.diff(dim=1) <= 0).all()


def test_the_first_bands_are_always_open():
    assert opened_bands(6, 0.0, 2) == 2 and opened_bands(6, 1.0, 2) == 6
    assert opened_bands(6, 0.5, 2) == 4 and opened_bands(1, 0.0, 2) == 1


@pytest.mark.parametrize('kind', CONFIGS)
def test_almost_all_detail_is_almost_the_whole_field(kind, generator):
    points = torch.rand(50, 3, generator=generator) - 0.5
    field = field_of(kind, generator)
    whole = field.point_features(points, 2)
    field.detail = 1 - 1e-4
    torch.testing.assert_close(field.point_features(points, 2), whole, atol=1e-2, rtol=1e-2)
    field.detail = 0.0
    assert (field.point_features(points, 2) - whole).abs().max() > 0.1


@pytest.mark.parametrize('kind', CONFIGS)
def test_without_detail_a_field_changes_slowly(kind, generator):
    points = torch.rand(200, 3, generator=generator) - 0.5
    steps = 0.01 * torch.randn(200, 3, generator=generator)
    field = field_of(kind, generator)

    def change():
        return (field.point_features(points + steps, 2)
                - field.point_features(points, 2)).norm(dim=-1).mean()

    sharp = change()
    field.detail = 0.0
    assert change() < 0.6 * sharp


@pytest.mark.parametrize('kind', CONFIGS)
@pytest.mark.parametrize('detail', [0.4, 1.0])
def test_rays_get_the_gradient_that_finite_differences_have(kind, detail, generator):
    field = field_of(kind, generator, detail).double()
    directions = torch.nn.functional.normalize(
        torch.randn(30, 3, generator=generator, dtype=torch.float64), dim=-1)
    origins = 0.1 * torch.randn(30, 3, generator=generator, dtype=torch.float64)
    ones = torch.ones(30, dtype=torch.float64)
    edges = torch.linspace(0.1, 0.9, 6, dtype=torch.float64).expand(30, -1)

    def colours(origins, directions):
        rays = Rays(origins, directions, 0.1 * ones, 0.9 * ones, 0.01 * ones)
        samples = field.evaluate(rays, edges)
        weights = interval_weights(samples.density, edges)
        return (weights[..., None] * samples.colour).sum(1)

    inputs = (origins.requires_grad_(), directions.requires_grad_())
    weight = torch.randn(30, 3, generator=generator, dtype=torch.float64)
    analytic = torch.autograd.grad((colours(*inputs) * weight).sum(), inputs)
    for given, gradient in zip(inputs, analytic):
        steps = torch.randn(given.shape, generator=generator, dtype=torch.float64)
        moved = [[value + sign * 1e-5 * steps if value is given else value for value in inputs]
                 for sign in (1, -1)]
        with torch.no_grad():
            numeric = ((colours(*moved[0]) - colours(*moved[1])) * weight).sum(-1) / 2e-5
        apart = ((gradient * steps).sum(-1) - numeric).abs()
        # A few samples lie so near to a face of a cell that the step crosses it.
        assert (apart < 0.02 * numeric.abs() + 0.02 * numeric.abs().mean()).sum() >= 27
