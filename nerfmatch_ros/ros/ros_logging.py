"""What a node logs: records of the core, which knows nothing of ROS, and repeated complaints."""

import logging
import threading
import time

CORE_LOGGER = 'nerfmatch_ros'
MOST_KINDS = 256  # of complaints that are remembered; some hold names that others chose


class NodeLogHandler(logging.Handler):
    """
    Writes Python log records through a node, so that they reach /rosout.

    Of several nodes in one process only the first writes them: a record does not say whose it is.
    """

    def __init__(self, logger):
        """Write to this logger of a node; its own level decides what is shown."""
        super().__init__(logging.DEBUG)
        self._logger = logger

    def emit(self, record: logging.LogRecord):
        """Write one record."""
        handlers = logging.getLogger(CORE_LOGGER).handlers
        if next((item for item in handlers if isinstance(item, NodeLogHandler)), self) is not self:
            return
        text = self.format(record)
        # rclpy ties each calling line to one severity, hence a line for each.
        if record.levelno >= logging.CRITICAL:
            self._logger.fatal(text)
        elif record.levelno >= logging.ERROR:
            self._logger.error(text)
        elif record.levelno >= logging.WARNING:
            self._logger.warning(text)
        elif record.levelno >= logging.INFO:
            self._logger.info(text)
        else:
            self._logger.debug(text)


def forward_core_logs(logger) -> NodeLogHandler:
    """Send the core's records to this logger of a node; undo it with `stop_forwarding`."""
    handler = NodeLogHandler(logger)
    core = logging.getLogger(CORE_LOGGER)
    core.addHandler(handler)
    core.setLevel(logging.INFO)
    return handler


def stop_forwarding(handler: NodeLogHandler):
    """Undo `forward_core_logs`."""
    logging.getLogger(CORE_LOGGER).removeHandler(handler)


class Complaints:
    """
    Logs a complaint of each kind at most every few seconds; safe to call from any thread.

    rclpy's own throttling goes by the calling line, where one kind would silence another, and by
    a clock that stands still while simulated time does.
    """

    def __init__(self, logger, seconds: float = 5.0):
        """Write to this logger of a node."""
        self._logger, self._seconds = logger, seconds
        self._last: dict[str, float] = {}
        self._lock = threading.Lock()

    def warning(self, kind: str, text: str):
        """Warn, unless this kind was complained of a moment ago."""
        if self._due(kind):
            self._logger.warning(text)

    def error(self, kind: str, text: str):
        """Log an error, unless this kind was complained of a moment ago."""
        if self._due(kind):
            self._logger.error(text)

    def _due(self, kind: str) -> bool:
        now = time.monotonic()
        with self._lock:
            if now - self._last.get(kind, -self._seconds) < self._seconds:
                return False
            if len(self._last) >= MOST_KINDS:
                self._last.clear()
            self._last[kind] = now
            return True
