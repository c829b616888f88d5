"""The published backbone computed piece by piece, for inference: the same numbers sooner.

A block of a ConvFormer widens each pixel to hundreds of channels: as a whole map hundreds of
megabytes, which go through memory five times. Here some thousand pixels at a time go through
normalisation, matrix product, activation and matrix product while they are in the cache, and the
scale of the activation is part of the next matrix. Only the depthwise convolution sees whole maps.
Letters: P pixels, C channels, D widened channels.
"""

from dataclasses import dataclass

from nerfmatch_ros.matching.backbone import ConvFormerBackbone
import torch
from torch import nn, Tensor
import torch.nn.functional as F

_PIECE = 1 << 22  # bytes of a widened piece on a CPU; it has to stay in the cache of a core


@dataclass(frozen=True)
class _Block:
    """The weights of a block: StarReLU is scale * relu(x)^2 + shift."""

    first_norm: tuple[Tensor, float]  # (C,), epsilon
    widen: Tensor  # (D, C)
    scale: float
    shift: Tensor  # (D,)
    depthwise: Tensor  # (D, 1, 7, 7)
    narrow: Tensor  # (C, D)
    second_norm: tuple[Tensor, float]
    mlp_widen: Tensor  # (E, C)
    mlp_narrow: Tensor  # (C, E), with the scale of the activation
    mlp_shift: Tensor  # (C,) what its shift becomes


def _block(block: nn.Module, dtype: torch.dtype) -> _Block:
    mixer, mlp = block.token_mixer, block.mlp

    def matrix(conv: nn.Conv2d) -> Tensor:
        return conv.weight.detach().flatten(1)

    scale, shift = mixer.act1.scale.item(), mixer.act1.bias.item()
    widened = matrix(mlp.fc2)
    return _Block(
        (block.norm1.weight.detach(), block.norm1.eps), matrix(mixer.pwconv1).to(dtype), scale,
        widened.new_full((mixer.pwconv1.out_channels,), shift).to(dtype),
        mixer.dwconv.weight.detach().to(dtype), matrix(mixer.pwconv2).to(dtype),
        (block.norm2.weight.detach(), block.norm2.eps), matrix(mlp.fc1).to(dtype),
        (mlp.act.scale.item() * widened).to(dtype), mlp.act.bias.item() * widened.sum(1))


def can_be_fused(backbone: nn.Module) -> bool:
    """Tell whether a backbone is a ConvFormer whose blocks are those of the first two stages."""
    if not isinstance(backbone, ConvFormerBackbone):
        return False
    blocks = [*backbone.stages.stages_0.blocks, *backbone.stages.stages_1.blocks]
    return all(
        isinstance(getattr(block, name), nn.Identity)
        for block in blocks for name in ('layer_scale1', 'res_scale1', 'layer_scale2',
                                         'res_scale2')) and all(
        conv.bias is None for block in blocks for conv in block.modules()
        if isinstance(conv, nn.Conv2d))


class FusedConvFormer:
    """A `ConvFormerBackbone` for inference, with the weights that it has now.

    dtype: of the matrix products; what blocks add to one another stays in single precision.
    """

    def __init__(self, backbone: ConvFormerBackbone, dtype: torch.dtype = torch.float32):
        stages = backbone.stages
        self.dtype, self.fine = dtype, backbone.fine
        self.stem, self.downsample = stages.stem, stages.stages_1.downsample
        self.blocks = [[_block(block, dtype) for block in stage.blocks]
                       for stage in (stages.stages_0, stages.stages_1)]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Give the coarse and the fine map (or None) of images (B, 3, H, W), as the backbone."""
        x = _in_layout(_convolved(images, self.stem.conv, self.dtype))
        x = _normalised(x, self.stem.norm.weight, self.stem.norm.eps)
        for block in self.blocks[0]:
            self._apply(block, x)
        fine = x
        x = _normalised(x, self.downsample.norm.weight, self.downsample.norm.eps)
        x = _in_layout(_convolved(x.permute(0, 3, 1, 2), self.downsample.conv, self.dtype))
        for block in self.blocks[1]:
            self._apply(block, x)
        return x.permute(0, 3, 1, 2), fine.permute(0, 3, 1, 2) if self.fine else None

    def _apply(self, block: _Block, x: Tensor) -> None:
        """Add what a block computes to x (B, H, W, C), single precision, in place."""
        pixels = x.view(-1, x.shape[-1])
        wide = pixels.new_empty((*x.shape[:3], len(block.widen)), dtype=self.dtype)
        flat = wide.view(-1, wide.shape[-1])
        for piece in _pieces(pixels, wide.shape[-1], self.dtype):
            y = F.linear(_normalised(pixels[piece], *block.first_norm).to(self.dtype), block.widen)
            y.relu_()
            torch.addcmul(block.shift, y, y, value=block.scale, out=flat[piece])
        mixed = F.conv2d(wide.permute(0, 3, 1, 2), block.depthwise, padding='same',
                         groups=wide.shape[-1])
        del wide, flat
        mixed = _in_layout(mixed).view(len(pixels), -1)
        for piece in _pieces(pixels, len(block.mlp_widen), self.dtype):
            own = pixels[piece]
            own += F.linear(mixed[piece], block.narrow)
            y = F.linear(_normalised(own, *block.second_norm).to(self.dtype), block.mlp_widen)
            y.relu_().square_()
            own += F.linear(y, block.mlp_narrow)
            own += block.mlp_shift


def _pieces(pixels: Tensor, widest: int, dtype: torch.dtype) -> list[slice]:
    """Cut P pixels into pieces that stay in the cache of a CPU; a GPU takes all at once."""
    count = len(pixels)
    if pixels.device.type != 'cpu':
        return [slice(0, count)]
    step = max(_PIECE // (widest * dtype.itemsize), 64) * torch.get_num_threads()
    return [slice(start, start + step) for start in range(0, count, step)]


def _normalised(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], weight, None, eps)


def _convolved(x: Tensor, conv: nn.Conv2d, dtype: torch.dtype) -> Tensor:
    """Convolve (B, C, H, W) in a precision; the result is in single precision."""
    weight = conv.weight.detach().to(dtype, memory_format=torch.channels_last)
    bias = None if conv.bias is None else conv.bias.detach().to(dtype)
    x = x.to(dtype).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, weight, bias, conv.stride, conv.padding).float()


def _in_layout(x: Tensor) -> Tensor:
    """Give (B, C, H, W) as (B, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()
