"""What benchmark.py runs: networks whose every operation has to be computed, exported to files, as timed functions.

Weights are random, as they are in speed. But nothing may be zero, constant or denormal, which some runtimes compute
faster or fold away: batch norm gets random scales and offsets and statistics from a pass over images, NA random gammas.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import pathlib
import shutil

import numpy as np

TF_KINDS = ("keras", "savedmodel")
TFLITE_KINDS = ("float32", "float16", "dynamic", "int8", "int8_float_gate", "int16x8")  # as in conversion.convert
KINDS = (*TF_KINDS, *TFLITE_KINDS)
CALIBRATION = 8  # images, for batch norm's statistics and for the ranges of int8 files


def synthetic_images(count, size):
    """float32 (count, size, size, 3), 0..255: blurred colours with noise; the same ones every time."""
    import tensorflow as tf

    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (count, 6, 6, 3))
    images = tf.image.resize(coarse, (size, size), "bicubic").numpy() + rng.normal(0, 12, (count, size, size, 3))
    return np.clip(images, 0, 255).astype(np.float32)


def make_network(name, attention, size):
    """One of na_keras' networks with 1000 classes, in a state like a trained one's; the same one every time.

    Args:
        name: a name in na_keras.models.MODELS, in any case.
        attention: a name in na_keras.layers.ATTENTION, or "none".
        size: of the images.
    """
    import keras

    from na_keras.layers import NormalizationAttention
    from na_keras.models import MODELS

    builder = {key.lower(): builder for key, builder in MODELS.items()}[name.lower()]
    keras.utils.set_random_seed(0)
    network = builder(input_shape=(size, size, 3), attention=None if attention == "none" else attention)
    rng = np.random.default_rng(0)
    for layer in network.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.1, layer.beta.shape))
            layer.momentum = 0.0  # the pass below sets the statistics
        if isinstance(layer, NormalizationAttention):
            layer.gamma.assign(rng.normal(0, 0.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(1, 0.2, layer.beta.shape))
    network(synthetic_images(CALIBRATION, size), training=True)
    return network


def deployed(network, kind):
    """The network as export_model.py ships it in a file of this kind."""
    from na_keras.deploy import rewrite
    from na_keras.deploy.tflite import conversion

    copy, _ = rewrite.deploy_copy(network, "tensorflow" if kind == "savedmodel" else conversion.KINDS[kind].form)
    return copy


def write_artifact(network, kind, size, path):
    """Writes a SavedModel folder or a TFLite file of a Keras network to `path`."""
    from na_keras.deploy import saved_model
    from na_keras.deploy.tflite import conversion
    from na_keras.layers import NormalizationAttention

    labels = [str(index) for index in range(network.output_shape[-1])]
    classifier = saved_model.Classifier(deployed(network, kind), labels, size, size)
    if kind == "savedmodel":
        return saved_model.write_savedmodel(classifier, path)
    if kind == "int8_float_gate" and not any(isinstance(layer, NormalizationAttention) for layer in network.layers):
        kind = "int8"  # what such a network ships as, and what NA's file is compared with
    images = synthetic_images(CALIBRATION, size)
    path.write_bytes(conversion.convert(classifier, kind, lambda: ([image[None]] for image in images)))


def fingerprint():
    """Eight characters that change with the code and the packages that decide what is in an artifact."""
    import na_keras

    digest = hashlib.sha256(pathlib.Path(__file__).read_bytes())
    for path in sorted(pathlib.Path(na_keras.__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    for package in ("tensorflow", "keras"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()[:8]


class Artifacts:
    """Networks and their files, made when they are first asked for and kept in a folder.

    A file carries the fingerprint of the code that made it: one from another version is never measured.
    """

    def __init__(self, folder, size):
        self.folder, self.size, self.fingerprint = folder, size, fingerprint()
        self.networks = {}

    def network(self, name, attention):
        """The Keras network."""
        if (name, attention) not in self.networks:
            self.networks[name, attention] = make_network(name, attention, self.size)
        return self.networks[name, attention]

    def path(self, name, attention, kind):
        """The file or SavedModel folder."""
        path = self.folder / f"{name.lower()}-{attention}-{self.size}-{kind}-{self.fingerprint}"
        if not path.exists():
            print(f"  writing {path.name}", flush=True)
            temporary = path.with_name(f"incoming-{os.getpid()}-{path.name}")
            try:
                write_artifact(self.network(name, attention), kind, self.size, temporary)
                temporary.rename(path)
            finally:
                remove(temporary)
        return path

    def forget(self):
        """Frees the Keras networks, which take more memory than what is measured."""
        import gc

        import keras

        self.networks = {}
        keras.backend.clear_session()
        gc.collect()


def remove(path):
    """Deletes a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def megabytes(path):
    """Size of a file or folder, in 10^6 bytes."""
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files) / 1e6


def as_dtype(images, dtype):
    """Images 0..255 as float32 or uint8."""
    if dtype not in (np.float32, np.uint8):
        raise ValueError(f"Expected a network that takes float32 or uint8 images. Received: {np.dtype(dtype).name}")
    return images.astype(dtype)


def keras_program(network, batch, size):
    """A function that runs a Keras network on `batch` images, compiled as tf.function, and waits for the answer."""
    import tensorflow as tf

    images = tf.constant(synthetic_images(batch, size))
    run = tf.function(lambda images: network(images, training=False)).get_concrete_function(images)
    return lambda: run(images).numpy()


def savedmodel_program(path, batch, size):
    """The same for the signature serving_default of a SavedModel with one input, images (batch, size, size, 3)."""
    import tensorflow as tf

    loaded = tf.saved_model.load(str(path))
    if "serving_default" not in loaded.signatures:
        raise ValueError(f"{path} has no signature serving_default. It has: {sorted(loaded.signatures)}")
    signature = loaded.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]
    if len(inputs) != 1 or len(next(iter(inputs.values())).shape) != 4:
        raise ValueError(f"Expected one input, images (batch, size, size, 3). Received: {inputs}")
    ((name, spec),) = inputs.items()
    images = tf.constant(as_dtype(synthetic_images(batch, spec.shape[1] or size), spec.dtype.as_numpy_dtype))

    def run(loaded=loaded):  # the signature does not keep the variables alive
        return [value.numpy() for value in signature(**{name: images}).values()]

    return run


def tflite_program(path, threads):
    """The same for a TFLite file with one input, in LiteRT: an image in memory to the outputs in memory."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=threads)
    interpreter.allocate_tensors()
    inputs, given = interpreter.get_input_details(), interpreter.get_output_details()
    if len(inputs) != 1 or len(inputs[0]["shape"]) != 4:
        raise ValueError(f"Expected one input, an image (1, size, size, 3). Received: {inputs}")
    (taken,) = inputs
    batch, size = taken["shape"][:2]
    images = as_dtype(synthetic_images(batch, size), taken["dtype"])

    def run():
        interpreter.set_tensor(taken["index"], images)
        interpreter.invoke()
        return [interpreter.get_tensor(detail["index"]) for detail in given]

    return run
