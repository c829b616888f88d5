"""A lifecycle node that says why a transition failed and can start by itself."""

from collections.abc import Callable
import traceback

from nerfmatch_ros.errors import NerfmatchError
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
STEADY = Clock(clock_type=ClockType.STEADY_TIME)  # runs while simulated time stands still


class ManagedNode(LifecycleNode):
    """
    Calls `start_up`, `begin`, `halt`, `release` of a subclass at its transitions.

    rclpy swallows what a transition raises; here it is logged, and the transition fails in a way
    that can be tried again. `halt` and `release` must be safe to call at any time, also twice.
    """

    def __init__(self, name: str, **options):
        """Construct; options: of rclpy's LifecycleNode."""
        super().__init__(name, **options)
        self.failure = ''  # why the last transition failed
        self.fatal = ''  # why the process has to end with an error; '' while all is well
        self.starting = False  # a transition that may take long is under way

    def start_up(self):
        """Configure: acquire what the node needs; raise NerfmatchError to refuse."""

    def begin(self):
        """Activate: listen and publish."""

    def halt(self):
        """Deactivate: stop listening and publishing."""

    def release(self):
        """Clean up: let go of what `start_up` acquired."""

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Acquire everything or nothing."""
        self.starting = True
        try:
            return self._attempt('configure', self.start_up, super().on_configure, state,
                                 undo=self.release)
        finally:
            self.starting = False

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Start, or stay inactive."""
        return self._attempt('activate', self.begin, super().on_activate, state, undo=self.halt)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop; what is being computed is finished and dropped."""
        return self._attempt('deactivate', self.halt, super().on_deactivate, state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        return self._attempt('clean up', self._end, super().on_cleanup, state)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop and release everything."""
        return self._attempt('shut down', self._end, super().on_shutdown, state)

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, so that the node can be configured again."""
        self._attempt('recover', self._end, super().on_error, state)
        return SUCCESS

    def start_automatically(self):
        """Configure and activate as soon as the node is spun; a failure ends the process."""
        timer = None

        def start():
            timer.cancel()
            self.destroy_timer(timer)
            if self.trigger_configure() != SUCCESS or self.trigger_activate() != SUCCESS:
                self.fatal = self.failure

        timer = self.create_timer(0.0, start, clock=STEADY)

    def close(self) -> bool:
        """End the node in any state; False if a thread of it would not stop in time."""
        for step in (self.halt, self.release):
            self._attempt('end', step, lambda _: SUCCESS, None)
        self.destroy_node()
        return True

    def _end(self):
        self.halt()
        self.release()

    def _attempt(
        self, what: str, action: Callable[[], None], entities: Callable, state, *,
        undo: Callable[[], None] | None = None,
    ) -> TransitionCallbackReturn:
        """Act, then let the managed publishers follow; log and undo what failed."""
        try:
            action()
            result = entities(state)
        except NerfmatchError as error:
            self.get_logger().error(f'cannot {what}: {error}')
            self.failure = str(error)
            result = FAILURE
        except Exception as error:  # noqa: BLE001 - rclpy would swallow it
            self.get_logger().error(f'cannot {what}:\n{traceback.format_exc()}')
            self.failure = f'{type(error).__name__}: {error}'
            result = FAILURE
        if result != SUCCESS and undo is not None:
            self._attempt(f'undo {what}', undo, lambda _: SUCCESS, None)
        return result
