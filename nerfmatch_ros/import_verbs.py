"""The verbs of `nerfmatch import`: what other programs trained becomes data of this one.

Each verb is one function that hands its files on to `importers/`, which is imported when it runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from nerfmatch_ros.verb_options import Device
from tyro.conf import arg, subcommand


def import_nerfstudio(
    *,
    config: Annotated[Path, arg(help='config.yml that nerfstudio wrote beside its checkpoints')],
    output: Annotated[Path, arg(help='folder of the field, for `nerfmatch build --field`')],
    checkpoint: Annotated[Path | None, arg(
        help='step-*.ckpt; else the last one in nerfstudio_models beside config.yml')] = None,
    data: Annotated[Path | None, arg(
        help='folder of the transforms.json it learned from; else where config.yml says')] = None,
) -> None:
    """Take over a nerfacto or mip-nerf model that nerfstudio trained."""
    from nerfmatch_ros.importers.nerfstudio import import_field
    values = import_field(config, output, checkpoint, data)
    print(f'{output}: ' + ', '.join(f'{name} {value:.6g}' if isinstance(value, float)
                                    else f'{name} {value}' for name, value in values.items()))


def import_official(
    *,
    nerf: Annotated[Path, arg(metavar='CKPT', help='checkpoint of the NeRF')],
    matcher: Annotated[Path, arg(metavar='CKPT', help='checkpoint of NeRFMatch or its Mini')],
    annotations: Annotated[Path, arg(
        help='transforms_SCENE_train.json, whole: it fixes the frame of the NeRF')],
    images: Annotated[Path, arg(help='folder that its file paths are relative to')],
    output: Annotated[Path, arg(help='folder of the map; an import that was cut short goes on')],
    pairs: Annotated[Path | None, arg(
        help='pairs-query-*.txt: only the views it names are kept, and the images it lists start '
             'from theirs')] = None,
    cached_views: Annotated[Path | None, arg(
        help='folder of cached views (.npy) to take instead of rendering them')] = None,
    sampling: Annotated[Literal['random', 'even'], arg(
        help='of rays: random as published, with a fixed seed, or even for less noise')
    ] = 'random',
    reference_views: Annotated[int, arg(help='that many, evenly chosen; 0: all')] = 0,
    device: Device = 'auto',
) -> None:
    """Make a map from checkpoints of the published NeRFMatch."""
    from nerfmatch_ros.config import choose_device
    from nerfmatch_ros.importers import official
    official.import_official(
        official.OfficialFiles(nerf, matcher, annotations, images, pairs, cached_views), output,
        official.OfficialImportConfig(sampling, reference_views), device=choose_device(device))


def import_verb(
    done: Annotated[
        Annotated[Any, subcommand('nerfstudio', constructor=import_nerfstudio)]
        | Annotated[Any, subcommand('official', constructor=import_official)],
        arg(name='')],
) -> int | None:
    """Take over what another program trained."""
    return done
