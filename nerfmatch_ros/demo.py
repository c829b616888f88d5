"""
A drive through the synthetic room, localized with the map of the package.

With ROS the drive is a bag: images, camera_info, odometry that drifts. It is played to the real
localizer and refiner, each a process of its own, and what they publish is scored. Without ROS the
localizer is called image by image. The drive is rendered in closed form; no image of it was used
for the map.
"""

from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
import math
from pathlib import Path
import shutil
import time

from nerfmatch_ros.config import choose_device
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.data.tum import read_tum
from nerfmatch_ros.errors import MapError, NerfmatchError
from nerfmatch_ros.evaluation import metrics
from nerfmatch_ros.evaluation.evaluate import errors_of, QueryResult, summarize, write_results
from nerfmatch_ros.localization.localizer import Localizer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

DEMO_MAP = Path(__file__).parent / 'demo_map'

# What the README promises.
MEDIAN_METRES, MEDIAN_DEGREES = 0.05, 1.0
NEAR_METRES, NEAR_DEGREES, NEAR_SHARE = 0.10, 5.0, 0.8

IMAGES_PER_SECOND = 2.0  # slow enough for two processor cores without a GPU
ODOMETRY_NOISE = 0.01  # metres per metre, radians per metre or radian
ROWS_SHOWN = 12  # a live table taller than the terminal flickers


def run_demo(*, queries: int, output: Path, ros: str, map_folder: Path | None) -> int:
    """
    Show the drive, write the report and the pictures; 0: as accurate as promised.

    ros: 'yes', 'no' or 'auto'; auto goes through the nodes where ROS can be imported.
    """
    if queries < 1:
        raise NerfmatchError(f'--queries {queries}: at least one image is needed')
    folder = map_folder or DEMO_MAP
    if not folder.is_dir():
        raise MapError(f'there is no map at {folder}; make the demo map with `make demo-map`')
    missing = _missing_ros() if ros != 'no' else None
    if ros == 'yes' and missing:
        raise NerfmatchError(f'--ros yes, but {missing}; install ROS 2 or the ros-wheels extra')
    console = Console()
    with console.status('rendering the drive'):
        images = synthetic_images('test', queries, default_camera())
    if ros == 'no' or missing:
        console.print('Directly through Localizer: '
                      + (missing or 'the ROS nodes were not asked for') + '.')
        return _drive_directly(folder, images, output, console)
    return _drive_with_ros(folder, images, output, console)


def _missing_ros() -> str | None:
    """Say what keeps the nodes from running, or None when nothing does."""
    # tf2_msgs is not among the ROS wheels, it is built where there is a compiler.
    for name in ('rclpy', 'sensor_msgs.msg', 'geometry_msgs.msg', 'tf2_msgs.msg', 'rosbags'):
        try:
            import_module(name)
        except ImportError as error:
            return f'{name} cannot be imported ({error})'
    return None


def _drive_with_ros(
    folder: Path, images: Sequence[PosedImage], output: Path, console: Console,
) -> int:
    """Write the drive as a bag, play it to the nodes, judge what they publish."""
    from nerfmatch_ros.ros.bag_drive import DriveOptions, write_drive
    from nerfmatch_ros.ros.replay import replay, ReplayOptions
    from nerfmatch_ros.ros.replay_result import print_replay
    bag = output / 'bag'
    if (bag / 'metadata.yaml').is_file():
        shutil.rmtree(bag)  # of the last demo
    write_drive(images, bag, DriveOptions(rate=IMAGES_PER_SECOND, odometry=ODOMETRY_NOISE))
    seconds = len(images) / IMAGES_PER_SECOND
    with console.status(f'localizer and refiner follow the drive, {seconds:.0f} s'):
        report = replay(bag, folder, output, ReplayOptions())
    print_replay(report, output)
    stream, pair = report['streams']['pose'], report['refined_vs_fast']
    share = _share_near(output, len(images))
    console.print(f'{share:.0%} of the images have a pose within {100 * NEAR_METRES:.0f} cm and '
                  f'{NEAR_DEGREES:.0f} deg.')
    complaints = _shortfall(
        stream['median_translation_m'], stream['median_rotation_deg'], share)
    if not pair['pairs'] or not (
            pair['refined_median_translation_m'] < pair['unrefined_median_translation_m']):
        complaints.append('the refined poses are not closer to the truth than the fast ones')
    return _conclude(complaints, console)


def _share_near(output: Path, images: int) -> float:
    """Give the share of the images whose pose of the stream is near the truth."""
    true = dict(read_tum(output / 'true_poses.tum'))
    poses = dict(read_tum(output / 'poses.tum'))
    errors = metrics.pose_errors([poses.get(stamp) for stamp in true], list(true.values()))
    return metrics.recall(errors, NEAR_METRES, NEAR_DEGREES) * len(true) / images


def _drive_directly(
    folder: Path, images: Sequence[PosedImage], output: Path, console: Console,
) -> int:
    """Call the localizer image by image under a live table, judge its poses."""
    localizer = Localizer.load(folder, device=choose_device('auto'))
    results: list[QueryResult] = []
    with Live(_table(results), console=console, transient=True, auto_refresh=False) as live:
        for image in images:
            query = replace(image, map_from_camera=None, depth=None)
            start = time.perf_counter()
            estimate = localizer.localize_and_refine(query)
            results.append(QueryResult(image, estimate, time.perf_counter() - start))
            live.update(_table(results, ROWS_SHOWN), refresh=True)
    console.print(_table(results))
    # Loaded late: matplotlib takes a second, and the table should begin at once.
    from nerfmatch_ros.evaluation.pictures import draw_trajectory, draw_worst
    report = summarize(results, localizer.scene_map.extent)
    write_results(results, report, output)
    draw_trajectory(results, localizer.scene_map.reference_poses, output / 'trajectory.png')
    draw_worst(results, localizer.render, output / 'worst.png')
    errors = errors_of(results)
    metres, degrees = metrics.median(errors.translation), metrics.median(errors.rotation)
    share = metrics.recall(errors, NEAR_METRES, NEAR_DEGREES)
    console.print(
        f"Median error {100 * metres:.2f} cm, {degrees:.2f} deg over {report['queries']} images "
        f"({report['localized']} localized); {share:.0%} within {100 * NEAR_METRES:.0f} cm and "
        f"{NEAR_DEGREES:.0f} deg; {1000 * report['seconds_per_image']['median']:.0f} ms an image.")
    console.print(f'Pictures and report: {output}/')
    return _conclude(_shortfall(metres, degrees, share), console)


def _table(results: Sequence[QueryResult], rows: int | None = None) -> Table:
    table = Table('frame', 'error', 'rotation', 'std', 'time')
    for column in table.columns[1:]:
        column.justify = 'right'
    errors = errors_of(results)
    first = 0 if rows is None else max(0, len(results) - rows)
    for i in range(first, len(results)):
        std = results[i].estimate.position_std
        if results[i].estimate.map_from_camera is None:
            error, rotation = escape(results[i].estimate.reason), '-'
        else:
            error = f'{100 * errors.translation[i]:.2f} cm'
            rotation = f'{errors.rotation[i]:.2f} deg'
        table.add_row(
            results[i].image.name, error, rotation,
            f'{100 * std:.2f} cm' if math.isfinite(std) else '-',
            f'{1000 * results[i].seconds:.0f} ms')
    return table


def _shortfall(metres: float | None, degrees: float | None, share: float) -> list[str]:
    """Say where the poses fall short of what is promised; None stands for infinity."""
    complaints = []
    if metres is None or degrees is None or not (
            metres <= MEDIAN_METRES and degrees <= MEDIAN_DEGREES):
        complaints.append(f'the median exceeds {100 * MEDIAN_METRES:.0f} cm or '
                          f'{MEDIAN_DEGREES:.0f} deg')
    if share < NEAR_SHARE:
        complaints.append(f'fewer than {NEAR_SHARE:.0%} of the images are within '
                          f'{100 * NEAR_METRES:.0f} cm and {NEAR_DEGREES:.0f} deg')
    return complaints


def _conclude(complaints: list[str], console: Console) -> int:
    for complaint in complaints:
        console.print(f'[red]Below what is promised:[/red] {complaint}.')
    return 1 if complaints else 0
