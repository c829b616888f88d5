"""What is made ready for inference gives what the backbone gives, and leaves it as it was."""

from nerfmatch_ros.matching import fused_convformer
from nerfmatch_ros.matching.backbone import ConvFormerBackbone, make_timm_backbone
from nerfmatch_ros.matching.compact_backbone import CompactBackbone
from nerfmatch_ros.matching.fused_convformer import can_be_fused, FusedConvFormer
from nerfmatch_ros.matching.inference_backbone import inference_encoder
import pytest
import torch
from torch import nn

MAKE = {
    'compact': CompactBackbone,
    'mini': lambda: make_timm_backbone('convformer_s18', fine=False),
    'full': lambda: make_timm_backbone('convformer_s18', fine=True),
    'pyramid': lambda: make_timm_backbone('resnet18', fine=True),
}


def backbone(kind):
    """Make a backbone whose norms and activations are not those of the first step."""
    torch.manual_seed(0)
    made = MAKE[kind]().eval()
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
        for parameter in made.parameters():
            if parameter.dim() <= 1:
                parameter += 0.1 * torch.randn_like(parameter)
    return made


def apart(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.mark.parametrize('batch', [1, 2])
@pytest.mark.parametrize('kind', MAKE)
def test_the_same_maps_come_out(kind, batch):
    made, images = backbone(kind), torch.rand(batch, 3, 64, 96)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    with torch.no_grad():
        expected = made(images)
    found = inference_encoder(made)(images)
    for ours, theirs in zip(found, expected):
        assert (ours is None) == (theirs is None)
        if theirs is not None:
            assert ours.dtype == torch.float32 and apart(ours, theirs) < 1e-5
    assert all(torch.equal(before[name], value) for name, value in made.state_dict().items())


@pytest.mark.parametrize('kind', MAKE)
def test_half_precision_changes_the_maps_by_a_percent_or_two_at_most(kind):
    made, images = backbone(kind), torch.rand(1, 3, 64, 96)
    exact, rounded = (inference_encoder(made, dtype)(images)
                      for dtype in (torch.float32, torch.bfloat16))
    for ours, theirs in zip(rounded, exact):
        if theirs is not None:
            assert ours.dtype == torch.float32 and 0 < apart(ours, theirs) < 0.02


def test_pieces_of_any_size_give_the_same(monkeypatch):
    made, images = backbone('full').backbone, torch.randn(1, 3, 64, 64)
    whole = FusedConvFormer(made)(images)
    monkeypatch.setattr(fused_convformer, '_PIECE', 1)
    for ours, theirs in zip(FusedConvFormer(made)(images), whole):
        assert apart(ours, theirs) < 1e-6


def test_later_stages_have_scales_that_are_not_fused():
    made = ConvFormerBackbone('convformer_s18')
    assert can_be_fused(made)
    made.stages.stages_1.blocks[0].res_scale1 = nn.Dropout()
    assert not can_be_fused(made) and not can_be_fused(CompactBackbone())
