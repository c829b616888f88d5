"""Runs nodes as a process: signals, clean end, exit code."""

from collections.abc import Callable, Sequence
import os
import signal
import sys
import time
import traceback

from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.memory import keep_freed_memory
from nerfmatch_ros.ros.managed_node import ManagedNode
from nerfmatch_ros.ros.ros_logging import Complaints
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

SAME_SIGNAL = 0.5  # seconds; a terminal and ros2 launch both pass one Ctrl-C on
REST = 0.02  # seconds; a fault that stays must not take a whole core


class StopRequest:
    """SIGINT and SIGTERM: break off a start, end the running nodes; a later one ends at once."""

    def __init__(self, is_starting: Callable[[], bool]):
        """Take over both signals, for the main thread."""
        self.requested = False
        self.code = 0  # with which the process ends
        self._is_starting = is_starting
        self._first: float | None = None  # time.monotonic() of the first signal
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_):
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif now - self._first > SAME_SIGNAL:
            os._exit(self.code)
        if not self.requested:
            self.requested = True
            if self._is_starting():
                raise KeyboardInterrupt


def run_nodes(
    makers: Sequence[Callable[[], ManagedNode]], name: str, args: list[str] | None = None,
) -> int:
    """
    Run nodes in one process until SIGINT or SIGTERM; give the exit code.

    makers: each gives a node; 1 is returned as soon as a node calls something `fatal`.
    """
    keep_freed_memory()  # before there are threads
    nodes: list[ManagedNode] = []
    stop = StopRequest(lambda: len(nodes) < len(makers) or any(node.starting for node in nodes))
    logger = rclpy.logging.get_logger(name)
    try:
        # The signals are handled here: rclpy would close the context under a working thread.
        rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
        executor, complaints = SingleThreadedExecutor(), Complaints(logger)
        for make in makers:
            nodes.append(make())
            executor.add_node(nodes[-1])
        while not stop.requested and not stop.code and rclpy.ok():
            _spin_once(executor, complaints)
            if fatal := [node.fatal for node in nodes if node.fatal]:
                logger.fatal('; '.join(fatal))
                stop.code = 1
        executor.shutdown()
    except KeyboardInterrupt:
        logger.info('stopped while starting')
    except NerfmatchError as error:
        logger.fatal(f'{type(error).__name__}: {error}')
        stop.code = 1
    finally:
        stop.requested = True
        stopped = all([node.close() for node in nodes])
        rclpy.try_shutdown()
    if not stopped:
        print(f'{name}: a computation was left unfinished', file=sys.stderr, flush=True)
        os._exit(stop.code)  # an interpreter that ends under a computing thread may crash
    return stop.code


def _spin_once(executor: SingleThreadedExecutor, complaints: Complaints):
    try:
        # A signal does not interrupt this wait: it is short instead.
        executor.spin_once(timeout_sec=0.2)
    except Exception:  # noqa: BLE001 - one message must not end the stream of poses
        complaints.error('callback', f'a callback failed:\n{traceback.format_exc()}')
        time.sleep(REST)
