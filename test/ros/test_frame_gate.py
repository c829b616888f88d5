"""The gate of frames; rows 8 to 13 of the table of faults, as far as stamps and bytes tell."""

from dataclasses import replace
import tracemalloc

from hypothesis import given, settings
from hypothesis import strategies as st
from nerfmatch_ros.ros.frame_gate import (
    clock_fault,
    FrameGate,
    FrameGateOptions,
    picture_fault,
)
import numpy as np
import pytest

SECOND = 1_000_000_000
NOW = 1_403_715_273_262_142_976
KINDS = {'stamp_zero', 'duplicate', 'out_of_order', 'stale', 'future', 'rate', 'frozen'}


class Stream:
    """A gate, a clock that is set by hand, and frames that differ from one another."""

    def __init__(self, **options):
        self.seconds = 0.0  # of the steady clock
        self.gate = FrameGate(FrameGateOptions(**options), steady=lambda: self.seconds)
        self._count = 0

    def check(self, stamp, now=None, same=False, source=''):
        """Check a frame; give its kind of drop, '' if it passes."""
        self._count += not same
        drop = self.gate.check(stamp, stamp if now is None else now, self._count, source)
        if drop is None:
            return ''
        assert drop.kind in KINDS and len(drop.text) > 20
        self.text = drop.text
        return drop.kind


def test_frames_of_rising_stamps_pass():
    stream = Stream()
    assert [stream.check(NOW + i * SECOND // 30, NOW + i * SECOND // 30 + 20_000_000)
            for i in range(50)] == [''] * 50
    assert not stream.gate.restarted


@pytest.mark.parametrize('stamp', [0, -1, -SECOND])
def test_row_10_a_frame_without_a_stamp_is_dropped_and_changes_nothing(stamp):
    stream = Stream(max_image_age=0.0)
    assert stream.check(NOW) == ''
    assert stream.check(stamp, NOW) == 'stamp_zero'
    assert 'header.stamp' in stream.text and not stream.gate.restarted
    assert stream.check(NOW + 1) == ''


def test_row_9_the_same_stamp_again_is_a_duplicate():
    stream = Stream()
    assert [stream.check(NOW) for _ in range(3)] == ['', 'duplicate', 'duplicate']
    assert stream.check(NOW + 1) == ''


def test_a_camera_without_noise_never_counts_as_frozen_if_that_is_set():
    stream = Stream(frozen_after=0)
    assert not any(stream.check(NOW + i, same=True) for i in range(200))


def test_row_9_a_frozen_camera_is_noticed_after_ten_equal_frames_and_recovers():
    stream = Stream()
    stamps = iter(range(NOW, NOW + 100 * SECOND, SECOND // 10))
    assert stream.check(next(stamps)) == ''
    assert [stream.check(next(stamps), same=True) for _ in range(9)] == [''] * 9
    assert [stream.check(next(stamps), same=True) for _ in range(5)] == ['frozen'] * 5
    assert '15 frames in a row have the same bytes' in stream.text
    # A frozen camera is one whose stamps go on; they are remembered.
    assert stream.check(NOW + SECOND) == 'out_of_order'
    assert stream.check(next(stamps)) == ''
    assert stream.check(next(stamps), same=True) == ''


def test_row_9_equal_frames_that_are_not_in_a_row_pass():
    stream = Stream()
    for i in range(40):
        assert stream.gate.check(NOW + i, NOW, i % 2) is None


@pytest.mark.parametrize('behind', [1, 999_999_999])
def test_row_11_a_frame_that_was_overtaken_is_out_of_order_and_no_new_run(behind):
    stream = Stream(max_image_age=0.0)
    assert stream.check(NOW) == ''
    assert stream.check(NOW - behind, NOW) == 'out_of_order'
    assert not stream.gate.restarted
    assert stream.check(NOW, NOW) == 'duplicate'  # it is still measured against the newest
    assert stream.check(NOW + 1) == ''


def test_row_12_stamps_that_go_back_by_a_second_are_a_new_run():
    stream = Stream()
    for start in (NOW, NOW - SECOND, NOW - 100 * SECOND):
        for i in range(3):
            assert stream.check(start + i) == ''
            assert stream.gate.restarted == (start != NOW and i == 0)
        assert stream.check(start + 2) == 'duplicate' and not stream.gate.restarted


def test_row_12_a_last_frame_of_the_old_run_does_not_spoil_the_new_one():
    stream = Stream()
    assert stream.check(NOW) == ''
    start = NOW - 60 * SECOND
    # The clock of the looping bag has gone back already.
    assert stream.check(NOW + 1, now=start) == 'future' and not stream.gate.restarted
    assert stream.check(start) == '' and stream.gate.restarted
    assert stream.check(start + 1) == '' and not stream.gate.restarted


def test_row_12_a_single_old_frame_is_stale_and_no_new_run():
    stream = Stream()
    assert stream.check(NOW) == ''
    assert stream.check(NOW - 5 * SECOND, NOW) == 'stale' and not stream.gate.restarted
    assert stream.check(NOW + 1) == ''


def test_row_12_after_a_jump_forward_frames_pass_as_before():
    stream = Stream(max_update_rate=10.0)
    assert stream.check(NOW) == ''
    stream.seconds += 0.1
    after = NOW + 3600 * SECOND  # a pause, or the computer slept; the steady clock did not run
    assert stream.check(NOW + 1, after) == 'stale'
    assert stream.check(after) == '' and not stream.gate.restarted
    stream.seconds += 0.1
    assert stream.check(after + SECOND // 10) == ''


def test_row_12_after_a_reset_any_stamp_passes_and_is_no_new_run():
    stream = Stream()
    for i in range(10):
        stream.check(NOW + i, same=True)
    stream.gate.reset()
    assert stream.check(NOW - 9 * SECOND, same=True) == '' and not stream.gate.restarted


def test_a_frame_may_be_as_old_as_max_image_age_and_slightly_ahead():
    stream = Stream(max_image_age=0.5)
    assert stream.check(NOW, NOW + SECOND // 2) == ''
    assert stream.check(NOW + 1, NOW + SECOND // 2 + 2) == 'stale'
    assert 'max_image_age' in stream.text and 'use_sim_time' not in stream.text
    assert stream.check(NOW + SECOND // 10, NOW) == ''
    assert stream.check(NOW + SECOND // 10 + 2, NOW) == 'future'
    assert 'use_sim_time' not in stream.text


def test_the_age_is_not_looked_at_where_max_image_age_is_0():
    stream = Stream(max_image_age=0.0)
    assert stream.check(NOW - 10**5 * SECOND, NOW) == ''


def test_row_13_a_bag_without_simulated_time_is_told_to_set_it():
    stream = Stream()
    assert stream.check(NOW - 10**8 * SECOND, NOW) == 'stale'
    assert 'set use_sim_time to true' in stream.text


def test_row_13_simulated_time_without_a_clock_is_named():
    stream = Stream()
    assert stream.check(NOW, now=0) == 'future'
    assert 'nobody publishes /clock' in stream.text
    stream = Stream()
    assert stream.check(NOW, now=5 * SECOND) == 'future'
    assert 'use_sim_time' in stream.text


def test_a_frame_that_waited_can_be_asked_about_again():
    options = FrameGateOptions(max_image_age=0.5)
    assert clock_fault(NOW, NOW + SECOND // 4, options) is None
    assert clock_fault(NOW, NOW + SECOND, options).kind == 'stale'


@pytest.mark.parametrize('camera, limit, expected', [
    (30, 10, 10), (30, 20, 20), (30, 30, 30), (30, 100, 30), (30, 29, 29), (1000, 15, 15),
    (5, 0.5, 0.5), (30, 0, 30)])
@pytest.mark.parametrize('jitter', [0.0, 0.2])
def test_the_rate_stays_below_its_limit_and_is_nearly_reached(camera, limit, expected, jitter):
    stream = Stream(max_update_rate=float(limit))
    rng = np.random.default_rng(0)
    passed = []
    duration = 40
    for i in range(duration * camera):
        stream.seconds = 1000 + (i + jitter * rng.random()) / camera
        kind = stream.check(NOW + i * SECOND // camera)
        assert kind in ('', 'rate')
        if not kind:
            passed.append(stream.seconds)
    assert 0.96 * duration * expected <= len(passed) <= duration * expected + 1
    if limit and jitter == 0:
        assert min(np.diff(passed)) > 0.5 / limit - 1e-9


def test_a_frame_that_comes_too_soon_counts_as_seen():
    stream = Stream(max_update_rate=1.0)
    assert stream.check(NOW) == ''
    assert stream.check(NOW + 1) == 'rate' and 'max_update_rate' in stream.text
    stream.seconds += 1.0
    assert stream.check(NOW + 1) == 'duplicate'
    assert stream.check(NOW + 2) == ''


def test_options_may_change_while_it_runs():
    stream = Stream(max_update_rate=0.01)
    assert stream.check(NOW) == ''
    stream.seconds += 0.1
    assert stream.check(NOW + 1) == 'rate'
    stream.gate.options = replace(stream.gate.options, max_update_rate=20.0)
    assert stream.check(NOW + 2) == ''  # at once, not after the hundred seconds of before
    stream.gate.options = replace(stream.gate.options, max_update_rate=0.0, max_image_age=0.1)
    assert stream.check(NOW + 3, NOW + SECOND) == 'stale'


def test_each_camera_of_a_rig_has_stamps_of_its_own():
    stream = Stream()
    for i in range(20):
        for source in ('left', 'right'):
            assert stream.check(NOW + i, source=source) == ''
    assert stream.check(NOW + 19, source='left') == 'duplicate'
    # When the bag loops, the first frame of either camera is the one new run of both.
    assert stream.check(NOW - 9 * SECOND, source='right') == '' and stream.gate.restarted
    assert stream.check(NOW - 9 * SECOND, source='left') == '' and not stream.gate.restarted


def test_cameras_of_ever_new_names_do_not_fill_the_memory():
    stream = Stream()
    for i in range(2000):
        assert stream.check(NOW, source=str(i)) == ''
    tracemalloc.start()
    for i in range(2000, 20_000):
        stream.gate.check(NOW, NOW, i, str(i))
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert kept < 100_000
    assert stream.check(NOW, source='19999') == 'duplicate'


frames = st.tuples(
    st.integers(-2, 4 * 10**9) | st.integers(-2**63, 2**63), st.integers(0, 4 * 10**9),
    st.integers(0, 2), st.sampled_from(['', 'left']), st.floats(0, 5))


@settings(deadline=None, max_examples=200)
@given(st.lists(frames, max_size=30), st.sampled_from([0.0, 0.5, 60.0]),
       st.sampled_from([0.0, 0.5, 10.0, 1e-3]), st.integers(0, 4))
def test_row_9_to_12_stamps_that_pass_rise_within_a_run_whatever_comes(
        sequence, age, rate, frozen_after):
    stream = Stream(max_image_age=age, max_update_rate=rate, frozen_after=frozen_after)
    newest = {}
    for stamp, now, fingerprint, source, pause in sequence:
        stream.seconds += pause
        drop = stream.gate.check(stamp, now, fingerprint, source)
        if stream.gate.restarted:
            assert stamp <= newest[source] - SECOND
            newest = {}
        if drop is None:
            assert stamp > newest.get(source, 0)
            assert stamp - now <= 0.1 * SECOND + 1
            assert age == 0 or now - stamp <= age * SECOND + 1
        else:
            assert drop.kind in KINDS
        if drop is None or drop.kind in ('rate', 'frozen'):
            newest[source] = stamp


def textured(low, high, shape=(120, 160, 3), seed=0):
    return np.random.default_rng(seed).integers(low, high, shape, np.uint8)


@pytest.mark.parametrize('picture, fault', [
    (np.zeros((120, 160, 3), np.uint8), 'dark'),
    (textured(0, 9), 'dark'),  # the noise of a covered lens
    (np.full((120, 160, 3), 255, np.uint8), 'saturated'),
    (textured(250, 256), 'saturated'),
    (np.full((120, 160, 3), 128, np.uint8), 'flat'),
    (np.full((120, 160, 3), (255, 0, 0), np.uint8), 'flat'),
    (textured(126, 130), 'flat'),
    (textured(0, 256), ''), (textured(5, 60), ''), (textured(180, 256), ''),
], ids=range(10))
def test_row_8_a_picture_that_shows_nothing_is_named(picture, fault):
    assert picture_fault(picture) == fault


def test_row_8_a_blurred_picture_is_left_to_the_matcher():
    rows, columns = np.mgrid[:480, :640]
    gradient = np.stack((columns // 8, rows // 6, 60 + columns // 16), axis=-1).astype(np.uint8)
    assert picture_fault(gradient) == ''


def test_row_8_a_dark_room_with_a_lamp_or_a_window_may_do():
    picture = textured(0, 9)
    picture[20:50, 30:60] = textured(100, 256, (30, 30, 3))
    assert picture_fault(picture) == ''
    assert picture_fault(255 - picture) == ''


def test_row_8_the_period_of_a_pattern_is_not_taken_for_a_flat_picture():
    for period in (2, 4, 8, 10, 16, 64):
        rows, columns = np.mgrid[:480, :640]
        checks = ((rows // (period // 2) + columns // (period // 2)) % 2 * 200).astype(np.uint8)
        assert picture_fault(checks[..., None].repeat(3, axis=2)) == ''


def test_row_8_the_colours_alone_may_show_something():
    # Equal brightness everywhere, in red and green.
    picture = np.zeros((60, 80, 3), np.uint8)
    picture[:, ::2, 0] = picture[:, 1::2, 1] = 120
    assert picture_fault(picture) == ''
    faint = np.full((60, 80, 3), 120, np.uint8)
    faint[:, ::2, 2] += 6
    assert picture_fault(faint) == ''


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(0, 255), st.integers(1, 256),
       st.integers(0, 99))
def test_row_8_any_picture_is_judged_equally_twice(height, width, low, span, seed):
    picture = textured(low, min(low + span, 256), (height, width, 3), seed)
    before = picture.copy()
    fault = picture_fault(picture)
    assert fault in ('', 'dark', 'saturated', 'flat')
    assert picture_fault(picture[:, ::-1][:, ::-1]) == fault
    np.testing.assert_array_equal(picture, before)
