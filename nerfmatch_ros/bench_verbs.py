"""The verbs that compare: `nerfmatch bench`, and `bench refine | registration | scene-geometry |
localizers`.

What does the work is imported only when a verb runs, as in `cli`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from nerfmatch_ros.verb_options import (
    Annotations,
    command_line,
    Device,
    Images,
    load_map_localizer,
    MapFolder,
    named_split,
    Precision,
    print_json,
    Split,
)
from tyro.conf import arg


def bench_refine(
    *,
    map: MapFolder,
    images: Images,
    split: Split = 'test',
    annotations: Annotations = None,
    limit: Annotated[int | None, arg(help='at most that many images, spread evenly')] = None,
    output: Annotated[Path | None, arg(
        help='folder for refinement.json, refinement.csv, refinement.png')] = None,
    refiners: Annotated[tuple[str, ...], arg(
        help="none, default, or steps joined by '+' such as match+photometric; else none, every "
             'step alone, and default')] = (),
    scale_with_extent: Annotated[bool, arg(
        help='perturb in proportion to the size of the map, for outdoors')] = False,
    markdown: Annotated[Path | None, arg(
        metavar='FILE', help='replace the section of this map in a document')] = None,
    json: Annotated[bool, arg(help='print JSON instead of a table')] = False,
    device: Device = 'auto',
) -> None:
    """Compare refiners from the same starts: how close, how often, how long."""
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.evaluation import refinement_bench
    from nerfmatch_ros.evaluation.refinement_report import print_refinement, report_refinement
    config = refinement_bench.RefinementBenchConfig(
        refiners or refinement_bench.REFINERS, scale_with_extent=scale_with_extent)
    queries = refinement_bench.evenly_chosen(
        read_posed_images(images, named_split(split), annotations=annotations), limit)
    report = report_refinement(
        load_map_localizer(map, device), queries, config, output=output, markdown=markdown,
        name=map.resolve().name)
    if json:
        print_json(report)
    else:
        print_refinement(report)


def bench(
    *,
    map: MapFolder,
    images: Images,
    split: Split = 'test',
    annotations: Annotations = None,
    limit: Annotated[int | None, arg(help='at most that many images, spread evenly')] = None,
    against: Annotated[Literal['nothing', 'straightforward'], arg(
        help="straightforward: in turns with the paper's plain pipeline in the same process")
    ] = 'nothing',
    repeat: Annotated[int, arg(help='how often each image is localized in each way')] = 3,
    track: Annotated[bool, arg(
        help='with a prior, as between the frames of a video; else in the whole map')] = False,
    output: Annotated[Path | None, arg(help='folder for bench_global.json or bench_tracked.json')
                      ] = None,
    markdown: Annotated[Path | None, arg(
        metavar='FILE', help='replace the section of this map and mode in a document')] = None,
    json: Annotated[bool, arg(help='print JSON instead of tables')] = False,
    precision: Precision = 'map',
    device: Device = 'auto',
) -> None:
    """Time every stage of localizing photographs, beside the least it could take."""
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.evaluation.bench import bench as bench_map
    from nerfmatch_ros.evaluation.bench import BenchConfig
    from nerfmatch_ros.evaluation.bench_report import check_document, print_report, write_report
    from nerfmatch_ros.evaluation.straightforward import Straightforward
    from nerfmatch_ros.scene_map import SceneMap
    name = map.resolve().name
    check_document(markdown, 'tracked' if track else 'global', name)
    queries = read_posed_images(images, named_split(split), annotations=annotations)
    localizer = load_map_localizer(map, device, precision=precision)
    plain = None
    if against == 'straightforward':
        plain = Straightforward(SceneMap.load(map).to(str(localizer.device)), localizer.config)
    report = bench_map(localizer, queries, BenchConfig(limit, repeat, track),
                       straightforward=plain)
    write_report(report, output=output, markdown=markdown, name=name, command=command_line())
    if json:
        print_json(report)
    else:
        print_report(report)


def bench_registration(
    *,
    images: Images,
    output: Annotated[Path, arg(help='folder for registration.json; what was cut short goes on')],
    split: Split = 'train',
    start: Annotated[tuple[str, ...], arg(
        metavar='KIND:M:DEG...', help='how the poses are made rough')] = (
            'noise:0.05:3', 'drift:0.01:0.5', 'noise:0.15:8'),
    registration: Annotated[tuple[str, ...], arg(
        metavar='STEPS...', help="l2g, barf, features, or several joined by '+'")] = (
            'barf', 'l2g', 'features', 'l2g+features'),
    config: Annotated[Path | None, arg(help='YAML file, see config/build_map.yaml')] = None,
    minutes: Annotated[float | None, arg(help='of each l2g or barf, at most')] = None,
    limit: Annotated[int | None, arg(help='at most that many images, the first ones')] = None,
    seed: Annotated[int, arg(help='of how the poses are made rough')] = 0,
    markdown: Annotated[Path | None, arg(
        metavar='FILE', help='replace the section of this data set in a document')] = None,
    device: Device = 'auto',
) -> None:
    """Make exact poses rough and compare what mends them."""
    from nerfmatch_ros import registration_bench
    from nerfmatch_ros.config import choose_device, load_config
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.mapping.build_config import BuildConfig
    report = registration_bench.bench_registration(
        read_posed_images(images, named_split(split))[:limit],
        [registration_bench.RoughStart.parse(text) for text in start], registration,
        load_config(BuildConfig, config).registration, output, seed=seed,
        device=choose_device(device), minutes=minutes, say=print)
    if markdown is not None:
        registration_bench.write_section(report, markdown, images.resolve().name, command_line())
    registration_bench.print_registration(report)


def bench_scene_geometry(
    *,
    images: Images,
    output: Annotated[Path, arg(help='folder of the networks and of scene_geometry.json; what was '
                                'cut short goes on')],
    variants: Annotated[tuple[str, ...], arg(
        metavar='NAME...', help="'pose loss', '+ consistency', '+ reprojection', 'without "
        "weights', or a backbone: compact, or a name of timm")] = (
            'pose loss', '+ consistency', '+ reprojection', 'without weights'),
    config: Annotated[Path | None, arg(help='YAML file, see config/build_map.yaml')] = None,
    minutes: Annotated[float | None, arg(help='of each variant, at most')] = None,
    steps: Annotated[int | None, arg(help='of each variant, at most')] = None,
    positions: Annotated[float | None, arg(
        metavar='SHARE', help='instead of variants: learn the poses of the first such share of '
        'the photographs, then the positions alone of the others, and measure on these')] = None,
    markdown: Annotated[Path | None, arg(
        metavar='FILE', help='replace the section of this data set in a document')] = None,
    device: Device = 'auto',
) -> None:
    """Train scene geometry in several ways on 'train' images, measure it on 'test' ones."""
    from dataclasses import replace

    from nerfmatch_ros import scene_geometry_bench
    from nerfmatch_ros.config import choose_device, load_config
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.mapping.build_config import BuildConfig
    training = load_config(BuildConfig, config).scene_geometry.training
    if steps is not None:
        training = replace(training, steps=steps)
    options = {'device': choose_device(device), 'minutes': minutes, 'say': print}
    name = images.resolve().name
    if positions is None:
        report = scene_geometry_bench.bench_scene_geometry(
            read_posed_images(images, 'train'), read_posed_images(images, 'test'), variants,
            training, output, **options)
    else:
        name += ', positions alone'
        report = scene_geometry_bench.bench_positions(*scene_geometry_bench.parted(
            read_posed_images(images, None), positions), training, output, **options)
    if markdown is not None:
        scene_geometry_bench.write_section(report, markdown, name, command_line())
    scene_geometry_bench.print_scene_geometry(report)


def bench_localizers(
    *,
    map: MapFolder,
    images: Images,
    split: Split = 'test',
    limit: Annotated[int | None, arg(help='at most that many images, spread evenly')] = None,
    elsewhere: Annotated[tuple[Path, ...], arg(
        metavar='DIR...', help='photographs of other places, where every pose is wrong')] = (),
    output: Annotated[Path | None, arg(help='folder for localizers.json')] = None,
    markdown: Annotated[Path | None, arg(
        metavar='FILE', help='replace the section of this map in a document')] = None,
    device: Device = 'auto',
) -> None:
    """Compare the localizers of a map from nothing: how close, how often, how long, how sure."""
    from nerfmatch_ros.config import choose_device
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.evaluation import localizer_bench
    from nerfmatch_ros.evaluation.refinement_bench import evenly_chosen
    from nerfmatch_ros.localization.localizer import load_map
    queries = evenly_chosen(read_posed_images(images, named_split(split)), limit)
    foreign = {name: evenly_chosen(read_posed_images(folder), limit)
               for name, folder in localizer_bench.told_apart(elsewhere).items()}
    report = localizer_bench.bench_localizers(
        load_map(map, choose_device(device)), queries, foreign, say=print)
    localizer_bench.write_report(report, output=output, markdown=markdown,
                                 name=map.resolve().name, command=command_line())
    localizer_bench.print_localizers(report)
