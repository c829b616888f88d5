"""A bag through localizer and refiner, and how good what came out is: `nerfmatch replay`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nerfmatch_ros.config import choose_device, load_yaml
from nerfmatch_ros.errors import ConfigError, NerfmatchError
from nerfmatch_ros.ros.bag_drive import TRUTH_TOPIC
from nerfmatch_ros.ros.replay_input import read_replay_input, ReplayFrames

TF_MODES = ('map_to_odom', 'map_to_base', 'map_to_camera', 'none')


@dataclass(frozen=True)
class ReplayOptions:
    """How a bag is replayed."""

    every_frame: bool = False  # the core alone, deterministic; False: both nodes over DDS
    rate: float = 1.0  # of the bag; 2 is twice as fast as recorded
    refiner: bool = True
    tf_mode: str = 'map_to_odom'
    device: str = 'auto'
    localizer: str = 'map'  # its name; the refiner goes by the map in any case
    image_topic: str = ''  # '': the only one of the bag
    truth_topic: str = TRUTH_TOPIC
    base_frame: str = 'base_link'
    odom_frame: str = 'odom'
    parameters: Mapping[str, Any] = field(default_factory=dict)  # further ones, of the localizer
    localizer_module: str = 'nerfmatch_ros.ros.localizer_node'
    refiner_module: str = 'nerfmatch_ros.ros.refiner_node'

    def __post_init__(self):
        """Refuse what cannot be replayed."""
        if self.tf_mode not in TF_MODES:
            raise ConfigError(f"--tf-mode '{self.tf_mode}' is unknown; use {', '.join(TF_MODES)}")
        if not 0 < self.rate < float('inf'):
            raise ConfigError(f'--rate {self.rate:g}: how often faster than recorded, above 0')

    @property
    def frames(self) -> ReplayFrames:
        """Give the names of the frames; a camera that hangs in the map is given itself."""
        return ReplayFrames(odom=self.odom_frame, base=self.base_frame,
                            pose_of_camera=self.tf_mode == 'map_to_camera')


def replay(
    bag: Path, map_folder: Path, output: Path, options: ReplayOptions | None = None, *,
    load: Callable[..., Any] | None = None, during: Callable[..., None] | None = None,
) -> dict:
    """
    Replay the bag, write the files into the folder and return the report.

    load: stands in for `backend.load_localizer` with every_frame; during: see `replay_nodes`.
    """
    options = options or ReplayOptions()
    output = Path(output)
    try:
        # Imported late: this needs the messages of ROS, the nodes need all of it.
        from nerfmatch_ros.ros.replay_result import write_replay
        found = read_replay_input(bag, options.frames, image_topic=options.image_topic,
                                  truth_topic=options.truth_topic)
        if options.every_frame:
            from nerfmatch_ros.ros.backend import load_localizer
            from nerfmatch_ros.ros.replay_frames import replay_every_frame
            backend = (load or load_localizer)(
                Path(map_folder), device=choose_device(options.device), threads=None, warm=False,
                localizer=options.localizer)
            result = replay_every_frame(
                found, options.frames, backend, tf_mode=options.tf_mode, refine=options.refiner)
        else:
            from nerfmatch_ros.ros.replay_nodes import replay_nodes
            result = replay_nodes(found, map_folder, output, options, during=during)
    except ModuleNotFoundError as error:
        raise NerfmatchError(f'a replay needs ROS 2, and {error.name} cannot be imported; source '
                             'a ROS installation or install the extra ros-wheels') from error
    result.notes |= {'bag': str(bag), 'map': str(map_folder), 'tf_mode': options.tf_mode,
                     'every_frame': options.every_frame, 'rate': options.rate,
                     'localizer': options.localizer}
    return write_replay(result, found, options.frames, output, map_extent(Path(map_folder)))


def map_extent(folder: Path) -> float | None:
    """Give what the map says of its size, metres; None where it does not."""
    file = folder / 'map.yaml'
    description = load_yaml(file) if file.is_file() else None
    notes = description.get('notes') if isinstance(description, dict) else None
    extent = notes.get('extent_m') if isinstance(notes, dict) else None
    return float(extent) if isinstance(extent, (int, float)) else None
