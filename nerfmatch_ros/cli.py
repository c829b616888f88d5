"""
The command line: `nerfmatch build | frames | merge | train-matcher | train-scene-geometry |
surface-cache | localize | evaluate | bench | import | inspect | render | bag | replay | doctor |
demo`.

Each verb is one function that chooses the device, reads the inputs and hands on to the module that
does the work. Those modules import torch and are imported only when the verb runs.
"""

from __future__ import annotations

from collections.abc import Sequence
import json
import logging
from pathlib import Path
import sys
from typing import Annotated, Literal

from nerfmatch_ros.bench_verbs import (
    bench,
    bench_localizers,
    bench_refine,
    bench_registration,
    bench_scene_geometry,
)
from nerfmatch_ros.build_verbs import build, frames
from nerfmatch_ros.errors import ConfigError, NerfmatchError
from nerfmatch_ros.files import NO_SPACE
from nerfmatch_ros.import_verbs import import_verb
from nerfmatch_ros.map_life_verbs import merge
from nerfmatch_ros.train_verbs import train_matcher, train_scene_geometry
from nerfmatch_ros.verb_options import (
    Annotations,
    Device,
    Images,
    load_map_localizer,
    LocalizerName,
    MapFolder,
    named_split,
    Precision,
    print_json,
    print_table,
    Refine,
    Split,
)
import tyro
from tyro.conf import arg, Positional


def surface_cache(
    *,
    map: MapFolder,
    points: Annotated[int, arg(help='at most')] = 262144,
    images: Annotated[Path | None, arg(
        help='posed photographs to look from, for a map that keeps few reference views; else '
             'those of the map')] = None,
    split: Split = 'train',
    device: Device = 'auto',
) -> None:
    """Give a finished map a surface cache: what any camera sees of it, looked up, not rendered."""
    from nerfmatch_ros.config import choose_device
    from nerfmatch_ros.mapping.build_surface_cache import surface_cache_of, SurfaceCacheOptions
    from nerfmatch_ros.mapping.progress_bars import ProgressBars
    from nerfmatch_ros.memory import keep_freed_memory
    from nerfmatch_ros.scene_map import SceneMap, store_surface_cache
    options = SurfaceCacheOptions(points=points)
    posed = None
    if images is not None:
        from nerfmatch_ros.data.reader import read_posed_images
        posed = read_posed_images(images, named_split(split))
    keep_freed_memory()
    scene_map = SceneMap.load(map)
    with ProgressBars(shown=True) as bars:
        cache = surface_cache_of(scene_map.to(choose_device(device)), options, posed,
                                 bars.bar('surface cache'))
    store_surface_cache(map, cache, scene_map.sha256)
    print_table(str(map), {
        'surface_cache_points': len(cache), 'voxel_m': cache.voxel,
        'bytes': sum(value.nbytes for value in cache.to_tensors().values())})


def localize(
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar='IMAGE...', help='photographs')],
    *,
    map: MapFolder,
    camera: Annotated[Path | None, arg(
        help='YAML file with model, width, height, fx, fy, cx, cy, distortion; else the camera '
             'that a transforms.json has for the photograph, else the one of the map')] = None,
    track: Annotated[bool, arg(
        help='the photographs follow one another: look first from the pose of the one before, as '
             'a node does, and refine none unless --refine is given')] = False,
    refine: Refine = None,
    localizer: LocalizerName = 'map',
    precision: Precision = 'map',
    device: Device = 'auto',
) -> None:
    """Print where photographs were taken, one line of JSON each."""
    from nerfmatch_ros.data.photograph import read_camera
    from nerfmatch_ros.localization.localize_files import localize_files
    if not images:
        raise ConfigError('no photograph is named; give at least one file')
    given = None if camera is None else read_camera(camera)
    refine = refine or ('none' if track else None)
    made = load_map_localizer(map, device, refine, precision, localizer)
    for record in localize_files(made, images, given, track=track):
        print(json.dumps(record, allow_nan=False), flush=True)


def evaluate(
    *,
    map: MapFolder,
    images: Images,
    output: Annotated[Path, arg(help='folder for report.json, poses.tum, errors.csv, pictures')],
    split: Split = 'test',
    annotations: Annotations = None,
    align: Annotated[Literal['none', 'rigid', 'similarity'], arg(
        help='where the true poses are in another frame than the map: bring them together first, '
             "by the photographs of the folder that the map was built of, else by the queries'")
    ] = 'none',
    refine: Refine = None,
    localizer: LocalizerName = 'map',
    precision: Precision = 'map',
    device: Device = 'auto',
) -> None:
    """Localize photographs whose poses are known and report the errors."""
    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.evaluation.evaluate import evaluate as evaluate_map
    from nerfmatch_ros.evaluation.paper_table import known_scene, print_paper_row
    queries = read_posed_images(images, named_split(split), annotations=annotations)
    known = () if align == 'none' else read_posed_images(images, annotations=annotations)
    made = load_map_localizer(map, device, refine, precision, localizer)
    report = evaluate_map(made, queries, output, scene=known_scene(annotations, images),
                          align=align, known=known)
    paper = report.pop('paper', None)
    print_table('evaluation', report)
    if paper is not None:
        print_paper_row(paper)


def inspect(
    map: Annotated[Positional[Path], arg(metavar='MAP', help='folder of the map')],
    *,
    json: Annotated[bool, arg(help='print JSON instead of a table')] = False,
) -> None:
    """Check a map and show what it holds."""
    from nerfmatch_ros.evaluation.evaluate import json_ready
    from nerfmatch_ros.scene_map import SceneMap
    summary = json_ready(SceneMap.load(map).summary())
    if json:
        print_json(summary)
    else:
        print_table(str(map), summary)


def render(
    *,
    map: MapFolder,
    output: Annotated[
        Path, arg(help='folder for 000000.png, 000001.png, ...')] = Path('out/views'),
    pose: Annotated[str | None, arg(
        metavar="'X Y Z QX QY QZ QW'", help='camera centre in metres and quaternion')] = None,
    trajectory: Annotated[Path | None, arg(help='TUM file, one pose a line')] = None,
    camera: Annotated[Path | None, arg(help='YAML file; else the camera of the map')] = None,
    device: Device = 'auto',
) -> None:
    """Write pictures of the map as cameras at given poses would see it."""
    from nerfmatch_ros.data.photograph import read_camera
    from nerfmatch_ros.data.tum import parse_pose, read_tum
    from nerfmatch_ros.localization.render_views import default_camera, render_views
    if (pose is None) == (trajectory is None):
        raise ConfigError('give either --pose or --trajectory')
    if trajectory is not None:
        poses = [pose_of_line for _, pose_of_line in read_tum(trajectory)]
    else:
        poses = [parse_pose(pose)]
    given = None if camera is None else read_camera(camera)
    localizer = load_map_localizer(map, device)
    view = given or default_camera(localizer.scene_map.cameras)
    for path in render_views(localizer, view, poses, output):
        print(path)


def demo(
    *,
    queries: Annotated[int, arg(help='number of images of the drive')] = 40,
    output: Annotated[Path, arg(help='folder for the report and the pictures')] = Path('out/demo'),
    ros: Annotated[Literal['auto', 'yes', 'no'], arg(
        help='through the ROS node; auto: where rclpy can be imported')] = 'auto',
    map: Annotated[Path | None, arg(help='folder of the map; else the one shipped')] = None,
) -> int:
    """Localize a drive through a synthetic room with the map that comes with the package."""
    from nerfmatch_ros.demo import run_demo
    return run_demo(queries=queries, output=output, ros=ros, map_folder=map)


def bag(
    *,
    images: Images,
    output: Annotated[Path, arg(help='the bag, a folder that does not exist yet')],
    split: Split = 'test',
    rate: Annotated[float, arg(help='images per second, in the order of their names')] = 10.0,
    odometry: Annotated[float, arg(
        help='error of the odometry: metres per metre, radians per metre or radian; '
             '0 is perfect')] = 0.01,
    seed: Annotated[int, arg(help='of the odometry: its drift and where it begins')] = 0,
) -> None:
    """Write posed photographs as the ROS 2 bag of a robot that drove past them."""
    from dataclasses import asdict

    from nerfmatch_ros.data.reader import read_posed_images
    from nerfmatch_ros.ros.bag_drive import DriveOptions, write_drive
    options = DriveOptions(rate=rate, odometry=odometry, seed=seed)
    summary = write_drive(read_posed_images(images, named_split(split)), output, options)
    print_table(str(output), asdict(summary))


def replay(
    *,
    bag: Annotated[Path, arg(
        help='ROS 2 bag with images, camera_info and, for map_to_odom, odometry on /tf; with '
             'poses on /ground_truth/pose it is scored')],
    map: MapFolder,
    output: Annotated[Path, arg(help='folder for report.json, frames.csv, poses.tum, ...')],
    every_frame: Annotated[bool, arg(
        help='every image in its order through the core alone: the same result on any machine')
    ] = False,
    rate: Annotated[float, arg(help='play the bag that many times faster')] = 1.0,
    no_refiner: Annotated[bool, arg(help='the localizer alone')] = False,
    tf_mode: Annotated[Literal['map_to_odom', 'map_to_base', 'map_to_camera', 'none'], arg(
        help='parameter tf_mode of the nodes')] = 'map_to_odom',
    image_topic: Annotated[str, arg(help='where the bag has images on several topics')] = '',
    base_frame: Annotated[str, arg(help='body of the robot')] = 'base_link',
    odom_frame: Annotated[str, arg(help='frame of the odometry')] = 'odom',
    localizer: LocalizerName = 'map',
    device: Device = 'auto',
) -> None:
    """Play a bag to the localizer and the refiner and score the poses that come out."""
    from nerfmatch_ros.ros import replay as replay_of_bags
    options = replay_of_bags.ReplayOptions(
        every_frame=every_frame, rate=rate, refiner=not no_refiner, tf_mode=tf_mode,
        image_topic=image_topic, base_frame=base_frame, odom_frame=odom_frame, device=device,
        localizer=localizer)
    report = replay_of_bags.replay(bag, map, output, options)
    from nerfmatch_ros.ros.replay_result import print_replay
    print_replay(report, output)


def doctor(
    *,
    namespace: Annotated[str, arg(help='of the localizer')] = '',
    image: Annotated[str, arg(metavar='TOPIC', help='else that of the localizer')] = '',
    camera_info: Annotated[str, arg(
        metavar='TOPIC', help='else camera_info beside the image, or that of the localizer')] = '',
    seconds: Annotated[float, arg(help='how long to listen at most')] = 3.0,
    base: Annotated[str, arg(
        metavar='FRAME', help="of the robot; '' with tf_mode map_to_camera")] = 'base_link',
    odom: Annotated[str, arg(
        metavar='FRAME', help="of the odometry; '' with tf_mode map_to_base")] = 'odom',
    camera: Annotated[str, arg(metavar='FRAME', help='else that of the images')] = '',
    json: Annotated[bool, arg(help='print JSON instead of text')] = False,
) -> int:
    """Say which inputs of the ROS node are there, and what is wrong with the others."""
    from dataclasses import asdict
    try:
        from nerfmatch_ros.ros.doctor import examine
    except ImportError as error:
        raise ConfigError(f'{error}; source a ROS 2 installation, or install the extra '
                          'ros-wheels') from error
    from nerfmatch_ros.ros.doctor_findings import exit_code, report_lines
    from nerfmatch_ros.ros.doctor_inputs import DoctorOptions
    findings = examine(DoctorOptions(
        namespace=namespace, image=image, camera_info=camera_info, seconds=seconds, base=base,
        odom=odom, camera=camera))
    if json:
        print_json({'findings': list(map(asdict, findings))})
    else:
        print('\n'.join(report_lines(findings)))
    return exit_code(findings)


VERBS = {
    'build': build, 'frames': frames, 'merge': merge, 'train-matcher': train_matcher,
    'train-scene-geometry': train_scene_geometry,
    'surface-cache': surface_cache, 'localize': localize, 'evaluate': evaluate, 'bench': bench,
    'bench refine': bench_refine, 'bench registration': bench_registration,
    'bench scene-geometry': bench_scene_geometry, 'bench localizers': bench_localizers,
    'import': import_verb, 'inspect': inspect, 'render': render, 'bag': bag, 'replay': replay,
    'doctor': doctor, 'demo': demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run one verb and give the exit code.

    0: done; 1: the demo missed its accuracy, the doctor missed an input; 2: an error the user can
    mend.
    """
    logger = logging.getLogger('nerfmatch_ros')
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler())  # to stderr: stdout is for results
        logger.setLevel(logging.INFO)
    try:
        status = tyro.extras.subcommand_cli_from_dict(
            VERBS, prog='nerfmatch', args=_verb_first(arguments),
            description='Camera localization in a NeRF map.',
            config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone))
    except NerfmatchError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        if error.errno not in NO_SPACE:
            raise
        print(f'error: no space is left on the disk, at {error.filename or "a file"}; finished '
              'files and older maps are as they were. Free some and repeat the command',
              file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted', file=sys.stderr)
        return 130
    return status or 0


def doctor_main() -> int:
    """Run the verb `doctor`, as `ros2 run nerfmatch_ros doctor`."""
    return main(['doctor', *sys.argv[1:]])


def _verb_first(arguments: Sequence[str] | None) -> list[str]:
    """Join a verb of two words, such as `bench refine`, to the one name that it has in VERBS."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verb = ' '.join(arguments[:2])
    return [verb, *arguments[2:]] if ' ' in verb and verb in VERBS else arguments


if __name__ == '__main__':
    sys.exit(main())
