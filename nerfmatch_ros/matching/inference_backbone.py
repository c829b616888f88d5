"""A backbone made ready for inference: batch norms folded, memory layout and precision chosen."""

from collections.abc import Callable
import copy

from nerfmatch_ros.matching.backbone import UnitRangeBackbone
from nerfmatch_ros.matching.compact_backbone import CompactBackbone
from nerfmatch_ros.matching.cuda_graph import GraphedEncoder
from nerfmatch_ros.matching.fused_convformer import can_be_fused, FusedConvFormer
import torch
from torch import nn, Tensor

Encoder = Callable[[Tensor], tuple[Tensor, Tensor | None]]


class InferenceEncoder:
    """The prepared copy of a backbone that a matcher has beside its own, which trains."""

    def __init__(self):
        self.dtype = torch.float32
        self._encode: Encoder | None = None

    def prepare(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        """Take over the present weights of a backbone."""
        encode = inference_encoder(backbone, dtype)
        on_gpu = next(backbone.parameters()).is_cuda
        self.dtype, self._encode = dtype, GraphedEncoder(encode) if on_gpu else encode

    def maps(self, backbone: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode images (B, 3, H, W) by the copy, or by the backbone if there is none."""
        return (self._encode or backbone)(images)


def inference_encoder(backbone: nn.Module, dtype: torch.dtype = torch.float32) -> Encoder:
    """Give a function that does what the backbone does with its present weights, in eval mode.

    backbone: takes images (B, 3, H, W) in [0, 1], gives a coarse map and a fine one or None.
    dtype: of its products; both results are in single precision.
    """
    if isinstance(backbone, UnitRangeBackbone):
        inner, mean, deviation = backbone.backbone, backbone.mean, backbone.deviation
        encode = FusedConvFormer(inner, dtype) if can_be_fused(inner) else _folded(inner, dtype)
        return lambda images: encode((images - mean) / deviation)
    return _folded(backbone, dtype)


def _folded(backbone: nn.Module, dtype: torch.dtype) -> Encoder:
    network = folded_batch_norms(backbone).to(dtype=dtype, memory_format=torch.channels_last)

    @torch.no_grad()
    def encode(images: Tensor) -> tuple[Tensor, Tensor | None]:
        # The compact backbone standardises its images first, in their own precision.
        images = images if isinstance(backbone, CompactBackbone) else images.to(dtype)
        coarse, fine = network(images.contiguous(memory_format=torch.channels_last))
        return coarse.float(), None if fine is None else fine.float()

    return encode


def folded_batch_norms(module: nn.Module) -> nn.Module:
    """Give a copy for inference whose convolutions have taken in the batch norms behind them."""
    module = copy.deepcopy(module).eval().requires_grad_(False)
    for sequence in module.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for index in range(len(sequence) - 1):
            conv, norm = sequence[index], sequence[index + 1]
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                sequence[index] = nn.utils.fuse_conv_bn_eval(conv, norm)
                sequence[index + 1] = nn.Identity()
    return module
