"""A node of this package as a process of its own, on a domain that nothing else hears."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
import os
from pathlib import Path
import signal
import socket
import subprocess
import sys
from typing import Any

import nerfmatch_ros
from nerfmatch_ros.errors import NerfmatchError

PROFILE = 'fastdds_large_images.xml'
# Since Kilted, and before.
PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
STOP_SECONDS = 10.0
LAST_LINES = 12


class NodeProcess:
    """Runs `python -m module`; used as a context, or by its calls."""

    def __init__(
        self, module: str, log: Path, *, domain: int, name: str = 'node',
        parameters: Mapping[str, Any] | None = None, remappings: Mapping[str, str] | None = None,
    ):
        """
        Prepare; nothing runs yet.

        log: file for what the node prints, appended to at a restart; name: for error texts.
        """
        self.name = name
        self._log_path = Path(log)
        self._command = [sys.executable, '-m', module, '--ros-args']
        for parameter, value in (parameters or {}).items():
            self._command += ['-p', f'{parameter}:={_text(value)}']
        for topic, other in (remappings or {}).items():
            self._command += ['-r', f'{topic}:={other}']
        self._environment = {
            # One arena for all threads: see nerfmatch_ros/memory.py.
            'MALLOC_ARENA_MAX': '1', **os.environ, **own_environment(domain),
            'PYTHONPATH': _python_path()}
        self._process: subprocess.Popen | None = None

    def __enter__(self) -> 'NodeProcess':
        """Start it."""
        self.start()
        return self

    def __exit__(self, *_):
        """Stop it."""
        self.stop()

    def start(self) -> None:
        """Start the process; it takes a while to listen."""
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._log_path, 'ab') as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=subprocess.STDOUT)

    @property
    def pid(self) -> int | None:
        """Give its process number, None when it does not run."""
        return self._process.pid if self.running else None

    @property
    def running(self) -> bool:
        """Tell whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def check(self) -> None:
        """Raise with its last lines if it has ended."""
        if not self.running:
            code = None if self._process is None else self._process.returncode
            raise NerfmatchError(f'the {self.name} ended with code {code}{self.tail()}')

    def stop(self) -> None:
        """Stop it as Ctrl-C does, harder if that does not help."""
        if self.running:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(timeout=STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self.kill()

    def kill(self) -> None:
        """End it at once, as a crash would."""
        if self.running:
            self._process.kill()
        if self._process is not None:
            self._process.wait()

    def tail(self) -> str:
        """Give the last lines that it printed, for an error text."""
        lines = self._log_path.read_text(encoding='utf-8', errors='replace').splitlines()
        return f'; its last lines in {self._log_path}:\n' + '\n'.join(lines[-LAST_LINES:])


def own_domain() -> int:
    """Give a domain that nobody on this machine uses yet."""
    # Above 101 the ports of a domain may be taken by the system.
    first = os.getpid() * 7
    for domain in (1 + (first + k) % 100 for k in range(100)):
        if not _is_used(domain):
            return domain
    raise NerfmatchError('all ROS domains from 1 to 100 are in use here; end some nodes')


def _is_used(domain: int) -> bool:
    """Tell whether the first participant of a domain (RTPS 9.6.1.1) has its port already."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind(('', 7400 + 250 * domain + 10))
        except OSError:
            return True
    return False


def own_environment(domain: int) -> dict[str, str]:
    """
    Give the variables under which the processes of one run hear each other and nothing else.

    The middleware reads them when the first node of a process is made, so this process needs them
    too: what it sends lies in its own shared memory.
    """
    environment = {'ROS_DOMAIN_ID': str(domain), 'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST'}
    profile = transport_profile()
    if profile is not None and not any(name in os.environ for name in PROFILE_VARIABLES):
        older = os.environ.get('ROS_DISTRO') in ('humble', 'jazzy')
        environment[PROFILE_VARIABLES[older]] = str(profile)
    return environment


@contextmanager
def joined(domain: int) -> Iterator[None]:
    """Let this process hear the nodes of a run, for the time of the context."""
    before = dict(os.environ)
    os.environ.update(own_environment(domain))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def transport_profile() -> Path | None:
    """Give the file that makes room for images in shared memory, of work tree or installation."""
    package = Path(nerfmatch_ros.__file__).resolve().parent
    folders = [package.parent / 'config', Path(sys.prefix) / 'share/nerfmatch_ros/config']
    folders += [parent / 'share/nerfmatch_ros/config' for parent in package.parents]
    return next((folder / PROFILE for folder in folders if (folder / PROFILE).is_file()), None)


def _python_path() -> str:
    # The node runs the same code as this process, whether that is installed or a work tree.
    source = str(Path(nerfmatch_ros.__file__).resolve().parents[1])
    return os.pathsep.join([source, *filter(None, [os.environ.get('PYTHONPATH')])])


def _text(value: Any) -> str:
    """Write a value as YAML reads it back."""
    if isinstance(value, bool):
        return 'true' if value else 'false'
    return str(value)
