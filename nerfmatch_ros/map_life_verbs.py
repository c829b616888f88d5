"""The verb `nerfmatch merge`: two maps that overlap become one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.verb_options import Device
from tyro.conf import arg, Positional


def merge(
    first: Annotated[Positional[Path], arg(metavar='A', help='map whose frame stays')],
    second: Annotated[Positional[Path], arg(
        metavar='B', help='map that overlaps with it; it counts where the two disagree')],
    *,
    output: Annotated[Path, arg(help='folder of the whole; a merge that was cut short goes on')],
    config: Annotated[Path | None, arg(help='YAML file, see config/update_map.yaml')] = None,
    minutes: Annotated[float | None, arg(help='time to train, instead of the configured')] = None,
    device: Device = 'auto',
) -> None:
    """Join two maps into one, without the photographs that they were built of."""
    from nerfmatch_ros.config import choose_device, load_config
    from nerfmatch_ros.mapping.merge_maps import merge_maps, UpdateConfig
    if minutes is not None and not minutes > 0:
        raise ConfigError(f'--minutes {minutes} leaves no time; give a positive number')
    merge_maps(first, second, output, None if config is None else load_config(
        UpdateConfig, config), minutes=minutes, device=choose_device(device))
