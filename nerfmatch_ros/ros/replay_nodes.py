"""A bag through localizer and refiner, both real and in processes of their own, over DDS."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
import os
from pathlib import Path
import shutil
import threading
import time
from typing import Any

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import GetState
from nerfmatch_ros.config import choose_device
from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.evaluation.stream_report import StampedPose
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros.bag import BagReader, BagTopic, BagWriter, decoded
from nerfmatch_ros.ros.bag_player import BagPlayer, message_class, profile_of
from nerfmatch_ros.ros.bag_topics import base_topic, TF
from nerfmatch_ros.ros.node_process import joined, NodeProcess, own_domain
from nerfmatch_ros.ros.replay_input import ReplayFrames, ReplayInput
from nerfmatch_ros.ros.replay_result import FAST, POSE, REFINED, ReplayResult
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

LOCALIZER, REFINER = 'nerfmatch_localizer', 'nerfmatch_refiner'
POSE_TOPIC, COVARIANCE_TOPIC = '/pose', '/pose_with_covariance'
FAST_TOPIC, REFINED_TOPIC = f'/{LOCALIZER}/pose_raw', '/refined_pose'
STATUS_TOPIC = f'/{LOCALIZER}/status'
RECORDED = (
    BagTopic(POSE_TOPIC, messages.POSE, depth=100),
    BagTopic(COVARIANCE_TOPIC, messages.POSE_WITH_COVARIANCE, depth=100),
    BagTopic(FAST_TOPIC, messages.POSE_WITH_COVARIANCE, depth=100),
    BagTopic(REFINED_TOPIC, messages.POSE_WITH_COVARIANCE, depth=100),
    BagTopic(STATUS_TOPIC, messages.STATUS, depth=100),
    BagTopic(TF, messages.TRANSFORMS, depth=1000),
)
START_SECONDS = 600.0  # to load a map and to warm up, on a slow machine too
CONNECT_SECONDS = 60.0
IDLE_SECONDS = 2.0  # without a further pose after the end, and no less than a few latencies
IDLE_LATENCIES = 3.0
DRAIN_SECONDS = 120.0
_LOOK_BACK = 1000  # records; /tf makes most of them


@dataclass(frozen=True)
class Record:
    """A message as it came."""

    topic: BagTopic
    received: float  # time.monotonic()
    data: bytes


def replay_nodes(
    found: ReplayInput, map_folder: Path, output: Path, options: Any, *,
    during: Callable[[float, dict[str, NodeProcess]], None] | None = None,
) -> ReplayResult:
    """
    Start the nodes, play the bag to them, keep what they publish, stop them.

    options: a `replay.ReplayOptions`. during: called all the time with the seconds of the bag
    played and the processes by the name of their node; it may stop and start them. What the nodes
    print goes to OUTPUT/NODE.log, what they publish to the bag OUTPUT/result.
    """
    domain = own_domain()
    processes = _processes(found, map_folder, output, options, domain)
    sent: dict[int, float] = {}  # monotonic time of every image, by its stamp

    def on_sent(name: str, _: int, data: bytes, when: float):
        if name == found.image_topic:
            sent[messages.read_serialized_stamp(data)] = when

    def watch(seconds: float):
        if during is not None:
            during(seconds, processes)
        processes[LOCALIZER].check()

    with ExitStack() as stack:
        stack.enter_context(joined(domain))
        recorder = stack.enter_context(Recorder(domain))
        for process in processes.values():
            stack.enter_context(process)
        for name, process in processes.items():
            recorder.wait_until_active(name, process)
        bag = stack.enter_context(BagReader(found.path))
        player = BagPlayer(recorder.node, bag, found.topics, rate=options.rate)
        listeners = {found.image_topic: len(processes), found.info_topic: len(processes)}
        if not (player.wait_for_subscribers(
                listeners, CONNECT_SECONDS, processes[LOCALIZER].check)
                and recorder.wait_for_publisher(POSE_TOPIC, CONNECT_SECONDS)):
            raise NerfmatchError(
                f'the nodes did not connect to {", ".join(listeners)} within '
                f'{CONNECT_SECONDS:g} s{processes[LOCALIZER].tail()}')
        player.play(on_sent, watch)
        player.hold(lambda: recorder.is_idle(sent, int(found.frames_ns[-1])), DRAIN_SECONDS)
        records = list(recorder.records)
    _write_bag(records, player, found, output / 'result', options.truth_topic)
    return result_of(records, sent, options.frames)


class Recorder:
    """Keeps every message of the topics of interest, with the time when it came."""

    def __init__(self, domain: int):
        """Prepare; nothing listens before the context is entered."""
        self._domain = domain
        self.records: list[Record] = []

    def __enter__(self) -> 'Recorder':
        """Listen, on a thread of its own."""
        self._context = rclpy.Context()
        rclpy.init(context=self._context, domain_id=self._domain)
        self.node = rclpy.create_node('nerfmatch_replay', context=self._context)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._subscriptions = [
            self.node.create_subscription(
                message_class(topic.type), topic.name, self._keep(topic), profile_of(topic),
                raw=True)
            for topic in RECORDED]
        self._thread = threading.Thread(target=self._spin, name='recorder', daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        """Stop listening."""
        self._executor.shutdown()
        self._thread.join()
        self.node.destroy_node()
        rclpy.shutdown(context=self._context)

    def wait_until_active(self, name: str, process: NodeProcess) -> None:
        """Wait until the lifecycle node works; raise if its process ends or it takes too long."""
        client = self.node.create_client(GetState, f'/{name}/get_state')
        deadline = time.monotonic() + START_SECONDS
        answer, label = None, 'not there'
        while True:
            process.check()
            if time.monotonic() > deadline:
                raise NerfmatchError(f'the node {name} is {label} after {START_SECONDS:g} s'
                                     f'{process.tail()}')
            if answer is None and client.service_is_ready():
                answer, asked = client.call_async(GetState.Request()), time.monotonic()
            elif answer is not None and answer.done():
                state = answer.result().current_state
                label = state.label
                if state.id == State.PRIMARY_STATE_ACTIVE:
                    break
                answer = None
            elif answer is not None and time.monotonic() > asked + 5.0:
                client.remove_pending_request(answer)  # it was lost while the two ends connected
                answer = None
            time.sleep(0.1)
        self.node.destroy_client(client)

    def wait_for_publisher(self, topic: str, timeout: float) -> bool:
        """Wait until somebody publishes a topic; False if that takes too long."""
        deadline = time.monotonic() + timeout
        while not self.node.count_publishers(topic):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True

    def is_idle(self, sent: dict[int, float], last_ns: int) -> bool:
        """Tell whether nothing more is to be expected after the last image."""
        # A look at the newest is enough, and keeps this short however long the bag is.
        poses = [record for record in self.records[-_LOOK_BACK:]
                 if record.topic.name in (POSE_TOPIC, FAST_TOPIC, REFINED_TOPIC)]
        stamps = [messages.read_serialized_stamp(record.data) for record in poses]
        if any(record.topic.name == REFINED_TOPIC and stamp == last_ns
               for record, stamp in zip(poses, stamps)):
            return True
        newest = max([*sent.values(), *(record.received for record in poses)], default=0.0)
        slowest = max([record.received - sent[stamp] for record, stamp in zip(poses, stamps)
                       if stamp in sent], default=0.0)
        return time.monotonic() - newest > max(IDLE_SECONDS, IDLE_LATENCIES * slowest)

    def _keep(self, topic: BagTopic) -> Callable[[bytes], None]:
        return lambda data: self.records.append(Record(topic, time.monotonic(), data))

    def _spin(self):
        try:
            self._executor.spin()
        except ExternalShutdownException:
            pass


def result_of(
    records: list[Record], sent: dict[int, float], frames: ReplayFrames,
) -> ReplayResult:
    """Sort the messages into streams; sent: monotonic time of every image, by its stamp."""
    result = ReplayResult()
    covariances: dict[int, Any] = {}
    poses: list[tuple[int, Any, float]] = []
    for record in records:
        name, message = record.topic.name, decoded(record.data, record.topic.type)
        if name == TF:
            result.transforms += [
                (child, stamp, pose)
                for parent, child, stamp, pose in messages.read_transforms(message)
                if parent == frames.map]
        elif name == STATUS_TOPIC:
            values = {item.key: item.value for item in message.values}
            if values.get('stamp', '').isdigit():
                result.outcomes[int(values['stamp'])] = values.get('verdict', message.message)
        else:
            stamp, pose, covariance = messages.read_pose(message)
            latency = record.received - sent.get(stamp, float('nan'))
            if name == POSE_TOPIC:
                poses.append((stamp, pose, latency))
            elif name == COVARIANCE_TOPIC:
                covariances[stamp] = covariance
            else:
                result.streams[FAST if name == FAST_TOPIC else REFINED].append(
                    StampedPose(stamp, pose, covariance, latency))
    result.streams[POSE] = [StampedPose(stamp, pose, covariances.get(stamp), latency)
                            for stamp, pose, latency in poses]
    return result


def _processes(
    found: ReplayInput, map_folder: Path, output: Path, options: Any, domain: int,
) -> dict[str, NodeProcess]:
    """Prepare the nodes; those of the last run leave their logs to this one."""
    image = found.image_topic
    remappings = {'image': image, 'camera_info': found.info_topic}
    if found.compressed:
        remappings['image/compressed'] = image
        remappings['image'] = base_topic(image)
    shared = {
        'map_path': Path(map_folder).resolve(), 'device': options.device, 'use_sim_time': True,
        'tf_mode': options.tf_mode, 'global_frame_id': options.frames.map,
        'base_frame_id': options.base_frame,
        'image_transport': 'compressed' if found.compressed else 'raw',
    }
    if choose_device(options.device) == 'cpu':
        # Two processes that each take every core hold one another up.
        shared['threads'] = max(1, (os.cpu_count() or 1) // (2 if options.refiner else 1))
    nodes = {LOCALIZER: (options.localizer_module, {
        # An image that waited for a slow machine is late, not wrong.
        **shared, 'odom_frame_id': options.odom_frame, 'max_image_age': 0.0,
        'localizer': options.localizer, **options.parameters})}
    if options.refiner:
        nodes[REFINER] = options.refiner_module, shared
    processes = {}
    for name, (module, parameters) in nodes.items():
        log = output / f'{name}.log'
        log.unlink(missing_ok=True)
        processes[name] = NodeProcess(
            module, log, domain=domain, name=f'node {name}', parameters=parameters,
            remappings=remappings)
    return processes


def _write_bag(
    records: list[Record], player: BagPlayer, found: ReplayInput, path: Path, truth_topic: str,
):
    """Write what came out, and the truth beside it, at the times of the bag."""
    timed = [(player.bag_time(record.received), record.topic, record.data) for record in records]
    with BagReader(found.path) as bag:
        if truth_topic in bag.topics:
            timed += [(time_ns, bag.topics[truth_topic], data)
                      for _, time_ns, data in bag.serialized([truth_topic])]
    if (path / 'metadata.yaml').is_file():
        shutil.rmtree(path)  # of an earlier replay into the same folder
    with BagWriter(path) as bag:
        for topic in {topic.name: topic for _, topic, _ in timed}.values():
            bag.add_topic(topic)
        for time_ns, topic, data in sorted(timed, key=lambda entry: entry[0]):
            bag.write_serialized(topic.name, time_ns, data)
