"""Image backbones: strides, sizes, clear refusals, and the published code's numbers."""

from nerfmatch_ros.errors import ConfigError, DataError
from nerfmatch_ros.matching.backbone import (
    COARSE_STRIDE,
    ConvFormerBackbone,
    FINE_STRIDE,
    IMAGENET_DEVIATION,
    IMAGENET_MEAN,
    make_timm_backbone,
    TimmPyramidBackbone,
)
from official_parity import Fixture, needs_fixtures, official_weights, part
import pytest
import torch

BACKBONES = [lambda fine: ConvFormerBackbone('convformer_s18', fine=fine),
             lambda fine: TimmPyramidBackbone('resnet18', fine=fine, coarse_channels=48,
                                              fine_channels=24)]


@pytest.mark.parametrize('build', BACKBONES, ids=['convformer', 'pyramid'])
@pytest.mark.parametrize('fine', [False, True])
@torch.no_grad()
def test_maps_have_the_announced_strides_and_channels(build, fine):
    backbone = build(fine).eval()
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    coarse, fine_map = backbone(image)
    assert coarse.shape == (2, backbone.coarse_channels, 64 // COARSE_STRIDE, 96 // COARSE_STRIDE)
    if fine:
        assert fine_map.shape == (2, backbone.fine_channels, 64 // FINE_STRIDE, 96 // FINE_STRIDE)
    else:
        assert fine_map is None


@pytest.mark.parametrize('build', BACKBONES, ids=['convformer', 'pyramid'])
@torch.no_grad()
def test_cells_see_the_image_where_they_are(build):
    """A change of the image in one corner reaches the maps there and leaves the far corner."""
    backbone = build(True).eval()
    image = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    changed = image.clone()
    changed[..., :32, :32] += 1
    for before, after in zip(backbone(image), backbone(changed), strict=True):
        difference = (after - before).abs().amax(dim=1)[0]
        cells = len(difference) // 8
        assert difference[:cells, :cells].max() > 100 * difference[-cells:, -cells:].max()


@pytest.mark.parametrize('build', BACKBONES, ids=['convformer', 'pyramid'])
def test_both_maps_teach_all_weights(build):
    backbone = build(True).train()
    coarse, fine = backbone(torch.randn(2, 3, 64, 64))
    (coarse.square().mean() + fine.square().mean()).backward()
    assert [name for name, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('name, kind', [('convformer_s18', ConvFormerBackbone),
                                        ('resnet18', TimmPyramidBackbone)])
@torch.no_grad()
def test_unit_range_images_are_normalised_first(name, kind):
    unit_range = make_timm_backbone(name, fine=True).eval()
    assert isinstance(unit_range.backbone, kind)
    assert unit_range.coarse_channels == unit_range.backbone.coarse_channels
    image = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    mean, deviation = (torch.tensor(values)[:, None, None]
                       for values in (IMAGENET_MEAN, IMAGENET_DEVIATION))
    expected = unit_range.backbone((image - mean) / deviation)
    for found, wanted in zip(unit_range(image), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_sizes_that_no_stride_divides_are_refused():
    with pytest.raises(DataError, match='100x64'):
        ConvFormerBackbone('convformer_s18')(torch.zeros(1, 3, 64, 100))


def test_unsuitable_networks_are_refused_by_name():
    with pytest.raises(ConfigError, match='no network'):
        ConvFormerBackbone('convformer_x99')
    with pytest.raises(ConfigError, match='not a ConvFormer'):
        ConvFormerBackbone('resnet18')
    with pytest.raises(ConfigError, match='stride'):
        TimmPyramidBackbone('convnext_atto')


def test_a_failed_download_says_what_to_do(monkeypatch):
    import timm

    def unreachable(*args, **kwargs):
        raise OSError('Name or service not known\nmore')
    monkeypatch.setattr(timm, 'create_model', unreachable)
    with pytest.raises(ConfigError, match=r"'convformer_b36.sail_in1k_384'.*\(Name or service "
                                          r'not known\).*pretrained=False'):
        ConvFormerBackbone(pretrained=True)


def test_recomputed_maps_have_the_same_gradients_and_are_not_kept():
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    backbone = ConvFormerBackbone('convformer_s18')
    gradients, kept = [], []
    for enabled in (False, True):
        backbone.recompute(enabled)
        backbone.zero_grad()
        kept.append(0)

        def count(value):
            kept[-1] += value.numel()
            return value

        with torch.autograd.graph.saved_tensors_hooks(count, lambda value: value), \
                torch.autocast('cpu', torch.bfloat16):
            coarse, fine = backbone(image)
        (coarse.float().square().mean() + fine.float().mean()).backward()
        gradients.append([p.grad.clone() for p in backbone.parameters()])
    assert kept[1] < 0.5 * kept[0]
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@needs_fixtures
@torch.no_grad()
def test_mini_backbone_equals_the_published_one():
    fixture = Fixture('mini_small')
    backbone = ConvFormerBackbone(fine=False).eval()
    backbone.stages.load_state_dict(part(official_weights('mini'), 'model.backbone.', {}))
    coarse, fine = backbone(fixture['image'])
    close(coarse.flatten(2).transpose(1, 2), fixture['im_cfeat'])
    assert fine is None


@needs_fixtures
@torch.no_grad()
def test_full_backbone_equals_the_published_one():
    fixture = Fixture('full_small')
    backbone = ConvFormerBackbone(fine=True).eval()
    backbone.stages.load_state_dict(part(official_weights('full'), 'model.backbone.model.', {}))
    coarse, fine = backbone(fixture['image'])
    close(coarse, fixture['backbone_c'])
    close(fine, fixture['backbone_f'])
