"""Which topics of a bag belong together: images, camera_info, transforms, poses."""

from collections.abc import Iterable

from nerfmatch_ros.errors import DataError
from nerfmatch_ros.ros import bag_messages as messages
from nerfmatch_ros.ros.bag import BagReader

COMPRESSED_SUFFIX = '/compressed'
TF, TF_STATIC = '/tf', '/tf_static'
POSE_TYPES = (messages.ODOMETRY, messages.POSE, messages.POSE_WITH_COVARIANCE, messages.TRANSFORM)


def image_topic(bag: BagReader, given: str) -> str:
    """Give the topic with the images: the given one, or the only one where that is ''."""
    names = bag.names_of(messages.IMAGE, messages.COMPRESSED_IMAGE)
    if given:
        return _among(bag, names, given, 'images')
    if len(names) != 1:
        raise DataError(f'the bag {bag.path} has images on {len(names)} topics '
                        f'({_listed(bag, names)}); name one with --image-topic')
    return names[0]


def info_topic(images: str) -> str:
    """Give the topic where the camera_info of a topic of images belongs."""
    return f'{base_topic(images).rsplit("/", 1)[0]}/camera_info'


def base_topic(images: str) -> str:
    """Give the topic without what image_transport appends to it."""
    return images.removesuffix(COMPRESSED_SUFFIX)


def is_rectified(images: str) -> bool:
    """Tell by the name of a topic whether its images are rectified."""
    return 'rect' in base_topic(images).rsplit('/', 1)[-1]


def transform_topics(bag: BagReader, images: str) -> dict[str, bool]:
    """
    Give the topics of transforms, and whether they are static.

    Those of the whole bag, or those in the deepest namespace that the images are in too: a robot
    among several has its own.
    """
    names = bag.names_of(messages.TRANSFORMS)
    spaces = {name.rsplit('/', 1)[0] for name in names}
    around = [space for space in spaces if images.startswith(f'{space}/')]
    if not around:
        if len(spaces) > 1:
            raise DataError(f'the bag {bag.path} has transforms on {", ".join(names)}, none in a '
                            f'namespace of {images}; record those of one robot')
        around = list(spaces)
    if not around:
        return {}
    space = max(around, key=len)
    return {name: name.endswith('_static') for name in names if name.rsplit('/', 1)[0] == space}


def pose_topic(bag: BagReader, given: str) -> str:
    """Give the topic with poses that is asked for."""
    return _among(bag, bag.names_of(*POSE_TYPES), given, 'poses')


def pose_topics(bag: BagReader) -> str:
    """Name the topics with poses, for the text of an error."""
    return _listed(bag, bag.names_of(*POSE_TYPES))


def _among(bag: BagReader, names: list[str], given: str, what: str) -> str:
    """Give the name of a topic in full, if it is one of these."""
    given = f'/{given.lstrip("/")}'
    if given not in names:
        found = bag.topics.get(given)
        kind = '' if found is None else f', but {bag.counts[given]} messages of {found.type}'
        raise DataError(f'the bag {bag.path} has no {what} on {given}{kind}; it has {what} on '
                        f'{_listed(bag, names)}')
    return given


def _listed(bag: BagReader, names: Iterable[str]) -> str:
    return ', '.join(f'{name} ({bag.counts[name]} {bag.topics[name].type.rsplit("/", 1)[-1]})'
                     for name in names) or 'no topic'
