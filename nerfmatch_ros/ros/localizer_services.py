"""The services of the localizer; those that wait are served by a node and thread of their own."""

from contextlib import suppress
import importlib
import threading
import time
import traceback
from typing import Any

from nerfmatch_ros.errors import MapError, NerfmatchError
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from std_srvs.srv import Empty, SetBool, Trigger

# Result codes of nav2_msgs/LoadMap: success, map does not exist, invalid data, invalid metadata.
LOADED, NO_MAP, INVALID_DATA, INVALID_METADATA, FAILED = 0, 1, 2, 3, 255
CODES = {'folder': NO_MAP, 'data': INVALID_DATA, 'description': INVALID_METADATA}
JOIN_SECONDS = 2.0  # for a map that is being loaded


class LocalizerServices:
    """Offers the services from configuration to clean-up."""

    def __init__(self, node):
        """node: the localizer node."""
        self._node = node
        self._closing = threading.Event()
        make = node.create_service
        self._services = [
            make(Empty, 'reinitialize_global_localization', self._reinitialize),
            make(Trigger, '~/reset', self._reset),
            make(SetBool, '~/pause', self._pause),
            make(Trigger, '~/save_pose', self._save_pose),
        ]
        nav2 = _nav2_services()
        if hasattr(nav2, 'SetInitialPose'):
            self._services.append(
                make(nav2.SetInitialPose, 'set_initial_pose', self._set_initial_pose))
        # Waiting in the executor of the node would hold up the images.
        self._waiting = rclpy.create_node(
            f'{node.get_name()}_services', context=node.context, namespace=node.get_namespace(),
            use_global_arguments=False, start_parameter_services=False, enable_rosout=False)
        own = self._waiting.create_service
        guard = node.unexpected.guard  # a call that fails is answered, too
        own(Trigger, node.resolve_service_name('~/relocalize'), guard(self._relocalize))
        load_map = node.resolve_service_name('~/load_map')
        if hasattr(nav2, 'LoadMap'):
            own(nav2.LoadMap, load_map, guard(self._load_map))
        else:
            own(Trigger, load_map, guard(self._load_map_of_parameter))
        self._wake = self._waiting.create_guard_condition(lambda: None)
        self._executor = SingleThreadedExecutor(context=node.context)
        self._executor.add_node(self._waiting)
        self._thread = threading.Thread(target=self._spin, name='services', daemon=True)
        self._thread.start()

    def close(self):
        """Take the services down."""
        self._closing.set()
        with self._node.attempted:
            self._node.attempted.notify_all()
        with suppress(RuntimeError):  # a context that has ended woke the thread by itself
            self._wake.trigger()
        self._thread.join(JOIN_SECONDS)
        self._node.unfinished.append(self._thread)
        self._executor.shutdown(timeout_sec=0)
        self._waiting.destroy_node()
        for service in self._services:
            self._node.destroy_service(service)

    def _spin(self):
        while not self._closing.is_set():
            try:
                self._executor.spin_once()
            except ExternalShutdownException:
                return
            except Exception:  # noqa: BLE001 - the other services go on
                if not self._closing.is_set():
                    self._node.get_logger().error(f'a service failed:\n{traceback.format_exc()}')

    def _reinitialize(self, _, response):
        self._node.reset('reinitialize_global_localization was called')
        return response

    def _reset(self, _, response):
        self._node.reset('~/reset was called')
        response.success, response.message = True, f'epoch {self._epoch()}'
        return response

    def _pause(self, request, response):
        self._node.paused = request.data
        if request.data and self._node.worker is not None:
            self._node.worker.slot.clear()
        response.success = True
        response.message = 'paused' if request.data else 'running'
        return response

    def _save_pose(self, _, response):
        start_pose = self._node.start_pose
        response.message = 'not configured' if start_pose is None else start_pose.save()
        response.success = not response.message
        return response

    def _set_initial_pose(self, request, response):
        self._node.take_initial_pose(request.pose)
        return response

    def _relocalize(self, _, response):
        """Forget the pose, answer with what the next image gives."""
        node = self._node
        if node.worker is None or node.paused:
            response.success, response.message = False, _why_no_answer(node)
            return response
        node.reset('~/relocalize was called')
        deadline = time.monotonic() + node.parameters.values.relocalize_timeout
        epoch = self._epoch()
        with node.attempted:
            node.attempted.wait_for(
                lambda: node.worker is None or answers(node.last_result, epoch),
                max(0.0, deadline - time.monotonic()))
        result = node.last_result
        if not answers(result, epoch):
            response.success = False
            response.message = _why_no_answer(node)
            return response
        estimate = result.estimate
        response.success = result.raw is not None and result.verdict != 'invalid'
        response.message = (
            f'{result.verdict}: {estimate.inliers} inliers of {estimate.matches} matches, '
            + (f'{estimate.reprojection_error:.2f} px, standard deviation '
               f'{1000 * estimate.position_std:.1f} mm' if response.success else result.reason))
        return response

    def _load_map(self, request, response):
        """Serve nav2_msgs/LoadMap; an old map stays if the new one is bad."""
        folder = request.map_url.removeprefix('file://')
        response.result = self._swap(folder)[0]
        return response

    def _load_map_of_parameter(self, _, response):
        """Serve Trigger: load the folder that the parameter map_path names now."""
        code, response.message = self._swap(self._node.parameters.values.map_path)
        response.success = code == LOADED
        return response

    def _swap(self, folder: str) -> tuple[int, str]:
        try:
            return LOADED, self._node.swap_map(folder)
        except MapError as error:
            code, text = CODES[error.part], str(error)
        except NerfmatchError as error:
            code, text = FAILED, str(error)
        except Exception as error:  # noqa: BLE001 - the old map goes on working
            code, text = FAILED, f'{type(error).__name__}: {error}'
        self._node.get_logger().error(f'map {folder} is not loaded, the old one stays: {text}')
        return code, text

    def _epoch(self) -> int:
        with self._node.lock:
            return self._node.pipeline.tracker.epoch


def answers(result: Any, epoch: int) -> bool:
    """Tell whether a frame was worked on in this epoch or a later one."""
    return result is not None and result.epoch >= epoch


def _why_no_answer(node: Any) -> str:
    """Say why no image was worked on while a service waited for one."""
    if node.worker is None:
        return 'the node is not active'
    if node.paused:
        return 'the node is paused; call ~/pause with data: false'
    text = node.last_drop[1]
    return (f'no image was worked on within {node.parameters.values.relocalize_timeout:g} s'
            + (f'; the last one was dropped: {text}' if text else ''))


def _nav2_services() -> Any:
    """Give nav2_msgs.srv where it is installed, else None."""
    try:
        return importlib.import_module('nav2_msgs.srv')
    except ImportError:
        return None
