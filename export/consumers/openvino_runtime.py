"""Consumer: OpenVINO, Intel's runtime, which reads a SavedModel's `serving_default` without TensorFlow.

python -m consumers.openvino_runtime VERSION REFERENCE.npz ANSWERS.npz      (from export/; see protocol.py)
"""

import importlib.util

from consumers.protocol import Skip, answer_calls, run_consumer


def consume(path, reference):
    if importlib.util.find_spec("openvino") is None:
        raise Skip("openvino is not installed")
    import openvino

    model = openvino.Core().read_model(path)
    # Without the hint it may compute in bfloat16 where the processor can, with errors of several per cent.
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})

    def predict(signature, inputs):
        answer = compiled(inputs)
        return {output.get_any_name(): answer[output] for output in compiled.outputs}

    answers = answer_calls(predict, reference, signatures=["serving_default"])
    return answers, {"runtime": f"OpenVINO {openvino.get_version()}"}


if __name__ == "__main__":
    run_consumer(consume)
