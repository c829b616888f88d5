"""Normal matrices: inverse and condition."""

import math

from nerfmatch_ros.localization.normal_matrix import inverse_normal
import pytest
import torch


def random_normal(generator):
    jacobian = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    return jacobian.T @ jacobian


def test_a_well_conditioned_matrix_is_inverted(generator):
    normal = random_normal(generator)
    inverse, condition = inverse_normal(normal)
    torch.testing.assert_close(inverse @ normal, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(inverse, inverse.T, rtol=0, atol=0)
    assert 1 <= condition < 100


def test_the_condition_does_not_depend_on_units(generator):
    normal = random_normal(generator)
    units = torch.tensor([1e3, 1e3, 1e3, 1, 1, 1], dtype=torch.float64)
    assert inverse_normal(normal)[1] == pytest.approx(
        inverse_normal(normal * units[:, None] * units)[1], rel=1e-6)


@pytest.mark.parametrize('spoilt', ['zero', 'not a number', 'dependent'])
def test_a_degenerate_matrix_has_no_inverse(generator, spoilt):
    jacobian = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    if spoilt == 'dependent':
        jacobian[:, 0] = jacobian[:, 5]
    normal = jacobian.T @ jacobian
    if spoilt == 'zero':
        normal = torch.zeros_like(normal)
    elif spoilt == 'not a number':
        normal[2, 2] = math.nan
    inverse, condition = inverse_normal(normal)
    assert inverse is None and condition > 1e7
