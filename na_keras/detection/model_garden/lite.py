"""RetinaNet as a TFLite file: suppressed boxes out, builtin operations only.

    images   float32, of quantized kinds uint8, (1, side, side, 3), RGB 0..255: a canvas, on which an image lies resized
             in the upper left corner, with ImageNet's mean colour (124, 116, 104) around it (images.py)
             ->   num_detections (1,), detection_boxes (1, n, 4) in pixels of the canvas, detection_classes (1, n) from
                  1 on, detection_scores (1, n); rows beyond num_detections are zeros

The network is the library's in Keras, in deploy form (na_keras.deploy), and has the precision of the kind of file. What
follows is float32 in all of them: 256 steps, or float16's 11 bits, are no coordinates of a canvas. It takes the best
CANDIDATES scores of all anchors and classes, decodes their boxes, and suppresses each class by itself: boxes of
different classes are moved apart, so that NON_MAX_SUPPRESSION_V4, which knows no classes, does it at once. That equals
Model Garden's suppression wherever the CANDIDATES hold all that survives, except that boxes without an area, which the
other keeps, are left out: LiteRT 2.3's kernel chooses one such box again and again.
"""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf
from official.vision.ops import anchor, box_ops, preprocess_ops

from na_keras.deploy.attention_forms import check_integer_safe
from na_keras.deploy.rewrite import deploy_copy
from na_keras.deploy.tflite import conversion, graph
from na_keras.deploy.tflite.kinds import TFLITE_KINDS
from na_keras.deploy.tflite.splicing import spliced
from na_keras.detection.feature_pyramid import feature_pyramid
from na_keras.detection.heads import retinanet_head
from na_keras.detection.model_garden import detectors, images, networks, tasks
from na_keras.detection.model_garden.inference import FOUND
from na_keras.layers import NormalizationAttention, get_attention
from na_keras.models.resnet import resnet_stages

KINDS = ("float32", "float16", "int8")
CANDIDATES = 5000  # as Model Garden's other ways of suppression take, `pre_nms_top_k`


def check_kind_of_detector(name):
    """Raises ValueError for a detector that no TFLite file can be written of, with the reason."""
    if name != "retinanet":
        raise ValueError(
            f"TFLite files are of RetinaNet only. Received: {name}, whose proposals Model Garden suppresses by "
            "CombinedNonMaxSuppression, which is no builtin operation of TFLite. Serve the SavedModel: leave --tflite "
            "out."
        )


def check_integer_form(attention):
    """Raises ValueError if the attention of this name, or None, has no form for integers."""
    factory = get_attention(attention)
    layer = factory(name="attention") if factory else None
    if isinstance(layer, NormalizationAttention):
        check_integer_safe(layer)


def network_in_keras(detector):
    """A detector's network with its weights as a functional Keras model.

    Args:
        detector: saved.Detector of RetinaNet.

    Returns:
        keras.Model: float32 (batch, side, side, 3), RGB 0..255 -> {"classes3": logits (batch, h, w, anchors * classes),
        "boxes3": (batch, h, w, anchors * 4), ...} of each level.

    Raises:
        ValueError: a layer's weights are missing, left over, or of another shape.
    """
    config, model = detector.config.model, detector.model
    options = config.backbone.get()
    image = keras.Input(tuple(config.input_size), name="images")
    deviation = np.square(preprocess_ops.STDDEV_RGB)
    x = keras.layers.Normalization(mean=preprocess_ops.MEAN_RGB, variance=deviation, name="normalization")(image)
    stages = resnet_stages(x, options.model_id, networks.attended(get_attention, options))
    maps = feature_pyramid(stages, (config.min_level, config.max_level), config.decoder.get().num_filters)
    classes, boxes = retinanet_head(
        maps,
        config.num_classes,
        anchors=detectors.anchors_per_position(config),
        filters=config.head.num_filters,
        convolutions=config.head.num_convs,
    )
    outputs = {f"classes{level[1:]}": x for level, x in classes.items()}
    network = keras.Model(image, outputs | {f"boxes{level[1:]}": x for level, x in boxes.items()}, name="retinanet")
    parts = (model.backbone, model.decoder, model.head.network)
    trained = {layer.name: layer.get_weights() for part in parts for layer in part.layers if layer.weights}
    for layer in network.layers:
        if layer.weights and layer.name != "normalization":
            layer.set_weights(trained.pop(layer.name))
    if trained:
        raise ValueError(f"The network in Keras has no layers {sorted(trained)}.")
    return network


def postprocessing(config):
    """A tf.function of one image's raw maps, named as of `network_in_keras`, that returns what FOUND names.

    Args:
        config: of a RetinaNet task.
    """
    model = config.model
    side, classes, found = model.input_size[0], model.num_classes, model.detection_generator
    per_position, levels = detectors.anchors_per_position(model), range(model.min_level, model.max_level + 1)
    anchors = anchor.Anchor(**detectors.anchor_options(model), image_size=(side, side)).multilevel_boxes
    every = np.concatenate([np.reshape(anchors[str(level)], (-1, 4)) for level in levels])
    count, most = len(every) * classes, found.max_num_detections

    def joined(maps, name, numbers):
        return tf.concat([tf.reshape(maps[f"{name}{level}"], (-1, numbers)) for level in levels], axis=0)

    specifications = {}
    for level in levels:
        for name, numbers in (("classes", classes), ("boxes", 4)):
            shape = (1, side >> level, side >> level, per_position * numbers)
            specifications[f"{name}{level}"] = tf.TensorSpec(shape, tf.float32, name=f"{name}{level}")

    @tf.function(input_signature=[specifications])
    def suppress(maps):
        logits, best = tf.math.top_k(tf.reshape(joined(maps, "classes", classes), (-1,)), min(CANDIDATES, count))
        scores, of_anchor, label = tf.sigmoid(logits), best // classes, best % classes
        encoded = tf.gather(joined(maps, "boxes", 4), of_anchor)
        boxes = box_ops.decode_boxes(encoded, tf.gather(tf.constant(every, tf.float32), of_anchor))
        boxes = tf.clip_by_value(boxes, 0.0, float(side))
        moved = boxes + tf.cast(label, tf.float32)[:, None] * (side + 1.0)
        has_area = tf.reduce_all(moved[:, 2:] > moved[:, :2], axis=1)
        chosen, number = tf.raw_ops.NonMaxSuppressionV4(
            boxes=moved,
            scores=tf.where(has_area, scores, 0.0),
            max_output_size=most,
            iou_threshold=found.nms_iou_threshold,
            score_threshold=found.pre_nms_score_threshold,
            pad_to_max_output_size=True,
        )
        counts = tf.range(most) < number
        values = (tf.where(counts[:, None], tf.gather(boxes, chosen), 0.0),)
        values += (tf.where(counts, tf.gather(label, chosen) + 1, 0), tf.where(counts, tf.gather(scores, chosen), 0.0))
        return dict(zip(FOUND, (tf.reshape(number, (1,)), *(value[None] for value in values)), strict=True))

    return suppress


def convert_postprocessing(config):
    """`postprocessing` as a TFLite file (bytes)."""
    module = tf.Module()
    module.suppress = postprocessing(config)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "saved"
        tf.saved_model.save(module, str(path), signatures=module.suppress.get_concrete_function())
        return conversion.convert_saved_model(path, TFLITE_KINDS["float32"])


def on_uint8_canvas(image, config):
    """An image as the files take it, in whole numbers: uint8 (side, side, 3).

    Args:
        image: uint8 tensor (height, width, 3).
        config: of the task.
    """
    resize, side = config.resize, config.model.input_size[0]
    canvas, _ = images.on_canvas(image, resize.shorter, resize.longer, side)
    return tf.cast(tf.clip_by_value(tf.round(255 * canvas), 0, 255), tf.uint8)


def convert_tflite(detector, kind="float32", canvases=None):
    """RetinaNet as a TFLite file; see the head of this file.

    Args:
        detector: saved.Detector of RetinaNet.
        kind: one of KINDS.
        canvases: for "int8", some hundred photographs like those that the file will see: uint8 (count, side, side, 3),
            as `on_uint8_canvas` gives them, or TensorFlow's convention, a function without arguments that yields
            [float32 (1, side, side, 3)].

    Returns:
        The file (bytes).

    Raises:
        ImportError: ai-edge-litert is not installed.
        ValueError: another detector; attention without a form in integers; no canvases.
    """
    check_kind_of_detector("retinanet" if isinstance(detector.config, tasks.RetinaNetTask) else "cascade_rcnn")
    settings, representative = TFLITE_KINDS[kind], None
    network, _ = deploy_copy(network_in_keras(detector), settings.form)
    if settings.quantized:
        if canvases is None:
            raise ValueError(f"The kind {kind} needs representative images. Received: canvases=None")
        shape = network.input_shape[1:]
        representative = conversion.with_full_range(conversion.representative_function(canvases, shape))
    flatbuffer = conversion.converted(network, settings, representative, "float32")
    conversion.check_raw_pixels(flatbuffer)
    if settings.quantized:
        left = {operation.name for operation, _ in graph.float_operations(flatbuffer)} - {"DEQUANTIZE"}
        if left:
            raise ValueError(f"Expected a network in integers. In float remained: {graph.counted(sorted(left))}")
    return spliced(flatbuffer, convert_postprocessing(detector.config))
