"""Weights of published matchers under our names."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.importers.official_weights import official_config, official_state, our_name
from nerfmatch_ros.matching.make_matcher import make_matcher
from nerfmatch_ros.matching.matcher import MatcherConfig
from official_parity import needs_fixtures, official_weights
import pytest
import torch

pytestmark = needs_fixtures


@pytest.mark.parametrize('kind', ['mini', 'full'])
def test_a_checkpoint_tells_its_network_and_fills_it(kind):
    weights = official_weights(kind)
    config = official_config(weights)
    assert config == MatcherConfig.published(fine=kind == 'full', official=True)
    state = official_state(weights)
    make_matcher(config, 256).load_state_dict(state)
    dead = [name for name in weights if our_name(name) is None]
    assert len(state) == len(weights) - len(dead) and bool(dead) == (kind == 'full')
    assert all(state[our_name(name)] is weights[name] for name in weights if name not in dead)


def broken(**changes):
    weights = {**official_weights('full'), **changes}
    return {name: value for name, value in weights.items() if value is not None}


@pytest.mark.parametrize('changes, word', [
    ({'model.mystery.weight': torch.zeros(1)}, 'mystery'),
    ({'model.pt_pe_proj.bias': None}, 'point_projection.bias'),
    ({'model.pt_pe_proj.bias': torch.zeros(3)}, 'shape'),
    ({'model.pt_pe_proj.bias': torch.full((256,), torch.nan)}, 'NaN'),
    ({'model.im_sa.layers.0.norm2.bias': torch.zeros(256)}, 'differ'),
    ({'model.im_sa.layers.9.norm2.bias': torch.zeros(256)}, 'differ'),
    ({'model.pt_sa.layers.0.extra.bias': torch.zeros(256)}, 'extra')])
def test_other_checkpoints_are_refused_with_the_reason(changes, word):
    with pytest.raises(DataError, match=word):
        official_state(broken(**changes))
