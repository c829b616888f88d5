"""The verbs that train networks of maps: `nerfmatch train-matcher | train-scene-geometry`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.verb_options import Device
from tyro.conf import arg


def train_matcher(
    *,
    maps: Annotated[tuple[Path, ...], arg(metavar='MAP...', help='folders of maps')],
    images: Annotated[tuple[Path, ...], arg(
        metavar='DIR...', help='of each map, the folder of photographs it was built of')],
    output: Annotated[Path, arg(
        help='folder of the new maps, named like the old; a training that was cut short goes on')],
    annotations: Annotated[tuple[Path, ...], arg(
        metavar='FILE...', help='of each map, its annotations of the published NeRFMatch')] = (),
    config: Annotated[Path | None, arg(help='YAML file, see config/build_map.yaml')] = None,
    minutes: Annotated[float | None, arg(help='time to train, instead of the configured')] = None,
    split: Annotated[Literal['train', 'test', 'all'], arg(help='of the photographs')] = 'train',
    device: Device = 'auto',
) -> None:
    """Train one matcher on several maps and put each together anew with it."""
    from nerfmatch_ros.config import choose_device, load_config
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.mapping.build_config import BuildConfig
    from nerfmatch_ros.mapping.shared_matcher import share_matcher
    if minutes is not None and not minutes > 0:
        raise ConfigError(f'--minutes {minutes} leaves no time; give a positive number')
    if len(images) != len(maps):
        raise ConfigError(f'{len(maps)} maps and {len(images)} folders of photographs are given; '
                          'give each map its own, in the same order')
    if annotations and len(annotations) != len(maps):
        raise ConfigError(f'{len(maps)} maps and {len(annotations)} annotations are given; '
                          'give each map its own, in the same order, or none')
    chosen = None if split == 'all' else split
    photographs = [
        read_posed_images(folder, chosen, annotations=file)
        for folder, file in zip(images, annotations or [None] * len(images))]
    for folder in share_matcher(
            maps, photographs, output, load_config(BuildConfig, config),
            device=choose_device(device), minutes=minutes):
        print(folder)


def train_scene_geometry(
    *,
    map: Annotated[Path, arg(help='folder of the map; its scene geometry is replaced')],
    images: Annotated[Path, arg(help='photographs in the frame of the map')],
    labels: Annotated[Literal['pose', 'position'], arg(
        help='position: orientations are unknown and not looked at, whatever the data set says')
    ] = 'pose',
    anchors: Annotated[Path | None, arg(
        metavar='DIR', help='posed photographs learned beside those, such as those of the build; '
        'without them what the new ones do not show may be forgotten')] = None,
    go_on: Annotated[bool, arg(
        help='from the network that the map has, as --labels position always does')] = False,
    rendered: Annotated[int, arg(
        help='views of the field from new places that are learned as well')] = 0,
    config: Annotated[Path | None, arg(help='YAML file, see config/build_map.yaml')] = None,
    minutes: Annotated[float | None, arg(help='time to train, else as many as a build gives')
                       ] = None,
    steps: Annotated[int | None, arg(help='at most, instead of the configured')] = None,
    split: Annotated[Literal['train', 'test', 'all'], arg(help='of the photographs')] = 'train',
    device: Device = 'auto',
) -> None:
    """Train the scene geometry of a map anew, or go on with new photographs."""
    from dataclasses import replace

    from nerfmatch_ros.config import choose_device, load_config
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.mapping.build_config import BuildConfig
    from nerfmatch_ros.mapping.map_scene_geometry import train_for_map
    from nerfmatch_ros.mapping.progress_bars import ProgressBars
    if minutes is not None and not minutes > 0:
        raise ConfigError(f'--minutes {minutes} leaves no time; give a positive number')
    build = load_config(BuildConfig, config)
    stage = build.scene_geometry
    training = replace(stage.training, labels=labels)
    if steps is not None:
        training = replace(training, steps=steps)
    if minutes is None and build.minutes is not None and steps is None:
        minutes = stage.minutes_share * build.minutes
    chosen = None if split == 'all' else split
    given = read_posed_images(images, chosen, positions=labels == 'position')
    with ProgressBars(shown=True) as bars:
        figures = train_for_map(
            map, given, training, calibration=stage.calibration,
            anchors=[] if anchors is None else read_posed_images(anchors, chosen), go_on=go_on,
            rendered=rendered, minutes=minutes, device=choose_device(device),
            report=bars.bar('scene geometry'), report_measuring=bars.bar('trust in geometry'))
    print(', '.join(f'{name} {value}' for name, value in figures.items()))
