"""The TFLite file: float32, builtin operations only, one image at a time, raw pixels in and probabilities out."""

import pathlib
import tempfile

import keras
import tensorflow as tf


def convert(classifier):
    """The network as a TFLite flatbuffer (bytes): `images` float32 (1, size, size, 3) -> `probabilities`.

    Operations outside TFLite's builtin set are an error here, not a file that needs an extra runtime.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "saved"
        archive = keras.export.ExportArchive()
        archive.add_endpoint("serving_default", classifier.probabilities, [classifier.images_spec(batch=1)])
        archive.write_out(str(path), verbose=False)
        converter = tf.lite.TFLiteConverter.from_saved_model(str(path), signature_keys=["serving_default"])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        return converter.convert()
