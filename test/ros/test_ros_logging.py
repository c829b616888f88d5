"""What the core logs reaches the log of a node, once."""

import logging

from nerfmatch_ros.ros.ros_logging import CORE_LOGGER, forward_core_logs, stop_forwarding
import pytest


class Logger:
    """Stands for the logger of a node."""

    def __init__(self):
        self.lines = []

    def __getattr__(self, severity):
        return lambda text: self.lines.append((severity, text))


@pytest.mark.parametrize(('level', 'severity'), [
    (logging.INFO, 'info'), (logging.WARNING, 'warning'), (logging.ERROR, 'error'),
    (logging.CRITICAL, 'fatal')])
def test_a_record_of_the_core_keeps_its_severity(level, severity):
    logger = Logger()
    handler = forward_core_logs(logger)
    logging.getLogger(f'{CORE_LOGGER}.somewhere').log(level, 'text %d', 1)
    stop_forwarding(handler)
    assert logger.lines == [(severity, 'text 1')]


def test_of_two_nodes_in_one_process_one_writes_a_record_and_the_other_when_that_is_gone():
    first, second = Logger(), Logger()
    handlers = [forward_core_logs(first), forward_core_logs(second)]
    core = logging.getLogger(CORE_LOGGER)
    core.warning('both')
    stop_forwarding(handlers[0])
    core.warning('the second alone')
    stop_forwarding(handlers[1])
    core.warning('nobody')
    assert first.lines == [('warning', 'both')]
    assert second.lines == [('warning', 'the second alone')]
