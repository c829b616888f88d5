"""Attention between tokens, and where they are: encodings of image cells and of 3D points.

The layer keeps the residual pattern of the published NeRFMatch, so that published weights give
published numbers. Letters: B batch, N and M tokens, C channels.
"""

import math

from nerfmatch_ros.errors import ConfigError
import torch
from torch import nn, Tensor
import torch.nn.functional as F


def sine_position_encoding(
    channels: int, rows: int, columns: int, *, device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Encode the cells of a feature map: (channels, rows, columns), to be added to it.

    Channels 4i .. 4i + 3 are sin x, cos x, sin y, cos y at frequency 10000^(-4i / channels); the
    first row and column have position 1 (LoFTR, in its corrected form).
    """
    if channels % 4:
        raise ConfigError(f'a position encoding of {channels} channels; give a multiple of 4')
    exponent = torch.arange(0, channels // 2, 2, device=device, dtype=dtype)
    frequency = torch.exp(exponent * (-math.log(10000.0) / (channels // 2)))[:, None, None]
    x = torch.arange(1, columns + 1, device=device, dtype=dtype) * frequency
    y = torch.arange(1, rows + 1, device=device, dtype=dtype)[:, None] * frequency
    parts = [part.expand(-1, rows, columns) for part in (x.sin(), x.cos(), y.sin(), y.cos())]
    return torch.stack(parts, dim=1).flatten(0, 1)


def fourier_encoding(points: Tensor, octaves: int = 15) -> Tensor:
    """Give [x, sin x, cos x, sin 2x, cos 2x, ...], octave k with scale 2^k.

    points: (..., D) map frame, metres
    Returns (..., D + 2 D octaves).
    """
    scales = 2.0 ** torch.arange(octaves, dtype=points.dtype, device=points.device)
    angles = scales[:, None] * points[..., None, :]
    waves = torch.stack([angles.sin(), angles.cos()], dim=-2).flatten(-3)
    return torch.cat([points, waves], dim=-1)


class Attention(nn.Module):
    """Softmax attention of several heads, without biases."""

    def __init__(self, channels: int, heads: int):
        super().__init__()
        if channels % heads:
            raise ConfigError(f'{channels} channels cannot be shared by {heads} heads; '
                              'give a multiple of the number of heads')
        self.heads = heads
        self.query = nn.Linear(channels, channels, bias=False)
        self.key = nn.Linear(channels, channels, bias=False)
        self.value = nn.Linear(channels, channels, bias=False)
        self.out = nn.Linear(channels, channels, bias=False)

    def forward(self, tokens: Tensor, context: Tensor) -> Tensor:
        """Let each token gather from the context: (B, N, C), (B, M, C) -> (B, N, C)."""
        query, key, value = (
            projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(tokens), self.key(context), self.value(context)))
        if query.device.type == 'cpu':  # which computes it no faster in half precision
            query, key, value = query.float(), key.float(), value.float()
        gathered = F.scaled_dot_product_attention(query, key, value)
        return self.out(gathered.transpose(1, 2).flatten(-2))


class EncoderLayer(nn.Module):
    """Attention and feed-forward as published: y = LN(x), then y + FFN(LN(y + Attention(y))).

    Not the usual residual: what is carried on is the normalised input, and the attention reaches
    the output only through the feed-forward network.
    """

    def __init__(self, channels: int, heads: int = 8, *, cross: bool = False):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.context_norm = nn.LayerNorm(channels) if cross else None
        self.attention = Attention(channels, heads)
        self.feedforward_norm = nn.LayerNorm(channels)
        self.feedforward = nn.Sequential(
            nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, channels))

    def forward(self, tokens: Tensor, context: Tensor | None = None) -> Tensor:
        """Attend to the context (a `cross` layer), else to the tokens themselves.

        tokens: (B, N, C)
        context: (B, M, C), given exactly if the layer is a `cross` layer
        Returns (B, N, C).
        """
        if (context is None) != (self.context_norm is None):
            raise ConfigError('a cross attention layer needs a context, and only such a layer '
                              'takes one; build it with cross=True')
        tokens = self.norm(tokens)
        context = tokens if context is None else self.context_norm(context)
        attended = tokens + self.attention(tokens, context)
        return tokens + self.feedforward(self.feedforward_norm(attended))
