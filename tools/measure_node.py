"""Measures how soon the localizer node gives a first pose, and whether its memory grows.

    python tools/measure_node.py --map maps/kitchen --images data/kitchen
    python tools/measure_node.py --frames 10000

Without --frames: starts. Each is a process of its own that runs the real node and, beside it, a
camera that stands still and sends ten images a second from the start on; prints the medians over
--repeat starts. A first pose takes two images, as two have to agree (`init_consistent_fixes`).
--first-ever starts with nothing compiled, as the very first start on a machine does.

With --frames: one process whose camera sends the next image when the last one is worked on; prints
the resident memory and the number of Python objects after each tenth. The images are small
cuttings (--cutting) of a picture, for time's sake; one in eight is noise, so all ways through the
node are taken.

Without --images the camera is in the synthetic room, whose map is the package's own.
"""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
import gc
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from typing import Any

RATE = 10.0  # images a second
LATER = 10  # images after the first pose that are timed too
TIMEOUT = 120.0  # seconds
NODE = 'nerfmatch_localizer'
STARTS = (
    'import of the node', 'making the node', 'configure', 'configure/import', 'configure/load',
    'configure/warm up', 'activate', 'activate to first image', 'first image to first pose',
    'configure to first pose', 'the same without import and load', 'first image', 'second image',
    'a later image')


class Steps:
    """Wall and CPU seconds of named steps."""

    def __init__(self):
        self.wall, self.cpu = {}, {}

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what runs inside."""
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = time.perf_counter() - wall
        self.cpu[name] = time.process_time() - cpu

    def stage(self, name: str) -> Any:
        """Time a stage of configuring, as the StageClock that `load_localizer` takes."""
        return self.step(f'configure/{name}')

    def subtract(self, name: str, whole: str, *parts: str):
        """Note what is left of a step without some of its parts."""
        for seconds in (self.wall, self.cpu):
            seconds[name] = seconds[whole] - sum(seconds[part] for part in parts)


class Robot:
    """The node, and a camera that it listens to, each spun on a thread of its own."""

    def __init__(self, map_folder: Path, steps: Steps, threads: int, warm: bool, **parameters):
        """Make both; the node, with these parameters, is neither configured nor active."""
        with steps.step('import of the node'):
            from nerfmatch_ros.memory import keep_freed_memory
            from nerfmatch_ros.ros import backend
            from nerfmatch_ros.ros.localizer_node import LocalizerNode
            import rclpy
            from rclpy.parameter import Parameter
        from diagnostic_msgs.msg import DiagnosticStatus
        from geometry_msgs.msg import PoseStamped
        from nerfmatch_ros.ros.node_process import own_domain
        from nerfmatch_ros.ros.quality import LATCHED, SENSOR
        from sensor_msgs.msg import CameraInfo, Image
        keep_freed_memory()
        self.context = rclpy.Context()
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        rclpy.init(context=self.context, domain_id=own_domain())
        self.camera_node = rclpy.create_node('camera', context=self.context)
        self.images = self.camera_node.create_publisher(Image, 'image', SENSOR)
        self.infos = self.camera_node.create_publisher(CameraInfo, 'camera_info', SENSOR)
        self.poses: list[float] = []  # when each came
        self.statuses: list[tuple[float, Any]] = []  # when each came, and the message
        self.camera_node.create_subscription(
            PoseStamped, 'pose', lambda _: self.poses.append(time.perf_counter()), LATCHED)
        self.camera_node.create_subscription(
            DiagnosticStatus, f'{NODE}/status', self._on_status, LATCHED)
        values = {'map_path': str(map_folder), 'tf_mode': 'map_to_camera', 'autostart': False,
                  'device': 'cpu', 'threads': threads, 'warmup': warm, 'max_image_age': 0.0,
                  **parameters}
        with steps.step('making the node'):
            self.node = LocalizerNode(
                lambda *arguments, **options: backend.load_localizer(
                    *arguments, **options, clock=steps),
                context=self.context, parameter_overrides=[
                    Parameter(name, value=value) for name, value in values.items()])
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._spin, args=(node,), daemon=True)
                         for node in (self.node, self.camera_node)]
        for thread in self._threads:
            thread.start()

    def send(self, pixels: Any, camera: Any):
        """Send an image and its camera, with the stamp of now."""
        from nerfmatch_ros.ros.camera_messages import info_message
        from nerfmatch_ros.ros.conversions import stamp_message
        from nerfmatch_ros.ros.image_messages import image_message
        stamp = stamp_message(self.node.now_ns())
        self.infos.publish(info_message(camera, stamp, 'camera'))
        self.images.publish(image_message(pixels, stamp, 'camera'))

    def verdicts(self) -> list[tuple[float, dict[str, str]]]:
        """Give when each image was done and what was said of it, oldest first."""
        from nerfmatch_ros.ros.diagnostics import status_values
        told = ((when, status_values(message)) for when, message in list(self.statuses))
        return [(when, values) for when, values in told if 'seconds localize' in values]

    def handled(self) -> int:
        """Give how many images were worked on or dropped."""
        return self.node.attempts + self.node.drops.total

    def close(self):
        """End everything."""
        self._ended.set()
        for thread in self._threads:
            thread.join(5.0)
        self.node.close()
        self.camera_node.destroy_node()
        self.context.try_shutdown()

    def _on_status(self, message: Any):
        self.statuses.append((time.perf_counter(), message))

    def _spin(self, node: Any):
        from rclpy.executors import SingleThreadedExecutor
        executor = SingleThreadedExecutor(context=self.context)
        executor.add_node(node)
        while not self._ended.is_set():
            executor.spin_once(timeout_sec=0.05)
        executor.shutdown(timeout_sec=1.0)


def start_once(folder: Path, map_folder: Path, threads: int, warm: bool) -> dict[str, Any]:
    """Start the node and give the seconds of each step, wall and CPU, and of the first images."""
    steps = Steps()
    robot = Robot(map_folder, steps, threads, warm)
    import numpy as np
    picture, camera = read_picture(folder)
    ended = threading.Event()

    def film():
        random = np.random.default_rng(0)
        while not ended.wait(1 / RATE):
            robot.send(with_noise(picture, random), camera)

    filming = threading.Thread(target=film, daemon=True)
    filming.start()
    time.sleep(0.5)  # the camera runs already
    with steps.step('configure to first pose'):
        with steps.step('configure'):
            succeeded(robot.node.trigger_configure(), robot)
        with steps.step('activate'):
            succeeded(robot.node.trigger_activate(), robot)
        active = time.perf_counter()
        wait_for(lambda: robot.poses, 'a first pose')
    wait_for(lambda: len(robot.verdicts()) >= LATER + 2, 'further images')
    ended.set()
    filming.join()
    robot.close()
    images = [(when, seconds_of(values)) for when, values in robot.verdicts()]
    seconds = [sum(taken[step] for step in ('transforms', 'localize', 'fuse'))
               for _, taken in images]
    began = images[0][0] - seconds[0]
    steps.subtract('the same without import and load', 'configure to first pose',
                   'configure/import', 'configure/load')
    steps.wall.update({
        'activate to first image': began - active,
        'first image to first pose': robot.poses[0] - began,
        'first image': seconds[0], 'second image': seconds[1],
        'a later image': statistics.median(seconds[2:])})
    return {'wall': steps.wall, 'cpu': steps.cpu, 'stages': images[0][1],
            'later_stages': images[-1][1], 'peak_mb': peak_megabytes()}


def endure(folder: Path, map_folder: Path, threads: int, frames: int, cutting: int) -> None:
    """Send so many small images to the node and print what memory it takes."""
    import numpy as np
    # A cutting has few matches; those of noise are refused as chance all the same.
    robot = Robot(map_folder, Steps(), threads, warm=True, min_inliers=6, min_inlier_ratio=0.01)
    picture, camera = read_picture(folder)
    succeeded(robot.node.trigger_configure(), robot)
    succeeded(robot.node.trigger_activate(), robot)
    random, rows = np.random.default_rng(0), []
    height, width = cutting * 3 // 4, cutting
    print(f'{"images":>8}{"with pose":>11}{"resident MB":>13}{"objects":>9}{"threads":>9}'
          f'{"ms an image":>13}')
    started, found = time.perf_counter(), 0
    marks = {1000, *(frames * k // 10 for k in range(1, 11))}
    for k in range(1, frames + 1):
        noise = k % 8 == 0
        pixels, seen = cut_out(picture, camera, width, height)
        pixels = random.integers(0, 256, pixels.shape, np.uint8) if noise \
            else with_noise(pixels, random)
        before = robot.handled()
        robot.send(pixels, seen)
        sent = time.perf_counter()
        while robot.handled() == before:
            if time.perf_counter() - sent > 2.0:  # best effort: it may be lost
                robot.send(pixels, seen)
                sent = time.perf_counter()
            time.sleep(0.0005)
        if k in marks:
            found += len(robot.poses)
            robot.poses.clear()  # of this tool, not of the node
            robot.statuses.clear()
            gc.collect()
            rows.append({'images': k, 'with_pose': found, 'resident_mb': resident_megabytes(),
                         'objects': len(gc.get_objects()), 'threads': threads_now(),
                         'ms_an_image': 1000 * (time.perf_counter() - started) / k})
            print('{images:>8}{with_pose:>11}{resident_mb:>13.1f}{objects:>9}{threads:>9}'
                  '{ms_an_image:>13.1f}'.format(**rows[-1]), flush=True)
    stages = robot.node.latencies.summaries()
    robot.close()
    print('  '.join(f'{stage} {1000 * summary.p50:.1f}' for stage, summary in stages.items()),
          '(ms, medians)')
    print(json.dumps(rows))


def seconds_of(values: dict[str, str]) -> dict[str, float]:
    """Give the seconds by stage that a ~/status tells of its image."""
    told = {key.removeprefix('seconds '): value for key, value in values.items()
            if key.startswith('seconds ')}
    return {stage: float(value) for stage, value in told.items()
            if stage.partition('/')[0] in ('transforms', 'localize', 'fuse')}


def cut_out(picture: Any, camera: Any, width: int, height: int) -> tuple[Any, Any]:
    """Give the middle (height, width, 3) of a picture and the camera that sees only that."""
    from dataclasses import replace
    top, left = (picture.shape[0] - height) // 2, (picture.shape[1] - width) // 2
    return picture[top:top + height, left:left + width], replace(
        camera, width=width, height=height, cx=camera.cx - left, cy=camera.cy - top)


def with_noise(pixels: Any, random: Any) -> Any:
    """Add the noise of a sensor, one grey level, without which a camera counts as frozen."""
    import numpy as np
    noise = random.integers(-1, 2, pixels.shape, np.int16)
    return (pixels + noise).clip(0, 255).astype(np.uint8)


def write_picture(folder: Path, images: Path | None, split: str | None) -> None:
    """Leave a picture and its camera for the processes that are measured."""
    import numpy as np
    if images is None:
        from nerfmatch_ros.data.synthetic import default_camera, synthetic_images
        chosen = synthetic_images('test', 8, default_camera())[5]  # with texture in the middle
    else:
        from nerfmatch_ros.data.reader import read_posed_images
        chosen = read_posed_images(images, split)[0]
    np.save(folder / 'picture.npy', chosen.rgb())
    (folder / 'camera.json').write_text(json.dumps(chosen.camera.to_dict()))


def read_picture(folder: Path) -> tuple[Any, Any]:
    """Give the pixels and the camera that `write_picture` left."""
    from nerfmatch_ros.geometry.camera import Camera
    import numpy as np
    return np.load(folder / 'picture.npy'), Camera.from_dict(
        json.loads((folder / 'camera.json').read_text()))


def succeeded(result: Any, robot: Robot) -> None:
    """End with the reason where a transition failed."""
    if result.name != 'SUCCESS':
        raise SystemExit(f'the node does not start: {robot.node.failure}')


def wait_for(done: Callable[[], Any], what: str) -> None:
    """Wait until something is there."""
    deadline = time.monotonic() + TIMEOUT
    while not done():
        if time.monotonic() > deadline:
            raise SystemExit(f'waited {TIMEOUT:.0f} s in vain for {what}; does the image show the '
                             'place of the map?')
        time.sleep(0.001)


def resident_megabytes() -> float:
    """Give the memory of this process that is in use."""
    return int(Path('/proc/self/statm').read_text().split()[1]) * os.sysconf(
        'SC_PAGESIZE') / 2**20


def peak_megabytes() -> float:
    """Give the most memory that this process ever had in use."""
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def threads_now() -> int:
    """Count the threads of this process."""
    return len(os.listdir('/proc/self/task'))


def measured(command: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """Run one start in a process of its own and give its figures."""
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f'{done.stdout}{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])


def print_starts(starts: list[dict[str, Any]]) -> dict[str, Any]:
    """Print the medians of several starts and give them."""
    def medians(kind: str) -> dict[str, float]:
        names = {name for start in starts for name in start[kind]}
        return {name: statistics.median(start[kind][name] for start in starts
                                        if name in start[kind]) for name in names}

    wall, cpu = medians('wall'), medians('cpu')
    print(f'{"seconds, medians of " + str(len(starts)) + " starts":<36}{"wall":>8}{"CPU":>8}')
    for name in STARTS:
        if name in wall:
            spent = f'{cpu[name]:8.2f}' if name in cpu else ''
            print(f'{name:<36}{wall[name]:8.2f}{spent}')
    first, later = medians('stages'), medians('later_stages')
    print(f'{"stages of an image":<36}{"first":>8}{"later":>8}')
    for name in sorted(first | later):
        values = (f'{given[name]:8.3f}' if name in given else f'{"-":>8}'
                  for given in (first, later))
        print(f'{name:<36}' + ''.join(values))
    peak = statistics.median(start['peak_mb'] for start in starts)
    print(f'peak of the resident memory: {peak:.0f} MB')
    return {'wall': wall, 'cpu': cpu, 'first_image': first, 'later_image': later, 'peak_mb': peak}


def main() -> None:
    """Measure what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--map', type=Path, help='folder; else the map of the package')
    parser.add_argument('--images', type=Path, help='of the same place; else the synthetic room')
    parser.add_argument('--split', help="of the images, such as 'test'")
    parser.add_argument('--repeat', type=int, default=5, help='starts')
    parser.add_argument('--threads', type=int, default=0, help="0: as many as PyTorch's own")
    parser.add_argument('--no-warm-up', action='store_true', help='set warmup to false')
    parser.add_argument('--first-ever', action='store_true', help='nothing is compiled yet')
    parser.add_argument('--frames', type=int, help='how many images the memory is watched over')
    parser.add_argument('--cutting', type=int, default=128, help='width of these images, pixels')
    parser.add_argument('--json', type=Path, help='file for the medians')
    parser.add_argument('--picture', type=Path, help=argparse.SUPPRESS)  # of one measured process
    options = parser.parse_args()
    if options.picture is not None:  # before anything is imported that shall be timed
        if options.frames:
            endure(options.picture, options.map, options.threads, options.frames, options.cutting)
        else:
            print(json.dumps(start_once(options.picture, options.map, options.threads,
                                        not options.no_warm_up)))
        return
    from nerfmatch_ros.demo import DEMO_MAP
    map_folder = (options.map or DEMO_MAP).resolve()
    with tempfile.TemporaryDirectory() as folder:
        write_picture(Path(folder), options.images, options.split)
        command = [sys.executable, __file__, '--map', str(map_folder), '--picture', folder,
                   '--threads', str(options.threads)]
        # As the installed scripts and launch files do: see nerfmatch_ros/memory.py.
        environment = {'MALLOC_ARENA_MAX': '1', **os.environ}
        if options.frames:
            command += ['--frames', str(options.frames), '--cutting', str(options.cutting)]
            raise SystemExit(subprocess.run(command, env=environment, check=False).returncode)
        command += ['--no-warm-up'] * options.no_warm_up
        starts = []
        for k in range(options.repeat):
            if options.first_ever:
                environment['NUMBA_CACHE_DIR'] = str(Path(folder) / f'compiled{k}')
            starts.append(measured(command, environment))
    medians = print_starts(starts)
    if options.json is not None:
        options.json.write_text(json.dumps(medians, indent=1) + '\n')


if __name__ == '__main__':
    main()
