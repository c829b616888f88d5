"""The camera of the images of a bag: of their camera_info, or the one that is given."""

from collections.abc import Sequence

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros.bag_scan import BagScan
from nerfmatch_ros.ros.bag_topics import info_topic, is_rectified
from nerfmatch_ros.ros.camera_info_log import CameraInfoLog
from nerfmatch_ros.ros.camera_messages import camera_from_info, fit_to_image
from nerfmatch_ros.ros.image_messages import FrameRejected
import numpy as np

REMEDY = 'give the camera with --camera FILE.yaml'


class BagCamera:
    """What took each image; cameras of different settings follow one another."""

    def __init__(self, cameras: list[Camera], of_image: np.ndarray, source: str,
                 notes: Sequence[str] = ()):
        """cameras: all of them; of_image: (N,) which took the image of a number in the bag."""
        self._cameras, self._of_image = cameras, of_image
        self.source, self.notes = source, tuple(notes)
        self._fitted: dict[tuple[int, int, int], Camera] = {}

    @staticmethod
    def of(scan: BagScan, frame_id: str, given: Camera | None) -> 'BagCamera':
        """
        Take the given camera, or those of the camera_info of the images.

        frame_id: of the images; a camera_info that has it belongs to them whatever its topic.
        """
        if given is not None:
            return BagCamera([given], np.zeros(len(scan.images), np.int64), '--camera')
        topic = _info_topic(scan, frame_id)
        log, notes = scan.infos[topic], []
        allowed = range(len(log.messages))
        if len(set(log.frames)) > 1:
            own = [k for k in allowed if log.frames[k] == frame_id]
            notes.append(_shared(topic, log, frame_id, found=bool(own)))
            allowed = own or allowed
        cameras, faults = {}, []
        for number in allowed:
            try:
                cameras[number] = camera_from_info(
                    log.messages[number], rectified=is_rectified(scan.image_topic))
            except DataError as error:
                faults.append(str(error))
        if not cameras:
            raise DataError(f'no camera_info on {topic} of the bag {scan.path} can be used: '
                            f'{faults[0]}; {REMEDY}')
        chosen = log.chosen(
            set(cameras), np.array([image.received_ns for image in scan.images], np.int64),
            np.array([image.stamp_ns for image in scan.images], np.int64))
        return BagCamera(list(cameras.values()), np.searchsorted(list(cameras), chosen), topic,
                         notes)

    @property
    def first(self) -> Camera:
        """The camera of the beginning."""
        return self._cameras[self._of_image[0]]

    def of_picture(self, number: int, width: int, height: int) -> Camera:
        """Give the camera of the image of a number in the bag, or raise FrameRejected.

        width, height: of its picture.
        """
        key = int(self._of_image[number]), width, height
        if key not in self._fitted:
            try:
                self._fitted[key] = fit_to_image(self._cameras[key[0]], width, height)
            except DataError as error:
                raise FrameRejected('bad_size', f'{self.source}: {error}') from error
        return self._fitted[key]


def _shared(topic: str, log: CameraInfoLog, frame_id: str, *, found: bool) -> str:
    """Say what is taken of a topic that several cameras share."""
    several = ', '.join(f"'{frame}'" for frame in sorted(set(log.frames)))
    if found:
        return f"{topic} has camera_info of the frames {several}; that of '{frame_id}' was taken"
    return (f"{topic} has camera_info of the frames {several}, none of '{frame_id}' as the images "
            f'have; all were taken as they came. If that is wrong, {REMEDY}')


def _info_topic(scan: BagScan, frame_id: str) -> str:
    """Give the topic of the camera_info: the one beside the images, or the one of their frame."""
    name = info_topic(scan.image_topic)
    if name in scan.infos:
        return name
    fitting = [topic for topic, infos in sorted(scan.infos.items())
               if frame_id and frame_id in infos.frames]
    if len(fitting) == 1:
        return fitting[0]
    found = ', '.join(f"{topic} (frame '{infos.frames[0]}')"
                      for topic, infos in sorted(scan.infos.items())) or 'on no topic'
    raise DataError(
        f'the bag {scan.path} has no camera_info on {name}, where that of {scan.image_topic} '
        f"(frame '{frame_id}') belongs; it has {found}. Record it too, or {REMEDY}")
