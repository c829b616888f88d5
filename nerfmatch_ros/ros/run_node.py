"""Runs nodes as a process: signals, clean end, exit code."""

from collections.abc import Callable, Sequence
import os
import signal
import sys
import time

from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.ros.managed_node import ManagedNode
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions

SAME_SIGNAL = 1.0  # seconds; a terminal and ros2 launch both pass one Ctrl-C on


class StopRequest:
    """SIGINT and SIGTERM: break off a start, end the running nodes; a later one ends at once."""

    def __init__(self, is_starting: Callable[[], bool]):
        """Take over both signals, for the main thread."""
        self.requested = False
        self._is_starting = is_starting
        self._first = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, number, _):
        if self.requested:
            if time.monotonic() - self._first > SAME_SIGNAL:
                os._exit(128 + number)
            return
        self.requested = True
        self._first = time.monotonic()
        if self._is_starting():
            raise KeyboardInterrupt


def run_nodes(
    makers: Sequence[Callable[[], ManagedNode]], name: str, args: list[str] | None = None,
) -> int:
    """
    Run nodes in one process until SIGINT or SIGTERM; give the exit code.

    makers: each gives a node; 1 is returned as soon as a node calls something `fatal`.
    """
    # The signals are handled here, as rclpy would close the context under a working thread.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    nodes: list[ManagedNode] = []
    stop = StopRequest(lambda: len(nodes) < len(makers) or any(node.starting for node in nodes))
    logger = rclpy.logging.get_logger(name)
    stopped, code = True, 0
    try:
        executor = SingleThreadedExecutor()
        for make in makers:
            nodes.append(make())
            executor.add_node(nodes[-1])
        while not stop.requested and not code:
            # A signal does not interrupt this wait: it is short instead.
            executor.spin_once(timeout_sec=0.2)
            if fatal := [node.fatal for node in nodes if node.fatal]:
                logger.fatal('; '.join(fatal))
                code = 1
        executor.shutdown()
    except KeyboardInterrupt:
        logger.info('stopped while starting')
    except NerfmatchError as error:
        logger.fatal(f'{type(error).__name__}: {error}')
        code = 1
    finally:
        stop.requested = True
        for node in nodes:
            stopped = node.close() and stopped
        rclpy.try_shutdown()
    if not stopped:
        print(f'{name}: a computation was left unfinished', file=sys.stderr, flush=True)
        os._exit(code)  # an interpreter that ends under a computing thread may crash
    return code
