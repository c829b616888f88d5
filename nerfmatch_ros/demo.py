"""
Localize a drive through the synthetic room, image by image, with the map of the package.

The drive is rendered in closed form while it runs; no image of it was used for the map.
"""

from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
import math
from pathlib import Path
import time

from nerfmatch_ros.config import choose_device
from nerfmatch_ros.data.posed_image import PosedImage
from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
from nerfmatch_ros.errors import MapError, NerfmatchError
from nerfmatch_ros.evaluation import metrics
from nerfmatch_ros.evaluation.evaluate import errors_of, QueryResult, summarize, write_results
from nerfmatch_ros.localization.absolute_pose import PoseEstimate
from nerfmatch_ros.localization.localizer import Localizer
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

DEMO_MAP = Path(__file__).parent / 'demo_map'

# What the README promises.
MEDIAN_METRES, MEDIAN_DEGREES = 0.05, 1.0
NEAR_METRES, NEAR_DEGREES, NEAR_SHARE = 0.10, 5.0, 0.8

ROWS_SHOWN = 12  # a live table taller than the terminal flickers


def run_demo(*, queries: int, output: Path, ros: str, map_folder: Path | None) -> int:
    """
    Show the drive as a table, write the report and the pictures; 0: as accurate as promised.

    ros: 'yes', 'no' or 'auto'; auto goes through the node where rclpy can be imported.
    """
    if queries < 1:
        raise NerfmatchError(f'--queries {queries}: at least one image is needed')
    folder = map_folder or DEMO_MAP
    if not folder.is_dir():
        raise MapError(f'there is no map at {folder}; make the demo map with `make demo-map`')
    console = Console()
    localizer = Localizer.load(folder, device=choose_device('auto'))
    with _way_in(ros, folder, output, localizer, console) as localize:
        images = synthetic_images('test', queries, default_camera())
        results = _drive(localize, images, console)
    # Loaded late: matplotlib takes a second, and the table should begin at once.
    from nerfmatch_ros.evaluation.pictures import draw_trajectory, draw_worst
    report = summarize(results, localizer.scene_map.extent)
    write_results(results, report, output)
    draw_trajectory(results, localizer.scene_map.reference_poses, output / 'trajectory.png')
    draw_worst(results, localizer.render, output / 'worst.png')
    return _conclude(results, report, output, console)


@contextmanager
def _way_in(ros: str, folder: Path, output: Path, localizer: Localizer, console: Console):
    """Give the function from a query to its estimate: through the node, or called directly."""
    missing = _missing_ros() if ros != 'no' else None
    if ros == 'yes' and missing:
        raise NerfmatchError(f'--ros yes, but {missing}; install ROS 2 or the ros-wheels extra')
    if ros == 'no' or missing:
        console.print('Directly through Localizer: '
                      + (missing or 'the ROS node was not asked for') + '.')
        yield localizer.localize
        return
    from nerfmatch_ros.ros.node_client import NodeClient
    # tf2_msgs is not among the ROS wheels, it is built where there is a compiler.
    parameters = {'tf_broadcast': 'true' if find_spec('tf2_msgs') else 'false'}
    with NodeClient(folder, output / 'node.log', parameters=parameters) as client:
        console.print('Through the ROS node: images and camera_info go out, poses come back.')
        yield client.localize


def _missing_ros() -> str | None:
    """Say what keeps the node from running, or None when nothing does."""
    for name in ('rclpy', 'sensor_msgs.msg', 'geometry_msgs.msg'):
        try:
            import_module(name)
        except ImportError as error:
            return f'{name} cannot be imported ({error})'
    return None


def _drive(
    localize: Callable[[PosedImage], PoseEstimate], images: Sequence[PosedImage], console: Console,
) -> list[QueryResult]:
    """Localize the images in order under a live table, then leave the whole table behind."""
    results: list[QueryResult] = []
    with Live(_table(results), console=console, transient=True, auto_refresh=False) as live:
        for image in images:
            query = replace(image, map_from_camera=None, depth=None)
            start = time.perf_counter()
            estimate = localize(query)
            results.append(QueryResult(image, estimate, time.perf_counter() - start))
            live.update(_table(results, ROWS_SHOWN), refresh=True)
    console.print(_table(results))
    return results


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


def _conclude(
    results: Sequence[QueryResult], report: dict, output: Path, console: Console,
) -> int:
    errors = errors_of(results)
    metres, degrees = metrics.median(errors.translation), metrics.median(errors.rotation)
    share = metrics.recall(errors, NEAR_METRES, NEAR_DEGREES)
    reached = metres <= MEDIAN_METRES and degrees <= MEDIAN_DEGREES and share >= NEAR_SHARE
    console.print(
        f"Median error {100 * metres:.2f} cm, {degrees:.2f} deg over {report['queries']} images "
        f"({report['localized']} localized); {share:.0%} within {100 * NEAR_METRES:.0f} cm and "
        f"{NEAR_DEGREES:.0f} deg; {1000 * report['seconds_per_image']['median']:.0f} ms an image.")
    console.print(f'Pictures and report: {output}/')
    if not reached:
        console.print(
            f'[red]Below the promised accuracy:[/red] median {100 * MEDIAN_METRES:.0f} cm and '
            f'{MEDIAN_DEGREES:.0f} deg, {NEAR_SHARE:.0%} within {100 * NEAR_METRES:.0f} cm and '
            f'{NEAR_DEGREES:.0f} deg.')
    return 0 if reached else 1
