"""The names of the published matchers' weights, translated into ours."""

import re

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.matching.matcher import MatcherConfig
from nerfmatch_ros.matching.paper_matcher import PaperMatcher
import torch
from torch import Tensor

# What a name begins with, there and here, once `model.` is off.
OFFICIAL_NAMES = (
    (r'temperature$', 'temperature'),
    (r'backbone\.(model\.)?(?=stem|stages)', 'backbone.backbone.stages.'),
    (r'pt_proj\.', 'point_resized.'),
    (r'pt_pe_proj\.', 'point_projection.'),
    (r'pt_ffeat_proj\.', 'point_fine.'),
    (r'pt_sa\.layers\.', 'self_attention.'),
    (r'coarse_former\.', 'cross_attention.0.'),
    (r'fine_sa\.layers\.0\.', 'window_attention.'),
)
_LAYER_NAMES = (
    ('attention.proj_q.', 'attention.query.'), ('attention.proj_k.', 'attention.key.'),
    ('attention.proj_v.', 'attention.value.'), ('attention.proj_out.0.', 'attention.out.'),
    ('norm1.0.', 'norm.'), ('norm1.1.', 'context_norm.'), ('norm2.', 'feedforward_norm.'),
    ('feedforward.layers.', 'feedforward.'),
)
_LAYERS = ('self_attention.', 'cross_attention.', 'window_attention.')
# `im_sa` is `pt_sa` under another name; what `fine_preprocess` computes is thrown away.
_DEAD = ('im_sa.', 'fine_preprocess.')


def our_name(official: str) -> str | None:
    """Translate the name of one weight; None for a weight that the network never uses."""
    name = official.removeprefix('model.')
    if name.startswith(_DEAD):
        return None
    for pattern, ours in OFFICIAL_NAMES:
        found = re.match(pattern, name)
        if found:
            name = ours + name[found.end():]
            break
    else:
        raise DataError(f"the checkpoint holds '{official}', which is no weight of NeRFMatch or "
                        'NeRFMatch-Mini; give a matcher of the published code')
    if name.startswith(_LAYERS):
        for theirs, ours in _LAYER_NAMES:
            name = name.replace(theirs, ours)
    return name


def official_config(weights: dict[str, Tensor], *, window: int = 5) -> MatcherConfig:
    """Tell from the weights' names which published matcher they belong to.

    window: `win_sz` of the checkpoint's options, which no weight shows.
    """
    names = {name for name in map(our_name, weights) if name is not None}
    layers = len({name.split('.')[1] for name in names if name.startswith('self_attention.')})
    encoding = weights.get('model.pt_pe_proj.weight')
    octaves = 15 if encoding is None else (encoding.shape[1] - encoding.shape[0] - 3) // 6
    return MatcherConfig(
        kind='paper', backbone='convformer_b36', fine=any(
            name.startswith('window_attention.') for name in names),
        window=window, point_feature='f3', point_encoding=encoding is not None, octaves=octaves,
        point_hidden=0, self_attention=layers, cross_attention=int(any(
            name.startswith('cross_attention.') for name in names)),
        threshold=0.0, official=True)


def official_state(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the `state_dict` of a published matcher to that of the `PaperMatcher` it makes.

    Raises DataError that names what is unknown, missing, of another shape, or not as shared as
    published.
    """
    for name, value in weights.items():
        twin = name.replace('im_sa.', 'pt_sa.')
        if twin != name and (twin not in weights or not torch.equal(value, weights[twin])):
            raise DataError(f"'{name}' and '{twin}' differ; only matchers whose image and point "
                            'attention share their weights can be imported')
    state = {our_name(name): value for name, value in weights.items()}
    state.pop(None, None)
    with torch.device('meta'):  # learns names and shapes without drawing a weight
        wanted = PaperMatcher(official_config(weights), _feature_channels(state)).state_dict()
    missing = sorted(wanted.keys() - state.keys())
    unknown = sorted(state.keys() - wanted.keys())
    if missing or unknown:
        raise DataError(f'the checkpoint is no whole published matcher: {len(missing)} weights '
                        f'are missing {missing[:3]}, {len(unknown)} are unknown {unknown[:3]}; '
                        'copy it again from its source')
    for name, value in wanted.items():
        if state[name].shape != value.shape:
            raise DataError(f'{name} has shape {tuple(state[name].shape)} in the checkpoint, not '
                            f'{tuple(value.shape)}; only the released sizes can be imported')
        if not torch.isfinite(state[name]).all():
            raise DataError(f'{name} of the checkpoint holds NaN or infinity; copy it again')
    return state


def _feature_channels(state: dict[str, Tensor]) -> int:
    """Channels of the inner features that the matcher takes."""
    resized = state.get('point_resized.weight')
    return 256 if resized is None else resized.shape[1]
