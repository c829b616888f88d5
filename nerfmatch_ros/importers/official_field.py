"""The Mip-NeRF of a published checkpoint as our field."""

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.importers.official_checkpoint import OfficialCheckpoint
from nerfmatch_ros.radiance_field.mip_field import MipField, MipFieldConfig

_PARTS = {
    'pts_linears.': 'encoder.', 'alpha_linear.': 'density_head.', 'feature_linear.': 'bottleneck.',
    'views_linears.0.': 'view_layer.', 'rgb_linear.': 'colour_head.'}
_NETWORKS = {'model.nerf_coarse.': 'coarse.', 'model.nerf_fine.': 'fine.'}
_APPEARANCE = 'model.embedding_a.weight'
_CONSTANTS = ('model.xyz_encoder.scales', 'model.dirs_encoder.scales')


def official_field(checkpoint: OfficialCheckpoint, *, random_rendering: bool = True) -> MipField:
    """Make the field of a NeRF checkpoint, ready to render as the published code does.

    random_rendering: sample the rays of a view at random as published, else evenly.
    """
    config = _config(checkpoint, random_rendering)
    weights = checkpoint.weights
    field = MipField(config, images=len(weights[_APPEARANCE]) if _APPEARANCE in weights else 1)
    renamed = {_renamed(name, checkpoint): value for name, value in weights.items()
               if name not in _CONSTANTS}
    own = field.state_dict()
    missing, unknown = sorted(own.keys() - renamed.keys()), sorted(renamed.keys() - own.keys())
    wrong = [name for name in own.keys() & renamed.keys()
             if own[name].shape != renamed[name].shape]
    if missing or unknown or wrong:
        raise DataError(
            f'{checkpoint.path} does not hold the networks that its hyper-parameters describe '
            f'(missing {missing[:3]}, unknown {unknown[:3]}, of another size {wrong[:3]})')
    field.load_state_dict(renamed)
    return field.eval().requires_grad_(False)


def _config(checkpoint: OfficialCheckpoint, random_rendering: bool) -> MipFieldConfig:
    """Read the sizes; DataError for a variant that the published maps do not use."""
    if not any(name.startswith('model.nerf_fine.') for name in checkpoint.weights):
        raise DataError(f'{checkpoint.path} holds no NeRF (model.nerf_fine...); is it that of the '
                        'matcher?')
    require, option = checkpoint.require, checkpoint.option
    require('embedding', 'type', among=('mip',))
    require('data', 'ray_type', among=('mip',))
    require('render', 'use_disp', among=(False,))
    for network in ('coarse_nerf', 'fine_nerf'):
        require(network, 'skips', among=([4],))
        require(network, 'use_viewdirs', among=(True,))
        require(network, 'out_3d_pnt', among=(False,))
        require(network, 'out_add_ch', among=(0,))
    fine = {'width': ('hid_dim', 256), 'depth': ('layer_num', 8), 'fine_samples': ('num_pts', 128)}
    sizes = {ours: option('fine_nerf', name, default=default)
             for ours, (name, default) in fine.items()}
    appearance = checkpoint.weights.get(_APPEARANCE)
    return MipFieldConfig(
        **sizes, coarse_samples=option('coarse_nerf', 'num_pts', default=128),
        position_octaves=option('embedding', 'xyz_num_freqs', default=15),
        direction_octaves=option('embedding', 'dirs_num_freqs', default=4),
        appearance_channels=0 if appearance is None else appearance.shape[1],
        density_noise=option('render', 'noise_std', default=1.0),
        white_background=bool(option('render', 'white_bg', default=False)),
        official=True, random_rendering=random_rendering)


def _renamed(name: str, checkpoint: OfficialCheckpoint) -> str:
    if name == _APPEARANCE:
        return 'appearance.weight'
    for network, ours in _NETWORKS.items():
        if name.startswith(network):
            rest = name[len(network):]
            for part, our_part in _PARTS.items():
                if rest.startswith(part):
                    return ours + our_part + rest[len(part):]
    raise DataError(f'{checkpoint.path} holds {name}, which a published NeRF does not have; '
                    'is it a checkpoint of the matcher?')
