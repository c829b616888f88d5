"""The field beside photographs: PSNR, exposure, the picture."""

from analytic_field import SphereField
from nerfmatch_ros.mapping.field_quality import compare_with_photographs, match_exposure, psnr
from nerfmatch_ros.mapping.training_pixels import PixelSize
import numpy as np
import pytest
from sphere_scene import CAMERA, FRAME, sphere_images
import torch


def test_psnr_is_that_of_its_definition(generator):
    truth = torch.rand(1000, 3, generator=generator)
    assert psnr(truth + 0.1, truth) == pytest.approx(20, abs=1e-3)
    assert psnr(truth, truth) == 100


def test_gain_and_offset_are_fitted_away(generator):
    rendered = torch.rand(1000, 3, generator=generator)
    lit = rendered * torch.tensor([0.5, 0.7, 0.4]) + torch.tensor([0.2, 0.0, 0.1])
    torch.testing.assert_close(match_exposure(rendered, lit), lit, atol=1e-5, rtol=0)
    grey = torch.full((1000, 3), 0.5)
    assert match_exposure(grey, lit).isfinite().all()


def test_a_field_agrees_with_its_own_pictures():
    images = sphere_images()[:2]
    quality = compare_with_photographs(SphereField(), FRAME, images, PixelSize(40))
    assert len(quality.psnr) == 2 and min(quality.psnr) > 35
    assert quality.picture.shape == (2 * CAMERA.height // 2, 3 * 40, 3)
    assert quality.picture.dtype == np.uint8
    wrong = compare_with_photographs(SphereField(radius=0.4), FRAME, images, PixelSize(40))
    assert max(wrong.psnr) < min(quality.psnr)
