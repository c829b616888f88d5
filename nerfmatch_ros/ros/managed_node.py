"""A lifecycle node that says why a transition failed and can start by itself."""

from collections.abc import Callable
import threading
import traceback
from typing import Any

from nerfmatch_ros.errors import NerfmatchError
from nerfmatch_ros.ros.manager_bond import break_bond, form_bond
from nerfmatch_ros.ros.unexpected_errors import UnexpectedErrors
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR
PATIENCE = 4.0  # seconds that a node waits for what it computes; managers lose theirs after 5
LAST_PATIENCE = 2.0  # seconds, when the process ends
STEADY = Clock(clock_type=ClockType.STEADY_TIME)  # runs while simulated time stands still


class ManagedNode(LifecycleNode):
    """
    Calls `start_up`, `begin`, `halt`, `release` of a subclass at its transitions.

    rclpy swallows what a transition raises; here it is logged, and the transition fails in a way
    that can be tried again. `halt` and `release` must be safe to call at any time, also twice.
    What a callback raises is logged and counted, where rclpy would end the process.
    """

    unexpected: UnexpectedErrors | None = None  # not there yet for callbacks of rclpy's own

    def __init__(self, name: str, **options):
        """Construct; options: of rclpy's LifecycleNode."""
        super().__init__(name, **options)
        self.unexpected = UnexpectedErrors(self.get_logger())
        self.failure = ''  # why the last transition failed
        self.fatal = ''  # why the process has to end with an error; '' while all is well
        self.patience = PATIENCE
        self.starting = False  # a transition that may take long is under way
        self.unfinished: list[threading.Thread] = []  # which may have outlasted their part
        self._bond: Any = None  # with a lifecycle manager, while active

    def start_up(self):
        """Configure: acquire what the node needs; raise NerfmatchError to refuse."""

    def begin(self):
        """Activate: listen and publish."""

    def halt(self):
        """Deactivate: stop listening and publishing."""

    def release(self):
        """Clean up: let go of what `start_up` acquired."""

    def now_ns(self) -> int:
        """Give the time of the node's clock, which may be simulated."""
        return self.get_clock().now().nanoseconds

    def create_subscription(self, message_type: Any, topic: str, callback: Callable, *arguments,
                            **options):
        """Subscribe as rclpy does, with a callback that outlives what it raises."""
        return super().create_subscription(
            message_type, topic, self._guarded(callback), *arguments, **options)

    def create_timer(self, period: float, callback: Callable, *arguments, **options):
        """Make a timer as rclpy does, with a callback that outlives what it raises."""
        return super().create_timer(period, self._guarded(callback), *arguments, **options)

    def create_service(self, service_type: Any, name: str, callback: Callable, *arguments,
                       **options):
        """Offer a service as rclpy does, with a callback that outlives what it raises."""
        return super().create_service(
            service_type, name, self._guarded(callback), *arguments, **options)

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
        return self._attempt('activate', self._begin, super().on_activate, state,
                             undo=self._halt)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop; what is being computed is finished and dropped."""
        # After an error the node is no longer active, so it must not count as such.
        return self._attempt('deactivate', self._halt, super().on_deactivate, state, failed=ERROR)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything."""
        return self._attempt('clean up', self._end, super().on_cleanup, state, failed=ERROR)

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
        self.patience = LAST_PATIENCE
        for step in (self._halt, self.release):
            self._attempt('end', step, lambda _: SUCCESS, None)
        self.destroy_node()
        # It holds on to the node, which others would go on seeing until the memory is cleared up.
        self._state_machine = None
        return not self._is_computing()

    def _guarded(self, callback: Callable) -> Callable:
        return callback if self.unexpected is None else self.unexpected.guard(callback)

    def _is_computing(self) -> bool:
        self.unfinished = [thread for thread in self.unfinished if thread.is_alive()]
        return bool(self.unfinished)

    def _begin(self):
        if self._is_computing():
            raise NerfmatchError('what was computed before the node was deactivated is not '
                                 'finished; activate the node again in a while')
        self.begin()
        self._bond = form_bond(self, self.get_parameter('bond_heartbeat_period').value)

    def _halt(self):
        try:
            self.halt()
        finally:
            bond, self._bond = self._bond, None
            break_bond(self, bond)

    def _end(self):
        try:
            self._halt()
        finally:
            self.release()

    def _attempt(
        self, what: str, action: Callable[[], None], entities: Callable, state, *,
        undo: Callable[[], None] | None = None, failed: TransitionCallbackReturn = FAILURE,
    ) -> TransitionCallbackReturn:
        """Act, then let the managed publishers follow; log and undo what failed."""
        try:
            action()
            result = entities(state)
        except NerfmatchError as error:
            self.get_logger().error(f'cannot {what}: {error}')
            self.failure = str(error)
            result = failed
        except Exception as error:  # noqa: BLE001 - rclpy would swallow it
            self.get_logger().error(f'cannot {what}:\n{traceback.format_exc()}')
            self.failure = f'{type(error).__name__}: {error}'
            result = failed
        if result != SUCCESS and undo is not None:
            self._attempt(f'undo {what}', undo, lambda _: SUCCESS, None)
        return result
