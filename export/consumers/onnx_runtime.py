"""Consumer: ONNX Runtime, of an ONNX file.

python -m consumers.onnx_runtime FILE.onnx REFERENCE.npz ANSWERS.npz      (from export/; see protocol.py)
"""

import importlib.util

from consumers.answer_rules import answer_name
from consumers.protocol import Skip, answer_calls, run_consumer


def consume(path, reference):
    if importlib.util.find_spec("onnxruntime") is None:
        raise Skip("onnxruntime is not installed")
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    if inputs != ["images"] or len(outputs) != 1:
        raise ValueError(f"Expected the input 'images' and one output. Received: {inputs} and {outputs}")
    answer = answer_name(reference)
    predict = lambda signature, feeds: {answer: session.run(outputs, feeds)[0]}  # noqa: E731
    batches = answer_calls(predict, reference, signatures=["serving_default"])
    count = len(reference["images"])
    description = {"runtime": f"ONNX Runtime {onnxruntime.__version__}"}
    return {answer: batches[f"serving_default/0:{count}/{answer}"]}, description


if __name__ == "__main__":
    run_consumer(consume)
