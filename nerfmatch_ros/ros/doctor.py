"""
Listens to the inputs of the localizer for a moment and says which of them are missing, and why.

    nerfmatch doctor --image /camera/image_raw

A plain node beside the others: it takes the topics from a localizer that runs, else from its
arguments, and asks for less than any subscriber, so that it hears what the localizer might not.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nerfmatch_ros.errors import ConfigError
from nerfmatch_ros.ros.conversions import stamp_ns
from nerfmatch_ros.ros.doctor_findings import (
    camera_problem,
    FAULT,
    Finding,
    image_text,
    NOTE,
    OK,
    publisher_texts,
    quality_verdict,
    read_image,
    stamp_problem,
    topic_finding,
)
from nerfmatch_ros.ros.doctor_inputs import (
    COMPRESSED,
    DoctorOptions,
    IMAGE,
    INFO,
    Inputs,
    LOCALIZER,
)
from nerfmatch_ros.ros.quality import EVERY, NEWEST, SENSOR, STATIC
from nerfmatch_ros.ros.transform_buffer import TransformError
from nerfmatch_ros.ros.transform_listener import (
    DYNAMIC_QUALITY,
    static_transform_command,
)
import rclpy
from rclpy.exceptions import NameValidationException

TRANSFORM_SECONDS = 0.5  # that odometry may be later than the last image


def examine(options: DoctorOptions, *, domain: int | None = None) -> list[Finding]:
    """Listen for a moment and give what is to be said about every input; domain: of ROS."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    try:
        inputs = Inputs(options, context)
        try:
            inputs.listen()
            return findings(inputs)
        finally:
            inputs.close()
    except NameValidationException as error:
        raise ConfigError(f'no such name can be: {" ".join(str(error).split())}') from error
    finally:
        rclpy.shutdown(context=context)


def findings(inputs: Inputs) -> list[Finding]:
    """Judge what came."""
    return [_of_localizer(inputs), _of_image(inputs), _of_camera(inputs),
            *(_of_link(inputs, *link) for link in inputs.links()),
            *(_of_pose(inputs, name) for name in inputs.pose_topics)]


def _of_localizer(inputs: Inputs) -> Finding:
    name = f'{inputs.namespace.rstrip("/")}/{LOCALIZER}'
    if inputs.runs():
        used = inputs.topics_of(LOCALIZER).values()
        if not any({IMAGE, COMPRESSED} & set(types) for types in used):
            return Finding('localizer', NOTE,
                           f'{name} runs, but is not active: it listens to no images yet')
        others = ', '.join(inputs.other_cameras)
        return Finding('localizer', OK, f'{name} is active' + (
            f'; it also listens to {others}: name them here one by one' if others else ''))
    elsewhere = ', '.join(inputs.localizers())
    return Finding('localizer', NOTE, f'{name} does not run' + (
        f'; one does in {elsewhere}: give that as the namespace' if elsewhere
        else ', so its default topics and qualities of service are examined'))


def _of_image(inputs: Inputs) -> Finding:
    topic, image = inputs.image_topic, inputs.image
    finding = topic_finding(
        'image', topic, inputs.publishers(topic), inputs.asked(topic, SENSOR),
        others=inputs.topics_with(IMAGE, COMPRESSED))
    if image is None:
        return _unheard(inputs, finding)
    verdict, text = stamp_problem(
        stamp_ns(image.header), inputs.now_ns(), bool(inputs.publishers('/clock')))
    size, problem = read_image(image)
    return _heard(inputs, finding, verdict if size else FAULT,
                  [image_text(image), problem, text], image)


def _of_camera(inputs: Inputs) -> Finding:
    topic, image, infos = inputs.info_topic, inputs.image, inputs.infos
    finding = topic_finding(
        'camera_info', topic, inputs.publishers(topic), inputs.asked(topic, SENSOR),
        others=inputs.topics_with(INFO))
    if not infos:
        return _unheard(inputs, finding)
    frame = image.header.frame_id if image else ''
    newest = infos.get(frame) or next(reversed(infos.values()))
    problem = camera_problem(
        list(infos.values()), frame, read_image(image)[0] if image else None,
        rectified='rect' in inputs.image_topic)
    kind = (f"frame '{newest.header.frame_id}', {newest.width} x {newest.height}, "
            f'{newest.distortion_model or "no distortion model"}')
    return _heard(inputs, finding, FAULT if problem else OK, [kind, problem], newest)


def _of_pose(inputs: Inputs, name: str) -> Finding:
    topic = inputs.pose_topics[name]
    finding = topic_finding(
        name, topic, inputs.publishers(topic),
        inputs.asked(topic, NEWEST if name == 'initialpose' else EVERY), needed=False)
    if name in inputs.poses:
        return _heard(inputs, finding, OK, [], inputs.poses[name])
    if not finding.publishers and name == 'refined_pose':
        return replace(finding, text='nobody publishes it: the refiner does not run')
    return finding


def _of_link(inputs: Inputs, target: str, source: str) -> Finding:
    listener, options = inputs.listener, inputs.options
    is_odometry = source == options.base
    newest = listener.latest(target, source)
    is_static = newest is None and not is_odometry or newest is not None and newest[1] == 0
    topic = listener.topics[is_static]
    publishers = inputs.publishers(topic)
    _, quality = quality_verdict(publishers, STATIC if is_static else DYNAMIC_QUALITY)
    finding = Finding(f'transform {target} -> {source or "camera"}', OK, '', topic,
                      publisher_texts(publishers), quality)
    if not source:
        return replace(finding, verdict=NOTE,
                       text='without an image the frame of the camera is not known; name it')
    if newest is not None and not is_static:
        finding = _with_stamp(inputs, finding, newest[1])
    if inputs.image is None:
        if newest is not None:
            return replace(finding, text='known; without an image there is no stamp to look it '
                                         'up at')
        stamp, wait = 1, 0.0  # any one: the error tells which frame is missing
    else:
        stamp, wait = stamp_ns(inputs.image.header), TRANSFORM_SECONDS
    try:
        listener.lookup(target, source, stamp, wait)
    except TransformError as error:
        remedy = ('map_to_odom needs odometry on /tf; tf_mode map_to_base and map_to_camera work '
                  'without' if is_odometry else
                  'if it never changes: ' + static_transform_command(target, source))
        return replace(finding, verdict=FAULT, text=f'{error}; {remedy}')
    return replace(finding, text='known at the stamp of the image')


def _unheard(inputs: Inputs, finding: Finding) -> Finding:
    """Complete the finding on a topic that nothing came on."""
    if finding.verdict == FAULT:
        return finding
    text = f'nothing came in {inputs.options.seconds:g} s'
    return replace(finding, verdict=FAULT, text='; '.join(filter(None, [text, finding.text])))


def _heard(inputs: Inputs, finding: Finding, verdict: str, texts: Sequence[str], message: Any,
           ) -> Finding:
    """Complete the finding on a topic with its newest message; the worse verdict stays."""
    text = '; '.join(filter(None, [*texts, finding.text]))
    return replace(_with_stamp(inputs, finding, stamp_ns(message.header)), text=text,
                   verdict=max(verdict, finding.verdict, key=[OK, NOTE, FAULT].index))


def _with_stamp(inputs: Inputs, finding: Finding, stamp: int) -> Finding:
    return replace(finding, stamp_ns=stamp, age=(inputs.now_ns() - stamp) * 1e-9)
