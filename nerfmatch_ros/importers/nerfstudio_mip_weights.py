"""The weights of nerfstudio's mip-nerf under the names of `NerfstudioMipField`."""

from nerfmatch_ros.importers.nerfstudio_run import NerfstudioRun
from nerfmatch_ros.radiance_field.nerfstudio_mip_field import NerfstudioMipConfig
from torch import Tensor


def nerfstudio_mip_state(run: NerfstudioRun, config: NerfstudioMipConfig) -> dict[str, Tensor]:
    """Give the state of `NerfstudioMipField(config)`; DataError for what is missing."""
    names = {f'encoder.{index}': f'mlp_base.layers.{index}' for index in range(config.depth)}
    names |= {'density_head': 'field_output_density.net', 'colour_head.0': 'mlp_head.layers.0',
              'colour_head.1': 'mlp_head.layers.1', 'colour_head.2': 'field_heads.0.net'}
    return {f'{ours}.{kind}': run.weight(f'field.{theirs}.{kind}').float()
            for ours, theirs in names.items() for kind in ('weight', 'bias')}
