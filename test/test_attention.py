"""Attention layers and token encodings: properties, and the published code's numbers."""

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.matching.attention import (
    Attention,
    EncoderLayer,
    fourier_encoding,
    sine_position_encoding,
)
from official_parity import Fixture, needs_fixtures, official_weights, part
import pytest
import torch


def tokens(batch, count, channels, seed=0):
    return torch.randn(batch, count, channels, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def layer():
    torch.manual_seed(1)
    return EncoderLayer(16, heads=4).eval()


@pytest.fixture
def cross_layer():
    torch.manual_seed(2)
    return EncoderLayer(16, heads=4, cross=True).eval()


def test_attention_equals_the_textbook_formula():
    torch.manual_seed(3)
    attention = Attention(12, heads=3)
    x, context = tokens(2, 5, 12), tokens(2, 7, 12, seed=1)
    heads = []
    for h in range(3):
        rows = slice(4 * h, 4 * h + 4)
        q, k, v = (y @ w.weight[rows].T for y, w in (
            (x, attention.query), (context, attention.key), (context, attention.value)))
        heads.append(torch.softmax(q @ k.transpose(1, 2) / 2, dim=-1) @ v)
    torch.testing.assert_close(
        attention(x, context), torch.cat(heads, dim=-1) @ attention.out.weight.T)


def test_self_attention_moves_with_a_permutation_of_its_tokens(layer):
    x, order = tokens(2, 9, 16), torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order])


def test_cross_attention_ignores_the_order_of_its_context(cross_layer):
    x, context = tokens(2, 5, 16), tokens(2, 9, 16, seed=1)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(cross_layer(x, context[:, order]), cross_layer(x, context))
    torch.testing.assert_close(cross_layer(x.flip(1), context), cross_layer(x, context).flip(1))
    assert not torch.allclose(cross_layer(x, context[:, :4]), cross_layer(x, context))


def test_a_batch_is_its_images_one_by_one(layer):
    x = tokens(3, 6, 16)
    torch.testing.assert_close(layer(x), torch.cat([layer(one[None]) for one in x]))


def test_the_residual_is_the_normalised_input(layer):
    with torch.no_grad():
        layer.feedforward[2].weight.zero_()
        layer.feedforward[2].bias.zero_()
    x = tokens(1, 6, 16)
    torch.testing.assert_close(layer(x), layer.norm(x))


def test_wrong_use_is_refused(layer, cross_layer):
    x = tokens(1, 4, 16)
    with pytest.raises(ConfigError, match='cross'):
        cross_layer(x)
    with pytest.raises(ConfigError, match='cross'):
        layer(x, x)
    with pytest.raises(ConfigError, match='10 channels'):
        Attention(10, heads=4)
    with pytest.raises(ConfigError, match='multiple of 4'):
        sine_position_encoding(6, 2, 2)


def test_position_encoding_starts_at_one_and_separates_x_from_y():
    table = sine_position_encoding(8, 3, 5)
    assert table.shape == (8, 3, 5)
    torch.testing.assert_close(table[0, :, 0], torch.tensor(1.0).sin().expand(3))
    torch.testing.assert_close(table[3, 2], torch.tensor(3.0).cos().expand(5))
    x_parts, y_parts = table[[0, 1, 4, 5]], table[[2, 3, 6, 7]]
    assert (x_parts == x_parts[:, :1]).all() and (y_parts == y_parts[:, :, :1]).all()


def test_fourier_encoding_alternates_sine_and_cosine():
    x = torch.tensor([[0.2, -1.3, 2.0]])
    expected = torch.cat([x, x.sin(), x.cos(), (2 * x).sin(), (2 * x).cos()], dim=-1)
    torch.testing.assert_close(fourier_encoding(x, 2), expected)
    assert fourier_encoding(x).shape == (1, 93)


LAYER_NAMES = {'norm1.0.': 'norm.', 'norm1.1.': 'context_norm.', 'norm2.': 'feedforward_norm.',
               'attention.proj_q.': 'attention.query.', 'attention.proj_k.': 'attention.key.',
               'attention.proj_v.': 'attention.value.', 'attention.proj_out.0.': 'attention.out.',
               'feedforward.layers.': 'feedforward.'}


def published_layer(prefix, channels=256, cross=False):
    layer = EncoderLayer(channels, heads=8, cross=cross)
    layer.load_state_dict(part(official_weights('full'), f'model.{prefix}.', LAYER_NAMES))
    return layer.eval()


def close(found, expected, atol=1e-4):
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=atol)


@needs_fixtures
def test_position_encoding_equals_the_published_table():
    close(sine_position_encoding(256, 12, 12), Fixture('full_small')['im_pe_table'], atol=1e-5)


@needs_fixtures
@torch.no_grad()
def test_attention_layers_equal_the_published_ones():
    fixture = Fixture('full_small')
    image = (fixture['backbone_c'] + fixture['im_pe_table']).flatten(2).transpose(1, 2)
    points = fixture['pt_feat']
    for index in range(3):
        layer = published_layer(f'im_sa.layers.{index}')
        image, points = layer(image), layer(points)
        close(image, fixture[f'im_sa{index}'])
        close(points, fixture[f'pt_sa{index}'])


@needs_fixtures
@torch.no_grad()
def test_encoded_points_and_cross_attention_equal_the_published_ones():
    fixture, weights = Fixture('full_small'), official_weights('full')
    encoded = fourier_encoding(fixture['pt3d'])
    close(encoded[:, :16], fixture['pt_fourier_first16'])
    points = torch.nn.functional.linear(
        torch.cat([fixture['pt_sa2'], encoded], dim=-1),
        weights['model.pt_pe_proj.weight'], weights['model.pt_pe_proj.bias'])
    close(points, fixture['pt_cat_pe'])
    layer = published_layer('coarse_former', cross=True)
    image = layer(fixture['im_sa2'], points)
    close(image, fixture['im_ca'])
    close(layer(points, image), fixture['pt_ca'])


@needs_fixtures
@torch.no_grad()
def test_fine_attention_equals_the_published_one():
    fixture = Fixture('full_small')
    layer = published_layer('fine_sa.layers.0', channels=128)
    close(layer(fixture['win_in']), fixture['win_out'])
