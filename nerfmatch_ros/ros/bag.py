"""
ROS 2 bags, written and read with the library rosbags, so that no ROS installation is needed.

Written as mcap, with the metadata of version 8: the newest that ROS 2 Humble reads.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
import errno
import os
from pathlib import Path
import shutil
import struct
import tempfile
from typing import Any

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros.bag_faults import fault_of, REPAIR, SUFFIXES, ZSTD_MAGIC
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import Reader, ReaderError, StoragePlugin, Writer, WriterError
from rosbags.serde import SerdeError
from rosbags.typesys import get_typestore, Stores

METADATA_VERSION = 8
TYPES = get_typestore(Stores.ROS2_KILTED)
_UNLIMITED = QosTime(sec=9223372036, nsec=854775807)  # RMW_DURATION_INFINITE
# What a message that was cut or overwritten makes the library raise.
_UNREADABLE = (ReaderError, SerdeError, OSError, ValueError, TypeError, LookupError, struct.error)


@dataclass(frozen=True)
class BagTopic:
    """A topic of a bag, and how its publisher offered it."""

    name: str
    type: str  # such as sensor_msgs/msg/Image
    latched: bool = False  # transient local: late subscribers get the last message
    best_effort: bool = False
    depth: int = 10  # of the publisher's queue


class BagWriter:
    """
    Writes a bag, a folder of its own; used as a context.

    It has another name until it is whole: after an error nothing is left of it.
    """

    def __init__(self, path: Path):
        """Refuse a path that is taken."""
        self.path = Path(path)
        if self.path.exists():
            raise DataError(f'the bag {self.path} exists; remove it or write another one')
        self._temporary = self.path.with_name(f'.{self.path.name}.{os.getpid()}')
        # The library names the file inside after its folder, so that has the final name already.
        self._writer = Writer(self._temporary / self.path.name, version=METADATA_VERSION,
                              storage_plugin=StoragePlugin.MCAP)
        self._connections = {}

    def __enter__(self) -> 'BagWriter':
        """Begin the file."""
        self._temporary.mkdir(parents=True)
        self._writer.open()
        return self

    def __exit__(self, kind, *_):
        """Finish the bag, or remove it after an error."""
        try:
            if kind is not None:
                self._writer.abort()
                return
            self._writer.close()
            try:
                os.rename(self._temporary / self.path.name, self.path)
            except OSError as error:
                raise DataError(f'the bag {self.path} cannot be written: {error}') from error
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def add_topic(self, topic: BagTopic) -> None:
        """Declare a topic; before messages of it are written."""
        if topic.name in self._connections:
            raise DataError(f'topic {topic.name} is declared twice')
        self._connections[topic.name] = self._writer.add_connection(
            topic.name, topic.type, typestore=TYPES, offered_qos_profiles=[_offered(topic)])

    def write(self, name: str, time_ns: int, message: Any) -> None:
        """Add a message of the library's own classes, received at a time."""
        data = TYPES.serialize_cdr(message, self._connections[name].msgtype)
        self.write_serialized(name, time_ns, data)

    def write_serialized(self, name: str, time_ns: int, data: bytes | memoryview) -> None:
        """Add a message as it travels (CDR)."""
        try:
            self._writer.write(self._connections[name], time_ns, data)
        except (WriterError, OSError) as error:
            raise DataError(f'the bag {self.path} cannot be written: {error}') from error


class BagReader:
    """Reads a bag, a folder or a single mcap or db3 file; used as a context."""

    def __init__(self, path: Path):
        """Prepare; nothing is opened yet."""
        self.path = Path(path)
        self.topics: dict[str, BagTopic] = {}
        self.counts: dict[str, int] = {}

    def __enter__(self) -> 'BagReader':
        """Open it and read which topics it has."""
        if self.path.suffix == '.bag':
            raise DataError(f'the bag {self.path} is one of ROS 1; convert it with '
                            f'`rosbags-convert --src {self.path} --dst {self.path.stem}`')
        try:
            self._reader = Reader(_storage(self.path))
            self._reader.open()
        except Exception as error:  # noqa: BLE001 - sqlite, lz4 and zstd have errors of their own
            remedy = ''
            if self.path.exists():
                remedy = f'; {fault_of(self.path) or REPAIR}'
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                remedy = (f'; a compressed bag is unpacked into {tempfile.gettempdir()}, make '
                          'room there or name another folder in TMPDIR')
            raise DataError(f'the bag {self.path} cannot be read: {error}{remedy}') from error
        for connection in self._reader.connections:
            # A topic that was recorded from several publishers is there several times.
            self.topics.setdefault(connection.topic, _topic_of(connection))
            self.counts[connection.topic] = (
                self.counts.get(connection.topic, 0) + connection.msgcount)
        return self

    def __exit__(self, *_):
        """Close the files."""
        self._reader.close()

    def names_of(self, *types: str) -> list[str]:
        """Give the names of the topics that have one of the types and a message."""
        return [name for name, topic in sorted(self.topics.items())
                if topic.type in types and self.counts[name]]

    def serialized(self, names: Iterable[str]) -> Iterator[tuple[str, int, bytes]]:
        """Give name, time of reception in ns and bytes (CDR) of every message, in that order."""
        wanted = set(names)
        connections = [connection for connection in self._reader.connections
                       if connection.topic in wanted
                       and connection.msgtype == self.topics[connection.topic].type]
        if not connections:
            return
        read = 0
        try:
            for connection, time_ns, data in self._reader.messages(connections):
                read += 1
                # Without the metadata of a bag nothing else says that messages are compressed.
                if data[:4] == ZSTD_MAGIC:
                    data = _decompressed(data)
                yield connection.topic, time_ns, data
        except Exception as error:  # noqa: BLE001 - sqlite, lz4 and zstd have errors of their own
            whole = sum(connection.msgcount for connection in connections)
            raise DataError(
                f'the bag {self.path} is damaged: {error}; {read} of {whole} messages on '
                f'{", ".join(sorted(wanted))} could be read; {REPAIR}, or record it again',
            ) from error
        if not read and any(connection.msgcount for connection in connections):
            raise DataError(f'the bag {self.path} has a metadata.yaml that does not describe its '
                            'files; write it anew with `ros2 bag reindex`')

    def messages(self, names: Iterable[str]) -> Iterator[tuple[str, int, Any]]:
        """Give the same with the messages decoded, as objects of the library's own classes."""
        for name, time_ns, data in self.serialized(names):
            yield name, time_ns, decoded(data, self.topics[name].type)


def decoded(data: bytes, message_type: str) -> Any:
    """Decode a message (CDR) of one of the types that come with ROS 2."""
    try:
        return TYPES.deserialize_cdr(data, message_type)
    except (SerdeError, *_UNREADABLE) as error:
        raise DataError(f'a message of {len(data)} bytes is no {message_type}: {error}') from error


def _decompressed(data: bytes) -> bytes:
    """Undo the compression of a message with what the library does it with."""
    from rosbags.rosbag2.reader import zstd  # late: no other bags need it
    return zstd.decompress(data)


def _storage(path: Path) -> Path:
    """Give what is opened: of a folder that a crash left without metadata its one file."""
    if path.is_dir() and not (path / 'metadata.yaml').exists():
        files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
        if len(files) == 1:
            return files[0]
        if not files:
            raise FileNotFoundError(f'it holds neither a metadata.yaml nor a file of '
                                    f'{" or ".join(SUFFIXES)}')
    return path


def _offered(topic: BagTopic) -> Qos:
    return Qos(
        history=QosHistory.KEEP_LAST, depth=topic.depth,
        reliability=(
            QosReliability.BEST_EFFORT if topic.best_effort else QosReliability.RELIABLE),
        durability=(
            QosDurability.TRANSIENT_LOCAL if topic.latched else QosDurability.VOLATILE),
        deadline=_UNLIMITED, lifespan=_UNLIMITED, liveliness=QosLiveliness.AUTOMATIC,
        liveliness_lease_duration=_UNLIMITED, avoid_ros_namespace_conventions=False)


def _topic_of(connection: Any) -> BagTopic:
    offered = (connection.ext.offered_qos_profiles or [None])[0]
    if offered is None:
        # A bag that says nothing of it: what any subscriber accepts.
        return BagTopic(connection.topic, connection.msgtype,
                        latched=connection.topic.endswith('/tf_static'))
    return BagTopic(
        connection.topic, connection.msgtype,
        latched=offered.durability is QosDurability.TRANSIENT_LOCAL,
        best_effort=offered.reliability is QosReliability.BEST_EFFORT,
        depth=max(1, min(offered.depth, 1000)))
