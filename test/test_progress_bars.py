"""Progress of a build where no terminal shows bars."""

from nerfmatch_ros.mapping.progress_bars import ProgressBars
import pytest


@pytest.mark.parametrize('shown', [True, False])
def test_progress_is_logged_now_and_then_by_one_process(shown, caplog):
    caplog.set_level('INFO', logger='nerfmatch_ros')
    with ProgressBars(shown=shown) as bars:
        report = bars.bar('matcher')
        for done in (0.1, 0.2, 1.0):
            report(done, {'coarse': 2.5})
    lines = [record.getMessage() for record in caplog.records]
    assert lines == (['matcher: 10 % coarse 2.5', 'matcher: 100 % coarse 2.5'] if shown else [])
