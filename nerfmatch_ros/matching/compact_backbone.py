"""A small convolutional image encoder that trains from scratch on a CPU within minutes.

Like the paper's backbone it gives a coarse map at 1/8 and a fine map at 1/2 of the image. Its
blocks are MetaFormer-like (depthwise mixing, then a pointwise MLP) but with batch normalisation,
which learns faster from few images; stages at 1/16 and 1/32 widen what a token sees.
"""

from nerfmatch_ros.matching.shared_batch_norm import SharedBatchNorm2d
from torch import nn, Tensor
import torch.nn.functional as F


def _conv(channels_in: int, channels_out: int, kernel: int = 3, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, bias=False),
        SharedBatchNorm2d(channels_out), nn.ReLU(inplace=True))


class MixingBlock(nn.Module):
    """Two 3x3 depthwise mixings and a pointwise MLP added to their input: (B, C, h, w) -> same.

    Two 3x3 mixings see 5x5; one 7x7 costs twenty times as much to train on a CPU.
    """

    def __init__(self, channels: int, expansion: int = 2):
        super().__init__()
        hidden = channels * expansion
        self.mix = nn.Sequential(*(layer for _ in range(2) for layer in (
            nn.Conv2d(channels, channels, 3, 1, 1, groups=channels, bias=False),
            SharedBatchNorm2d(channels))))
        self.widen = nn.Conv2d(channels, hidden, 1)
        self.narrow = nn.Sequential(
            nn.Conv2d(hidden, channels, 1, bias=False), SharedBatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block."""
        return x + self.narrow(F.relu(self.widen(self.mix(x))))


class CompactBackbone(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> coarse (B, C, H/8, W/8), fine (B, Cf, H/2, W/2)."""

    def __init__(self, coarse_channels: int = 128, fine_channels: int = 32):
        super().__init__()
        self.coarse_channels, self.fine_channels = coarse_channels, fine_channels
        self.stage2 = nn.Sequential(_conv(3, 16, 5, 2), _conv(16, 24))
        self.stage4 = nn.Sequential(_conv(24, 64, 3, 2), MixingBlock(64))
        self.stage8 = nn.Sequential(
            _conv(64, 128, 3, 2), *(MixingBlock(128) for _ in range(3)))
        self.stage16 = nn.Sequential(
            _conv(128, 192, 3, 2), *(MixingBlock(192) for _ in range(4)))
        self.stage32 = nn.Sequential(
            _conv(192, 256, 3, 2), *(MixingBlock(256) for _ in range(3)))
        self.from_stage32 = nn.Conv2d(256, 192, 1)
        self.from_stage16 = nn.Conv2d(192, 128, 1)
        self.coarse = nn.Sequential(MixingBlock(128), nn.Conv2d(128, coarse_channels, 1))
        self.fine_from_coarse = nn.Conv2d(coarse_channels, 24, 1)
        self.fine_from_quarter = nn.Conv2d(64, 24, 1)
        self.fine = nn.Sequential(_conv(24, 24), nn.Conv2d(24, fine_channels, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Encode images whose sides are multiples of 16."""
        image = standardised(image).to(self.from_stage32.weight.dtype)
        half = self.stage2(image)
        quarter = self.stage4(half)
        eighth = self.stage8(quarter)
        sixteenth = self.stage16(eighth)
        sixteenth = sixteenth + _resized(self.from_stage32(self.stage32(sixteenth)), sixteenth)
        coarse = self.coarse(eighth + _resized(self.from_stage16(sixteenth), eighth))
        fine = half + _resized(self.fine_from_quarter(quarter), half) + _resized(
            self.fine_from_coarse(coarse), half)
        return coarse, self.fine(fine)


class CompactContextBackbone(nn.Module):
    """Images (B, 3, H, W) in [0, 1] -> features (B, channels, H/8, W/8) that see most of them.

    The compact backbone without its fine map, and with a stem that goes to 1/4 at once: a step of
    training costs half as much.
    """

    def __init__(self, channels: int = 128):
        super().__init__()
        self.stage4 = nn.Sequential(_conv(3, 32, 7, 4), MixingBlock(32))
        self.stage8 = nn.Sequential(_conv(32, 96, 3, 2), *(MixingBlock(96) for _ in range(2)))
        self.stage16 = nn.Sequential(_conv(96, 192, 3, 2), *(MixingBlock(192) for _ in range(3)))
        self.stage32 = nn.Sequential(_conv(192, 320, 3, 2), *(MixingBlock(320) for _ in range(3)))
        self.from_stage32 = nn.Conv2d(320, channels, 1)
        self.from_stage16 = nn.Conv2d(192, channels, 1)
        self.from_stage8 = nn.Conv2d(96, channels, 1)
        self.mix16, self.mix8 = MixingBlock(channels), MixingBlock(channels)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images whose sides are multiples of 8."""
        eighth = self.stage8(self.stage4(standardised(image)))
        sixteenth = self.stage16(eighth)
        context = self.from_stage32(self.stage32(sixteenth))
        context = self.mix16(self.from_stage16(sixteenth) + _resized(context, sixteenth))
        return self.mix8(self.from_stage8(eighth) + _resized(context, eighth))


def standardised(image: Tensor) -> Tensor:
    """Take mean colour and contrast out of images (B, 3, H, W): most of an exposure change."""
    return (image - image.mean((2, 3), keepdim=True)) / (
        image.std((1, 2, 3), keepdim=True) + 1e-3)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(x, size=like.shape[-2:], mode='bilinear', align_corners=False)
