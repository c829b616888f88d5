"""The camera of the images of a bag: of their camera_info, or the one that is given."""

from typing import Any

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.geometry.camera import Camera
from nerfmatch_ros.ros.bag_scan import BagScan
from nerfmatch_ros.ros.bag_topics import info_topic, is_rectified
from nerfmatch_ros.ros.camera_messages import camera_from_info, fit_to_image
from nerfmatch_ros.ros.image_messages import FrameRejected

REMEDY = 'give the camera with --camera FILE.yaml'


class BagCamera:
    """What took each image; cameras of different settings follow one another."""

    def __init__(self, cameras: list[tuple[int, Camera]], source: str):
        """cameras: since when, in ns of reception, and which; in that order."""
        self._cameras, self.source = cameras, source
        self._fitted: dict[tuple[int, int, int], Camera] = {}

    @staticmethod
    def of(scan: BagScan, frame_id: str, given: Camera | None) -> 'BagCamera':
        """
        Take the given camera, or those of the camera_info of the images.

        frame_id: of the images; a camera_info that has it belongs to them whatever its topic.
        """
        if given is not None:
            return BagCamera([(0, given)], '--camera')
        topic = _info_topic(scan, frame_id)
        cameras, faults = [], []
        for received, message in scan.infos[topic]:
            try:
                cameras.append((received, camera_from_info(
                    message, rectified=is_rectified(scan.image_topic))))
            except DataError as error:
                faults.append(str(error))
        if not cameras:
            raise DataError(f'no camera_info on {topic} of the bag {scan.path} can be used: '
                            f'{faults[0]}; {REMEDY}')
        return BagCamera(cameras, topic)

    @property
    def first(self) -> Camera:
        """The camera of the beginning."""
        return self._cameras[0][1]

    def of_picture(self, received_ns: int, width: int, height: int) -> Camera:
        """Give the camera of a picture of that size, or raise FrameRejected."""
        # Before the first camera_info its own holds too: it only came late.
        index = max((k for k, (since, _) in enumerate(self._cameras) if since <= received_ns),
                    default=0)
        key = index, width, height
        if key not in self._fitted:
            try:
                self._fitted[key] = fit_to_image(self._cameras[index][1], width, height)
            except DataError as error:
                raise FrameRejected('bad_size', f'{self.source}: {error}') from error
        return self._fitted[key]


def _info_topic(scan: BagScan, frame_id: str) -> str:
    """Give the topic of the camera_info: the one beside the images, or the one of their frame."""
    name = info_topic(scan.image_topic)
    if name in scan.infos:
        return name
    fitting = [topic for topic, infos in sorted(scan.infos.items())
               if frame_id and any(_frame(message) == frame_id for _, message in infos)]
    if len(fitting) == 1:
        return fitting[0]
    found = ', '.join(f"{topic} (frame '{_frame(infos[0][1])}')"
                      for topic, infos in sorted(scan.infos.items())) or 'on no topic'
    raise DataError(
        f'the bag {scan.path} has no camera_info on {name}, where that of {scan.image_topic} '
        f"(frame '{frame_id}') belongs; it has {found}. Record it too, or {REMEDY}")


def _frame(message: Any) -> str:
    return message.header.frame_id.lstrip('/')
