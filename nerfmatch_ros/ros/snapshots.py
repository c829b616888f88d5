"""What a running node knows of itself at one moment, apart from any message."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from nerfmatch_ros.ros.statistics import Summary


@dataclass(frozen=True)
class LocalizationSnapshot:
    """Where the tracker is; ages in seconds, lengths in metres, angles in radians."""

    state: str  # UNLOCALIZED LOCALIZED COASTING LOST
    active: bool = True
    paused: bool = False
    epoch: int = 0
    failing: bool = False  # frames keep raising what nobody expected
    same_names: int = 1  # nodes with the full name of this one, itself among them
    reason: str = ''  # why the last frame gave no pose, '' if it did
    degraded: bool = False  # the last frame shows nothing
    fix_age: float | None = None  # since the last accepted pose; None: there was none
    fix_distance: float | None = None  # travelled since, where odometry tells
    inliers: int | None = None  # of the last estimate, as the following
    matches: int | None = None
    reprojection_error: float | None = None  # pixels
    probability: float | None = None  # that it is correct; nan: the map has no judge
    reference: str = ''  # what it was matched with, and why; '' if that is not said
    references: Mapping[str, int] = field(default_factory=dict)  # images so far, by the same
    position_std: tuple[float, float, float] | None = None  # x, y, z
    rotation_std: tuple[float, float, float] | None = None  # about x, y, z
    rejects_in_a_row: int = 0
    last_jump: tuple[float, float] | None = None  # metres, radians
    counts: Mapping[str, int] = field(default_factory=dict)  # of the tracker's verdicts


@dataclass(frozen=True)
class TopicSnapshot:
    """One topic that is listened to."""

    name: str  # resolved
    publishers: int
    mismatches: tuple[str, ...] = ()  # incompatible qualities of service, a line each


@dataclass(frozen=True)
class InputSnapshot:
    """What comes in."""

    topics: tuple[TopicSnapshot, ...]
    silence: float  # seconds since the last image, or since the start
    received: int = 0
    rate: float = 0.0  # Hz
    processed_rate: float = 0.0  # Hz
    age: Summary | None = None  # seconds from the stamp of an image to its arrival
    encoding: str = ''
    size: tuple[int, int] | None = None  # width, height
    transport: str = 'raw'
    degraded: str = ''  # '' or how the newest pictures are useless: dark, saturated, flat
    frozen: bool = False  # the camera repeats one picture
    clock_stopped: bool = False  # the node's clock does not advance
    drops: Mapping[str, int] = field(default_factory=dict)
    last_drop: str = ''  # text of the newest


@dataclass(frozen=True)
class CameraInfoSnapshot:
    """Which cameras are known."""

    topics: tuple[TopicSnapshot, ...]
    frames: tuple[str, ...] = ()  # with a usable camera
    lacking: tuple[str, ...] = ()  # of which images come, but no camera_info
    waiting: float = 0.0  # seconds that these images have come for
    timeout: float = 5.0  # seconds after which that is worth a warning
    model: str = ''
    changes: int = 0
    complaint: str = ''  # what is wrong with the newest camera_infos, '' if all are usable
    size_matches: bool | None = None  # of camera_info and image


@dataclass(frozen=True)
class LatencySnapshot:
    """Where the time goes; seconds."""

    stages: Mapping[str, Summary] = field(default_factory=dict)  # by name, 'total' among them
    busy_for: float = 0.0  # with the image that is worked on
    busy: float | None = None  # share of the time that images are worked on


@dataclass(frozen=True)
class TransformSnapshot:
    """What comes from and goes to /tf."""

    mode: str  # tf_mode
    odom_frame: str = ''
    base_frame: str = ''
    odometry: bool | None = None  # odom to base was found for the newest image; None: not needed
    extrinsic_fault: str = ''  # why base to camera is not known, with the remedy
    wait: Summary | None = None  # seconds that lookups took
    failures: Mapping[str, int] = field(default_factory=dict)  # of lookups, by kind
    foreign: tuple[str, ...] = ()  # transforms of our child frame that others send
    rate: float = 0.0  # Hz, of what we send
    sent: int = 0
    jumps: int = 0


@dataclass(frozen=True)
class OutputSnapshot:
    """Who listens to what is published."""

    subscribers: Mapping[str, int] = field(default_factory=dict)  # by resolved topic
    mismatches: tuple[str, ...] = ()  # incompatible qualities of service, a line each


@dataclass(frozen=True)
class RefinerSnapshot:
    """What the localizer hears of the refiner; it goes on without."""

    publishers: int
    silence: float | None = None  # seconds since the last refined pose; None: there was none
    counts: Mapping[str, int] = field(default_factory=dict)  # of refined poses by verdict
    latency: Summary | None = None  # seconds from the stamp of an image to its refined pose
    improvement: float | None = None  # mean metres by which it moved a pose


@dataclass(frozen=True)
class MapSnapshot:
    """What is localized in, and on what."""

    path: str
    loaded: bool = True
    sha256: str = ''
    frame: str = ''
    loaded_at: str = ''
    device: str = ''
    memory: float | None = None  # bytes in use on the GPU
    memory_limit: float | None = None
    out_of_memory: int = 0  # frames

    @property
    def hardware_id(self) -> str:
        """Give a short name of the map."""
        return self.sha256[:12]
