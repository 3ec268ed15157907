"""The ways to run a network that benchmark.py compares: how its file is written, and how it becomes a timed function.

Another runtime is a writer and a program here, and a row of RUNTIMES.

    write(network, kind, size, path)                 a Keras network as a file or folder
    program(source, batch, size, threads)            a function without arguments that runs `batch` images, in memory,
                                                     and returns when the outputs are in memory, a list of arrays;
                                                     source: the file, or the Keras network where nothing is written
"""

import dataclasses
from collections.abc import Callable

import numpy as np

import command_line
from latency import networks


@dataclasses.dataclass(frozen=True)
class Runtime:
    """A row of RUNTIMES.

    Attributes:
        program, write: see the head of this file; `write` is None where the Keras network itself is run.
        batches: whether --batch-size applies; otherwise it is one image.
        package: what has to be installed, {name to import: extra of this project}.
    """

    program: Callable
    write: Callable | None = None
    batches: bool = False
    package: dict = dataclasses.field(default_factory=dict)


def write_saved_model(network, kind, size, path):
    """Writes a SavedModel folder as export_model.py does."""
    from na_keras import deploy

    deploy.write_saved_model(network, path, [str(index) for index in range(network.output_shape[-1])])


def write_tflite(network, kind, size, path):
    """Writes a TFLite file as export_model.py does."""
    from na_keras import NormalizationAttention, deploy

    settings = deploy.TFLITE_KINDS[kind]
    if settings.float_gates_of and not any(isinstance(layer, NormalizationAttention) for layer in network.layers):
        kind = settings.float_gates_of  # what such a network ships as, and what NA's file is compared with
    images = networks.synthetic_images(networks.CALIBRATION, network.input_shape[1:])
    path.write_bytes(deploy.convert_tflite(network, kind, images))


def as_dtype(images, dtype):
    """Images 0..255 as float32 or uint8."""
    if dtype not in (np.float32, np.uint8):
        raise ValueError(f"Expected a network that takes float32 or uint8 images. Received: {np.dtype(dtype).name}")
    return images.astype(dtype)


def on_images(program, images):
    """The program, with the pixels of its images' sides as its attribute `side`, a number or "HEIGHTxWIDTH": a file has
    a size of its own."""
    height, width = map(int, images.shape[1:3])
    program.side = height if height == width else f"{height}x{width}"
    return program


def keras_program(network, batch, size, threads):
    """network(images) in a tf.function."""
    import tensorflow as tf

    images = tf.constant(networks.synthetic_images(batch, network.input_shape[1:]))
    run = tf.function(lambda images: network(images, training=False)).get_concrete_function(images)
    return on_images(lambda: [run(images).numpy()], images)


def saved_model_program(path, batch, size, threads):
    """The signature serving_default of a SavedModel with one input, images (batch, height, width, channels)."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    if "serving_default" not in loaded.signatures:
        raise ValueError(f"{path} has no signature serving_default. It has: {sorted(loaded.signatures)}")
    signature = loaded.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1 or len(next(iter(inputs.values())).shape) != 4:
        raise ValueError(f"Expected one input, images (batch, height, width, channels). Received: {inputs}")
    ((name, spec),) = inputs.items()
    height, width, channels = spec.shape[1:]
    images = networks.synthetic_images(batch, (height or size, width or size, channels or 3))
    images = tf.constant(as_dtype(images, spec.dtype.as_numpy_dtype))

    def run(loaded=loaded):  # the signature does not keep the variables alive
        return [value.numpy() for value in signature(**{name: images}).values()]

    return on_images(run, images)


def tflite_program(path, batch, size, threads):
    """A TFLite file with one input, an image of the file's own size, in LiteRT."""
    from na_keras.deploy.tflite.runner import Runner

    runner = Runner(path, threads=threads)
    if len(runner.input_shape) != 4:
        raise ValueError(f"Expected one input, an image (1, height, width, channels). Received: {runner.input_shape}")
    images = as_dtype(networks.synthetic_images(1, runner.input_shape[1:]), runner.input_dtype)
    return on_images(lambda: runner.run_stored(images), images)


TFLITE = Runtime(tflite_program, write_tflite, package={"ai_edge_litert": "export"})
RUNTIMES = {
    "keras": Runtime(keras_program, batches=True),
    "savedmodel": Runtime(saved_model_program, write_saved_model, batches=True),
    **dict.fromkeys(command_line.tflite_kinds(), TFLITE),
}
