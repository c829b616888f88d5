"""The verb `nerfmatch build`: what a robot or a photographer recorded becomes a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from nerfmatch_ros.errors import ConfigError
from tyro.conf import arg


def build(
    *,
    images: Annotated[Path, arg(
        help='folder with transforms.json, a COLMAP model, or a scene of Cambridge Landmarks or '
             '7-Scenes')],
    output: Annotated[Path | None, arg(
        help='folder of the map; a build that was cut short goes on. With --update it may be left '
             'out: the new map takes the place of the old one')] = None,
    update: Annotated[Path | None, arg(
        metavar='MAP', help='map of this place that learns the new photographs; what they do not '
        'show stays as it is, and so does the frame')] = None,
    config: Annotated[Path | None, arg(
        help='YAML file, see config/build_map.yaml, or config/update_map.yaml with --update')
    ] = None,
    minutes: Annotated[float | None, arg(help='time to train, instead of the configured')] = None,
    split: Annotated[
        Literal['train', 'test', 'all'], arg(help="frames marked with this split, or 'all'")
    ] = 'train',
    field: Annotated[Path | None, arg(
        help='folder made by nerfmatch import; the map gets this field and trains none')] = None,
    annotations: Annotated[Path | None, arg(
        metavar='FILE', help='transforms_<scene>_<split>.json of the published NeRFMatch; '
        '--images is then the folder that its file_paths are in')] = None,
    masks: Annotated[Path | None, arg(
        metavar='DIR', help="folder with 'masks_bg' (sky; learned as white by fields with "
        "white background, else ignored) and 'masks_trnz_cars' (what moves); "
        "white = masked")] = None,
    device: Annotated[str, arg(
        help='auto, cpu, cuda or cuda:N; auto takes a GPU where there is one')] = 'auto',
) -> None:
    """Make a map from posed photographs, or teach an old map new ones."""
    from nerfmatch_ros.config import choose_device, from_dict, load_yaml
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.mapping.build_map import build_map, BuildConfig
    if minutes is not None and not minutes > 0:
        raise ConfigError(f'--minutes {minutes} leaves no time; give a positive number')
    values = {} if config is None else load_yaml(config)
    posed = read_posed_images(images, None if split == 'all' else split, annotations=annotations,
                              masks=masks)
    if update is not None:
        from nerfmatch_ros.mapping.update_map import update_map, UpdateConfig
        if field is not None:
            raise ConfigError('--update trains the field of the map; leave --field out')
        update_map(update, posed, output, from_dict(UpdateConfig, values or {}, str(config)),
                   minutes=minutes, device=choose_device(device))
        return
    if output is None:
        raise ConfigError('no --output is given; name the folder of the new map')
    given = {}
    if field is not None:
        from nerfmatch_ros.field_file import FieldFile
        given = {'given': FieldFile.load(field)}
    build_map(
        posed, output, from_dict(BuildConfig, values or {}, str(config)),
        device=choose_device(device), minutes=minutes, **given)
