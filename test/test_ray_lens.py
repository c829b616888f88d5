"""Lens terms learned beside poses: they turn rays as the correction of features does."""

from nerfmatch_ros.mapping.lens_correction import LensCorrection
from nerfmatch_ros.mapping.ray_lens import bent, RayLens
import numpy as np
import torch
import torch.nn.functional as F


def directions(generator, *shape):
    sideways = 0.8 * torch.randn(*shape, 2, generator=generator, dtype=torch.float64)
    return F.normalize(torch.cat([sideways, torch.ones(*shape, 1).double()], -1), dim=-1)


def test_terms_mean_what_they_mean_for_features(generator):
    lens = RayLens(torch.tensor([0, 1, 0])).double()
    with torch.no_grad():
        lens.terms.copy_(torch.tensor([[0.03, -0.01], [-0.05, 0.02]]))
    rays = directions(generator, 3, 20)
    found = lens(torch.arange(3), rays)
    correction = LensCorrection(np.array([0, 1, 0]), lens.terms.detach().numpy())
    expected = correction.apply(rays.reshape(-1, 3).numpy(), np.repeat(np.arange(3), 20))
    np.testing.assert_allclose(found.detach().reshape(-1, 3).numpy(), expected, atol=1e-9)


def test_without_terms_nothing_is_turned_and_the_axis_never_is(generator):
    rays = directions(generator, 2, 5)
    torch.testing.assert_close(bent(rays, torch.zeros(2, 1, 2).double()), rays)
    axis = torch.tensor([0.0, 0.0, 1.0]).double()
    torch.testing.assert_close(bent(axis, torch.tensor([0.1, 0.1]).double()), axis)


def test_gradients_agree_with_finite_differences(generator):
    rays = directions(generator, 4).requires_grad_()
    terms = (0.02 * torch.randn(4, 2, generator=generator, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(bent, (rays, terms))


def test_gradients_are_finite_on_the_axis():
    axis = torch.tensor([[0.0, 0.0, 1.0]], requires_grad=True)
    terms = torch.zeros(1, 2, requires_grad=True)
    bent(axis, terms).sum().backward()
    assert axis.grad.isfinite().all() and terms.grad.isfinite().all()
