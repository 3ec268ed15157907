"""A stand-in for tensorflow_model_server: its documented REST interface, Predict over gRPC, and the flags we pass.

It is not TensorFlow Serving: it shows that our client and our checks speak the interface as it is documented
(tensorflow_serving/g3doc/api_rest.md and prediction_service.proto), not that a server accepts an export. As a program
it answers with the SavedModel itself, loaded by the C API:

    python tests/helpers/stand_in_server.py --port=8500 --rest_api_port=8501 --model_name=demo \\
        --model_base_path=exported/demo
"""

import argparse
import base64
import concurrent.futures
import http.server
import importlib.util
import json
import pathlib
import sys

import numpy as np

INPUTS = {"serving_default": "images", "serve_bytes": "image_bytes"}


class BadRequest(Exception):
    """What the server answers with status 400 or INVALID_ARGUMENT."""


def as_array(instances):
    """The values of row format: encoded bytes or nested lists of numbers."""
    if not isinstance(instances[0], dict):
        values = np.array(instances)
        return values.astype("uint8" if values.dtype.kind == "i" else "float32")
    values = np.empty(len(instances), object)
    values[:] = [base64.b64decode(instance["b64"], validate=True) for instance in instances]
    return values


def as_json(array):
    """An output's rows; strings as text."""
    if array.dtype != object:
        return array.tolist()
    return [[text.decode() for text in row] for row in array]


def rest_handler(predict, name="demo", busy=0, state="AVAILABLE"):
    """A request handler class for the model `name`.

    Args:
        predict: function (signature, {input name: array}) -> {output: array}; raises BadRequest.
        busy: how many requests are first answered with 503.
        state: what the model's status says.
    """
    patience = [busy]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            if self.path != f"/v1/models/{name}/versions/1":
                return self.answer(404, {"error": f"Could not find {self.path}"})
            status = {"error_code": "OK" if state == "AVAILABLE" else "NOT_FOUND", "error_message": f"is at {state}"}
            self.answer(200, {"model_version_status": [{"version": "1", "state": state, "status": status}]})

        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if patience[0]:
                patience[0] -= 1
                return self.answer(503, {"error": "Batch queue is full"})
            if self.path == "/v1/models/other:predict":
                return self.answer(200, {"predictions": [[0.5, 0.5]]})
            if self.path != f"/v1/models/{name}:predict":
                return self.answer(404, {"error": f"Servable not found for request: {self.path}"})
            signature = request["signature_name"]
            try:
                answer = predict(signature, {INPUTS[signature]: as_array(request["instances"])})
            except BadRequest as error:
                return self.answer(400, {"error": str(error)})
            rows = zip(*map(as_json, answer.values()), strict=True)
            self.answer(200, {"predictions": [dict(zip(answer, row, strict=True)) for row in rows]})

        def answer(self, code, content):
            body = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    return Handler


def start_grpc(predict, address, name="demo"):
    """A started gRPC server with PredictionService.Predict, and its port; needs tensorflow-serving-api."""
    import grpc
    import tensorflow as tf
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            if request.model_spec.name != name:
                context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found: {request.model_spec.name}")
            inputs = {key: tf.make_ndarray(value) for key, value in request.inputs.items()}
            try:
                answer = predict(request.model_spec.signature_name, inputs)
            except BadRequest as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            response = predict_pb2.PredictResponse()
            for key, value in answer.items():
                response.outputs[key].CopyFrom(tf.make_tensor_proto(value))
            return response

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(Service(), server)
    port = server.add_insecure_port(address)
    server.start()
    return server, port


def install(folder):
    """Writes this file as a program `tensorflow_model_server` into the new folder `folder`; returns its path."""
    here = pathlib.Path(__file__).resolve()
    folder.mkdir()
    program = folder / "tensorflow_model_server"
    export = here.parents[2] / "export"
    program.write_text(f'#!/bin/sh\nPYTHONPATH="{export}:$PYTHONPATH" exec "{sys.executable}" "{here}" "$@"\n')
    program.chmod(0o755)
    return program


def main():
    from consumers.c_api import SavedModel, TensorFlowError, load_library

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kind in (("port", int), ("rest_api_port", int), ("model_name", str), ("model_base_path", pathlib.Path)):
        parser.add_argument(f"--{name}", type=kind, required=True)
    parser.add_argument("--state", default="AVAILABLE", help="what the status says; no flag of the real server")
    parser.add_argument("--version", action="version", version="stand-in for TensorFlow ModelServer")
    flags = parser.parse_args()
    model = SavedModel(load_library(), flags.model_base_path / "1")

    def predict(signature, inputs):
        try:
            return model.predict(signature, inputs)
        except (TensorFlowError, ValueError) as error:
            raise BadRequest(error) from error

    if importlib.util.find_spec("tensorflow_serving"):
        server, _ = start_grpc(predict, f"127.0.0.1:{flags.port}", flags.model_name)  # kept: it ends with its object
    handler = rest_handler(predict, flags.model_name, state=flags.state)
    http.server.ThreadingHTTPServer(("127.0.0.1", flags.rest_api_port), handler).serve_forever()


if __name__ == "__main__":
    main()
