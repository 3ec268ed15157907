"""Consumer: LiteRT, the runtime of TFLite files, with float or integer pixels in and float or quantized output.

python -m consumers.litert_runtime FILE.tflite REFERENCE.npz ANSWERS.npz      (from export/; see protocol.py)
"""

import importlib.metadata

import numpy as np

from consumers import detection_rules
from consumers.answer_rules import answer_name
from consumers.protocol import run_consumer


def custom_operations(path):
    """Names of operations outside TFLite's builtin set; those of TensorFlow begin with Flex."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    return sorted({code.customCode.decode() for code in model.operatorCodes if code.customCode})


def stored_pixels(array, dtype):
    """Pixels 0..255 as apps and MediaPipe write them into a file's input, whatever scale it declares: floats, raw bytes
    of a uint8 input, or bytes less 128 of an int8 one."""
    if np.dtype(dtype).kind == "f":
        return array.astype(dtype)
    return (np.clip(np.round(array), 0, 255) + np.iinfo(dtype).min).astype(dtype)


def dequantize(array, details):
    """The float32 values of a quantized tensor's integers; other tensors' values as they are."""
    scale, zero_point = details["quantization"]
    if not scale:
        return array
    return ((array.astype("float64") - zero_point) * scale).astype("float32")


def consume(path, reference):
    from ai_edge_litert.interpreter import Interpreter

    if custom := custom_operations(path):
        raise ValueError(f"{path.name} needs operations outside TFLite's builtin set: {', '.join(custom)}")
    interpreter = Interpreter(str(path))
    detects = detection_rules.is_detectors(reference)
    key, names = ("canvases", detection_rules.FOUND) if detects else ("images", (answer_name(reference),))
    expected = {"serving_default": {"inputs": ["images"], "outputs": sorted(names)}}
    if (signatures := interpreter.get_signature_list()) != expected:
        raise ValueError(f"Expected the signature {expected}. Received: {signatures}")
    run = interpreter.get_signature_runner("serving_default")
    image, outputs = run.get_input_details()["images"], run.get_output_details()
    rows = [run(images=stored_pixels(row[None], image["dtype"])) for row in reference[key]]
    answers = {name: dequantize(np.concatenate([row[name] for row in rows]), outputs[name]) for name in names}
    return answers, {"runtime": f"LiteRT {importlib.metadata.version('ai-edge-litert')}"}


if __name__ == "__main__":
    run_consumer(consume)
