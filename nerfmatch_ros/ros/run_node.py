"""Runs a node as a process: signals, clean end, exit code."""

from collections.abc import Callable
import os
import signal
import sys

from nerfmatch_ros.errors import NerfmatchError
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.signals import SignalHandlerOptions


class StopRequest:
    """SIGINT and SIGTERM: break off the start, then end the running node, then nothing more."""

    def __init__(self):
        """Take over both signals, for the main thread."""
        self.requested = False
        self.starting = True
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._on_signal)

    def _on_signal(self, *_):
        # A terminal and ros2 launch may both signal; a second one must not break the clean-up.
        if self.requested:
            return
        self.requested = True
        if self.starting:
            raise KeyboardInterrupt


def run_node(make_node: Callable[[], object], name: str, args: list[str] | None = None) -> int:
    """
    Run a node until SIGINT or SIGTERM; give the exit code, 1 where it cannot start.

    make_node: gives the node; its `close()` ends it, False if a thread of it would not end.
    """
    # The signals are handled here, as rclpy would close the context under a working thread.
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    stop = StopRequest()
    logger = rclpy.logging.get_logger(name)
    node, stopped, code = None, True, 0
    try:
        node = make_node()
        stop.starting = False
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while not stop.requested:
            # A signal does not interrupt this wait: it is short instead.
            executor.spin_once(timeout_sec=0.2)
        executor.shutdown()
    except KeyboardInterrupt:
        logger.info('stopped while starting')
    except NerfmatchError as error:
        logger.fatal(f'{type(error).__name__}: {error}')
        code = 1
    finally:
        stop.requested, stop.starting = True, False
        if node is not None:
            stopped = node.close()
        rclpy.try_shutdown()
    if not stopped:
        print(f'{name}: a computation was left unfinished', file=sys.stderr, flush=True)
        os._exit(code)  # an interpreter that ends under a computing thread may crash
    return code
