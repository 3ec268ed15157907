"""Images at the size that mmdetection trains at: shorter side S, longer side at most L, upright and lying ones alike.

Model Garden's parsers fit an image into one rectangle, in which upright photographs come out smaller than lying ones.
Here an image is resized, mirrored and laid into the upper left corner of a square canvas before a parser sees it, whose
own resize then has nothing left to do. The canvas around the image has ImageNet's mean colour, which the parsers'
normalisation makes 0, as mmdetection's padding is.
"""

import tensorflow as tf
from official.vision.dataloaders import tf_example_decoder
from official.vision.ops import preprocess_ops

from na_keras.data import preprocessing


def canvas_side(longer, stride):
    """Pixels of the square that holds an image in either orientation: a multiple of the coarsest level's stride."""
    return -(-longer // stride) * stride


def resized_shape(shape, shorter, longer):
    """mmdetection's rule: as large as fits into both limits, rounded to the nearest pixel.

    Args:
        shape: (height, width) of the image, float32 tensor.
        shorter: pixels of the shorter side.
        longer: the most that the longer side may have.

    Returns:
        (height, width), int32 tensor.
    """
    scale = tf.minimum(shorter / tf.reduce_min(shape), longer / tf.reduce_max(shape))
    return tf.cast(tf.math.floor(shape * scale + 0.5), tf.int32)


def on_canvas(image, shorter, longer, side):
    """An image resized and laid on a canvas.

    Args:
        image: uint8 tensor (height, width, 3).
        shorter, longer: see `resized_shape`.
        side: of the canvas, pixels.

    Returns:
        (float32 tensor (side, side, 3), values 0..1; int32 tensor (height, width) of the image on it).
    """
    shape = resized_shape(tf.cast(tf.shape(image)[:2], tf.float32), shorter, longer)
    mean = tf.constant(preprocess_ops.MEAN_NORM)
    resized = tf.image.resize(tf.cast(image, tf.float32) / 255.0, shape) - mean
    return tf.image.pad_to_bounding_box(resized, 0, 0, side, side) + mean, shape


def mirrored(image, boxes):
    """An image and its boxes (top, left, bottom, right), in shares of the image, mirrored left to right."""
    top, left, bottom, right = tf.unstack(boxes, axis=-1)
    return tf.reverse(image, [1]), tf.stack([top, 1.0 - right, bottom, 1.0 - left], axis=-1)


class Decoder(tf_example_decoder.TfExampleDecoder):
    """Model Garden's decoder of records (na_keras.detection.records), which lays images on a canvas.

    Args:
        category_ids: of all categories that records may have, ascending: they become the classes 1, 2, 3 ...
        shorter, longer, side: see `on_canvas`.
        flip: mirror every other image at random.
    """

    def __init__(self, category_ids, shorter, longer, side, *, flip=False):
        super().__init__()
        self.category_ids = category_ids
        self.shorter, self.longer, self.side, self.flip = shorter, longer, side, flip

    def _decode_image(self, parsed_tensors):
        # Grey and CMYK photographs too; boxes belong to the pixels as they are stored.
        return preprocessing.decode(parsed_tensors["image/encoded"], exif_orientation=False)

    def _decode_classes(self, parsed_tensors):
        found = tf.equal(super()._decode_classes(parsed_tensors)[:, None], self.category_ids)
        message = "A record has a category that is not one of the annotations'."
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(tf.reduce_any(found, axis=1)), [message])]):
            return tf.argmax(found, axis=1) + 1

    def decode(self, serialized_example):
        """As Model Garden's; the image is float32 (side, side, 3), and boxes are in shares of the canvas."""
        data = super().decode(serialized_example)
        image, boxes = data["image"], data["groundtruth_boxes"]
        if self.flip:
            turn = tf.random.uniform(()) < 0.5
            image, boxes = tf.cond(turn, lambda: mirrored(image, boxes), lambda: (image, boxes))
        image, shape = on_canvas(tf.ensure_shape(image, (None, None, 3)), self.shorter, self.longer, self.side)
        share = tf.cast(shape, tf.float32) / self.side
        return data | {"image": image, "groundtruth_boxes": boxes * tf.tile(share, [2])}
