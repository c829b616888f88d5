"""Forwards the log records of the core, which knows nothing of ROS, to the logger of a node."""

import logging

CORE_LOGGER = 'nerfmatch_ros'


class NodeLogHandler(logging.Handler):
    """Writes Python log records through a node, so that they reach /rosout."""

    def __init__(self, logger):
        """Write to this logger of a node; its own level decides what is shown."""
        super().__init__(logging.DEBUG)
        self._logger = logger

    def emit(self, record: logging.LogRecord):
        """Write one record."""
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
