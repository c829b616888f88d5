"""What the verbs of the command line have in common: options, and how results are printed."""

from __future__ import annotations

import json
from pathlib import Path
import shlex
import sys
from typing import Annotated, Literal, TYPE_CHECKING

from tyro.conf import arg

if TYPE_CHECKING:
    from nerfmatch_ros.localization.localizer import Localizer

Device = Annotated[str, arg(help='auto, cpu, cuda or cuda:N; auto takes a GPU where there is one')]
MapFolder = Annotated[Path, arg(help='folder of the map')]
Images = Annotated[Path, arg(
    help='folder with transforms.json, a COLMAP model, or a scene of Cambridge Landmarks or '
         '7-Scenes')]
Annotations = Annotated[Path | None, arg(
    metavar='FILE', help='transforms_<scene>_<split>.json of the published NeRFMatch; --images is '
    'then the folder that its file_paths are in')]
Refine = Annotated[str | None, arg(
    metavar='STEPS', help="how each pose is refined: none, steps joined by '+' such as "
    "match+photometric, or map for the map's own schedule, the default but for poses of "
    'scene_geometry')]
Precision = Annotated[
    Literal['map', 'auto', 'float32', 'bfloat16', 'float16'],
    arg(help="of the networks; map: the map's own, auto: half where the device is faster in it")]
LocalizerName = Annotated[
    Literal['map', 'nerfmatch', 'scene_geometry', 'hybrid'],
    arg(help="what finds poses; map: what the map says, "
             "nerfmatch: matching with the map, scene_geometry: one network alone, hybrid: "
             "matching from the network's pose")]
Split = Annotated[
    Literal['train', 'test', 'all'], arg(help="frames marked with this split, or 'all'")]


def command_line() -> str:
    """Give the command line as a user would type it."""
    return shlex.join(['nerfmatch', *sys.argv[1:]])


def named_split(split: str) -> str | None:
    """Give the split that a reader is asked for; None: all."""
    return None if split == 'all' else split


def load_map_localizer(
    folder: Path, device: str, refine: str | None = None, precision: str = 'map',
    localizer: str = 'map',
) -> Localizer:
    """Load a map and give the localizer of this name in it, on a device by its option."""
    from nerfmatch_ros.config import choose_device
    from nerfmatch_ros.localization.make_localizer import load_localizer
    return load_localizer(folder, localizer, device=choose_device(device), refine=refine,
                          precision=precision)


def print_json(value: dict) -> None:
    """Print plain values as JSON."""
    print(json.dumps(value, indent=2, allow_nan=False))


def print_table(title: str, values: dict) -> None:
    """Print plain values as a table, those of dictionaries in them by their path."""
    from rich.console import Console
    from rich.table import Table
    table = Table(title=title, title_justify='left')
    table.add_column('what')
    table.add_column('value', justify='right')
    for name, value in _flat(values):
        table.add_row(name, f'{value:.4g}' if isinstance(value, float) else str(value))
    Console().print(table)


def _flat(values: dict, prefix: str = ''):
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f'{prefix}{name}.')
        else:
            yield prefix + name, '-' if value is None else value
