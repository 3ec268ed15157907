"""A Keras classifier as a TFLite file: one image at a time, raw pixels in, probabilities out, builtin operations only.

    images   float32 or uint8 (1, height, width, channels), RGB or grey, pixels 0..255
             ->   probabilities or logits (1, classes)

What kinds of files there are is said in kinds.py.
"""

import pathlib
import tempfile

import keras
import numpy as np
import tensorflow as tf

from na_keras.deploy.images import image_shape
from na_keras.deploy.not_a_number import checked
from na_keras.deploy.outputs import check_answer, named
from na_keras.deploy.rewrite import in_deploy_form
from na_keras.deploy.tflite import float_gates, graph, metadata, resizing, summing
from na_keras.deploy.tflite.editing import EditedFile
from na_keras.deploy.tflite.kinds import checked_kind
from na_keras.deploy.tflite.runner import litert


def representative_function(images, shape):
    """Representative images as TensorFlow's converter asks for them.

    Args:
        images: as in `convert_tflite`.
        shape: (height, width, channels) of an image.

    Returns:
        A function without arguments that yields [float32 (1, height, width, channels)].

    Raises:
        ValueError: no images; or of another shape; or pixels that all lie in 0..1.
    """
    if callable(images):
        first = next(iter(images()), None)
        if first is None:
            raise ValueError("Expected representative images. Received: a function that yields none")
        if not isinstance(first, list | tuple) or len(first) != 1 or np.shape(first[0]) != (1, *shape):
            received = [np.shape(entry) for entry in first] if isinstance(first, list | tuple) else type(first).__name__
            raise ValueError(f"Expected a function that yields [array {(1, *shape)}]. Received: it yields {received}")
        return images
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[1:] != shape or not len(images):
        raise ValueError(f"Expected representative images {('count', *shape)}. Received: {images.shape}")
    if images.max() <= 1:
        raise ValueError(f"Expected pixels 0..255. Received: at most {images.max()}; multiply pixels 0..1 by 255")
    if images.min() < 0 or images.max() > 255:
        raise ValueError(f"Expected pixels 0..255. Received: from {images.min()} to {images.max()}")
    return lambda: ([image[None].astype("float32")] for image in images)


def with_full_range(representative):
    """Representative images that reach from 0 to 255: where none do, one more, the first with 0 and 255 in two corners.

    The range of the input tensor follows the images, and apps write raw bytes into it: it must be 0..255.
    """

    def images():
        first, low, high = None, np.inf, -np.inf
        for (image,) in representative():
            first = image if first is None else first
            low, high = min(low, image.min()), max(high, image.max())
            yield [image]
        if low > 0 or high < 255:
            last = np.array(first)
            last.flat[0], last.flat[-1] = 0, 255
            yield [last]

    return images


def check_raw_pixels(flatbuffer):
    """Raises ValueError unless an integer input's numbers are the pixels themselves: of scale 1, from 0 or -128."""
    (described,) = graph.describe(flatbuffer)["inputs"]
    if described["dtype"] not in ("uint8", "int8"):
        return
    expected = [0] if described["dtype"] == "uint8" else [-128]
    if (described.get("scale"), described.get("zero_point")) != ([1.0], expected):
        raise ValueError(
            f"Expected an input of raw pixels, of scale 1 and zero point {expected[0]}. Received: scale "
            f"{described.get('scale')}, zero point {described.get('zero_point')}. Are the pixels of the representative "
            "images in 0..255?"
        )


def convert_saved_model(path, settings, representative=None, answers=None):
    """The signature serving_default of a SavedModel as a TFLite file (bytes), builtin operations only.

    Args:
        path: of the SavedModel.
        settings: kinds.Kind.
        representative: as in `convert_tflite`, but always a function.
        answers: dtype of the outputs (default: the kind's).

    Raises:
        ValueError: an operation is not builtin.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=["serving_default"])
    converter.target_spec.supported_ops = [tf.lite.OpsSet[settings.operations]]
    if settings.optimize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    if settings.weights is not None:
        converter.target_spec.supported_types = [tf.as_dtype(settings.weights)]
    if settings.quantized:
        converter.representative_dataset = representative
    if settings.pixels != "float32":
        converter.inference_input_type = tf.as_dtype(settings.pixels)
        converter.inference_output_type = tf.as_dtype(answers or settings.pixels)
    flatbuffer = converter.convert()
    graph.check_builtins_only(flatbuffer)
    return flatbuffer


def converted(network, settings, representative=None, answers=None):
    """A Keras model with one input as a TFLite file (bytes) of a kind, as it is: in no other form.

    Args:
        network: Keras model; its input shape, with a batch of 1, becomes the file's.
        settings, representative, answers: as in `convert_saved_model`.

    Raises:
        ValueError: an operation is not builtin.
    """
    images = tf.TensorSpec((1, *network.input_shape[1:]), tf.float32, name="images")

    def answer(images):
        return named(network(images, training=False))

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "saved"
        archive = keras.export.ExportArchive()
        archive.add_endpoint("serving_default", answer, [images])
        archive.write_out(str(path), verbose=False)
        return convert_saved_model(path, settings, representative, answers)


def convert_network(network, kind, representative=None):
    """A Keras model with one input and one output as a TFLite file (bytes) of a kind, as it is: in no other form.

    Its batch can be resized, and a file of an integer-only kind is integer-only.

    Args:
        network: Keras model; its input shape, with a batch of 1, becomes the file's.
        kind, representative: as in `convert_tflite`, but always a function.

    Raises:
        ValueError: as `convert_tflite`.
    """
    settings = checked_kind(kind)
    flatbuffer = converted(network, settings, representative)
    if settings.quantized and settings.pixels != "float32":
        graph.check_integer_only(flatbuffer)
    file = EditedFile(flatbuffer)
    if any([resizing.free_batch(file), summing.sum_by_rows(file)]):
        flatbuffer = file.pack()
    return float_gates.with_float_gates(flatbuffer) if settings.float_gates_of else flatbuffer


def convert_tflite(model, kind="float32", representative=None, *, size=None, labels=None, name=None, description=""):
    """A Keras classifier as a TFLite file.

        blob = convert_tflite(model, "int8", images)        # numpy array (200, 224, 224, 3), pixels 0..255
        pathlib.Path("model_int8.tflite").write_bytes(blob)

    The file takes one image (1, height, width, channels), raw pixels 0..255, as `images`, and answers with
    `probabilities` (1, classes), or with `logits`; the dtype of both is float32, for the kinds "int8" and
    "int8_float_gate" uint8, where a byte is a pixel: scale 1, zero point 0. It holds builtin operations only, which
    every LiteRT runtime has. An interpreter can resize the batch. In files of kinds that are not quantized an image
    with a NaN or an infinity has NaN scores.

    Args:
        model: functional Keras classifier from float32 images (batch, height, width, channels), RGB or grey, pixels
            0..255, which it normalises itself, to probabilities (batch, classes), or to {"logits": ...}. Layers of your
            own may be in it. It is converted in deploy form; a model that `deploy_copy` made is converted as it is: so
            the float twin of a quantized file, for `compare_tensors`, is
            convert_tflite(deploy_copy(model, "integer_safe")[0]).
        kind: a key of TFLITE_KINDS: "float32", "float16", "dynamic", "int8", "int8_float_gate" or "int16x8".
        representative: for the quantized kinds (the last three), some hundred images like those that the file will see:
            an array (count, height, width, channels), pixels 0..255, or TensorFlow's convention, a function without
            arguments that yields [float32 (1, height, width, channels)]. Their ranges become the integers' scales; the
            input's is always 0..255. Others ignore it.
        size: pixels of the images' sides, or (height, width); needed where the model's input shape leaves them open.
        labels: class names in the order of the outputs, to be written into the file with a description, as MediaPipe
            and Android Studio read them; None writes none. "int16x8" takes none: MediaPipe does not run such files.
        name, description: with labels: text for a person; the default name is the model's.

    Returns:
        The file (bytes).

    Raises:
        ImportError: ai-edge-litert is not installed.
        ValueError: an unknown kind; a model that is no such classifier, or has no graph to rewrite (a subclass of
            keras.Model); representative images that are missing or of another shape; labels that do not fit; a network
            that needs an operation which is not builtin, or, for integer-only kinds, one without an integer form: it is
            named; "int8_float_gate" for a network without NA.
    """
    settings = checked_kind(kind)
    shape, (answer, classes) = image_shape(model, size), check_answer(model, alone=True)
    litert("schema_py_generated")  # before minutes of work
    if settings.quantized:
        if representative is None:
            raise ValueError(f"The kind {kind} needs representative images. Received: representative=None")
        representative = with_full_range(representative_function(representative, shape))
    if labels is not None:
        if not settings.has_metadata:
            raise ValueError(f"The kind {kind} carries no labels: MediaPipe does not run it. Received: labels")
        metadata.check_labels(labels, classes)
    network = in_deploy_form(model, settings.form)
    if None in network.input_shape[1:3]:
        images = keras.Input(shape, name="images")
        network = keras.Model(images, network(images), name=network.name)
    # Integers cannot be NaN; a float input of quantized activations loses it at once.
    flatbuffer = convert_network(network if settings.quantized else checked(network), kind, representative)
    check_raw_pixels(flatbuffer)
    if labels is None:
        return flatbuffer
    return metadata.attach(flatbuffer, labels, name or model.name, description, answer=answer)
