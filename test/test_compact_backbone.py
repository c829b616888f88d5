"""The compact backbone: strides, independence of a batch, insensitivity to exposure."""

from nerfmatch_ros.matching.compact_backbone import CompactBackbone
import pytest
import torch


@pytest.fixture(scope='module')
def backbone():
    torch.manual_seed(0)
    return CompactBackbone(48, 16).eval()


@pytest.mark.parametrize('height, width', [(48, 64), (112, 80), (16, 16)])
def test_maps_have_an_eighth_and_a_half_of_the_sides(backbone, height, width):
    coarse, fine = backbone(torch.rand(2, 3, height, width))
    assert coarse.shape == (2, 48, height // 8, width // 8)
    assert fine.shape == (2, 16, height // 2, width // 2)


@torch.no_grad()
def test_images_of_a_batch_do_not_mix(backbone, generator):
    images = torch.rand(3, 3, 48, 64, generator=generator)
    together = backbone(images)
    for k in range(3):
        for whole, alone in zip(together, backbone(images[k:k + 1])):
            torch.testing.assert_close(whole[k:k + 1], alone, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_gain_and_offset_of_an_image_hardly_matter(backbone, generator):
    images = torch.rand(1, 3, 48, 64, generator=generator)
    tint = torch.tensor([0.05, 0.1, 0.2]).view(1, 3, 1, 1)
    for plain, lit in zip(backbone(images), backbone(0.6 * images + tint)):
        assert (plain - lit).norm() < 0.02 * plain.norm()


@torch.no_grad()
def test_plain_images_give_finite_maps(backbone):
    for value in (0.0, 0.5, 1.0):
        assert all(out.isfinite().all() for out in backbone(torch.full((1, 3, 32, 32), value)))


def test_a_change_of_a_cell_is_felt_most_there(backbone, generator):
    image = torch.rand(1, 3, 128, 128, generator=generator)
    changed = image.clone()
    changed[..., 64:72, 32:40] = 1 - changed[..., 64:72, 32:40]
    with torch.no_grad():
        change = (backbone(changed)[0] - backbone(image)[0]).norm(dim=1)[0]
    row, column = divmod(change.argmax().item(), 16)
    assert abs(row - 8) <= 1 and abs(column - 4) <= 1
