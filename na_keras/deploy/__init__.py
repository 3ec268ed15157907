"""A trained Keras classifier as what ships: deploy form, SavedModel, TFLite and ONNX files (TensorFlow).

    from na_keras.deploy import convert_tflite

    pathlib.Path("model.tflite").write_bytes(convert_tflite(model, "int8", images, labels=names))

    deploy_copy         the same function of the image, with less work in it; what all files are written from
    write_saved_model   for TensorFlow Serving: images or encoded files in, probabilities and best classes out
    convert_tflite      for devices, of any of TFLITE_KINDS; describe says what is in such a file
    write_onnx          for ONNX Runtime and others
    compare_tensors     where a quantized TFLite file loses its accuracy: a TensorReport per tensor, for write_csv

Pixels are RGB, 0..255, everywhere: the network normalises them itself. Errors are exceptions and nothing is printed.
`import na_keras` does not import this package. TFLite files need the extra `export` (ai-edge-litert), ONNX files the
extra `onnx`; both are imported when they are used.
"""

from na_keras.deploy.onnx_file import write_onnx
from na_keras.deploy.rewrite import deploy_copy
from na_keras.deploy.saved_model import write_saved_model
from na_keras.deploy.tflite.conversion import convert_tflite
from na_keras.deploy.tflite.graph import describe
from na_keras.deploy.tflite.kinds import TFLITE_KINDS
from na_keras.deploy.tflite.tensor_report import TensorReport, compare_tensors, write_csv

__all__ = [
    "TFLITE_KINDS",
    "TensorReport",
    "compare_tensors",
    "convert_tflite",
    "deploy_copy",
    "describe",
    "write_csv",
    "write_onnx",
    "write_saved_model",
]
