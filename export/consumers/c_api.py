"""Consumer: TensorFlow's C API, the loader that servers use, without Python's TensorFlow, Keras or protobuf.

    python -m consumers.c_api VERSION REFERENCE.npz ANSWERS.npz      (from export/; see protocol.py)

`TF_LoadSessionFromSavedModel` ends in the same C++ function, `tensorflow::LoadSavedModel`, as TF Serving's loader of
SavedModels. The library is the installed wheel's, found but not imported, by ctypes; declarations are those of
tensorflow/c/c_api.h, tf_tensor.h and tf_tstring.h. Warm-up records are replayed too: one that fails would make a
server refuse the version.
"""

import ctypes
import importlib.util
import pathlib
import sys
from ctypes import c_char_p, c_int, c_int64, c_size_t, c_void_p

import numpy as np

from consumers import wire_format
from consumers.protocol import Skip, answer_calls, run_consumer

LIBRARIES = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")  # Linux; the wheel's folder holds both
WARMUP = pathlib.Path("assets.extra", "tf_serving_warmup_requests")
MOST_WARMUP_RECORDS = 1000  # a server refuses more (saved_model_warmup_util.h)
STRING_BYTES = 24  # sizeof(TF_TString)
TYPE_NUMBERS = {name: number for number, name in wire_format.DTYPES.items()}


class Buffer(ctypes.Structure):
    """TF_Buffer."""

    _fields_ = [("data", c_void_p), ("length", c_size_t), ("deallocator", c_void_p)]


class Output(ctypes.Structure):
    """TF_Output: one result of an operation of the graph."""

    _fields_ = [("operation", c_void_p), ("index", c_int)]


# name: (type of the result, types of the arguments)
FUNCTIONS = {
    "TF_Version": (c_char_p, []),
    "TF_NewStatus": (c_void_p, []),
    "TF_DeleteStatus": (None, [c_void_p]),
    "TF_GetCode": (c_int, [c_void_p]),
    "TF_Message": (c_char_p, [c_void_p]),
    "TF_NewGraph": (c_void_p, []),
    "TF_DeleteGraph": (None, [c_void_p]),
    "TF_GraphOperationByName": (c_void_p, [c_void_p, c_char_p]),
    "TF_NewBuffer": (ctypes.POINTER(Buffer), []),
    "TF_DeleteBuffer": (None, [ctypes.POINTER(Buffer)]),
    "TF_NewSessionOptions": (c_void_p, []),
    "TF_DeleteSessionOptions": (None, [c_void_p]),
    "TF_LoadSessionFromSavedModel": (
        c_void_p,
        [c_void_p, c_void_p, c_char_p, ctypes.POINTER(c_char_p), c_int, c_void_p, ctypes.POINTER(Buffer), c_void_p],
    ),
    "TF_CloseSession": (None, [c_void_p, c_void_p]),
    "TF_DeleteSession": (None, [c_void_p, c_void_p]),
    "TF_SessionRun": (
        None,
        [c_void_p, c_void_p]
        + 2 * [ctypes.POINTER(Output), ctypes.POINTER(c_void_p), c_int]
        + [c_void_p, c_int, c_void_p, c_void_p],
    ),
    "TF_AllocateTensor": (c_void_p, [c_int, ctypes.POINTER(c_int64), c_int, c_size_t]),
    "TF_DeleteTensor": (None, [c_void_p]),
    "TF_TensorType": (c_int, [c_void_p]),
    "TF_TensorData": (c_void_p, [c_void_p]),
    "TF_TensorByteSize": (c_size_t, [c_void_p]),
    "TF_NumDims": (c_int, [c_void_p]),
    "TF_Dim": (c_int64, [c_void_p, c_int]),
    "TF_StringInit": (None, [c_void_p]),
    "TF_StringCopy": (None, [c_void_p, c_char_p, c_size_t]),
    "TF_StringDealloc": (None, [c_void_p]),
    "TF_StringGetDataPointer": (c_void_p, [c_void_p]),
    "TF_StringGetSize": (c_size_t, [c_void_p]),
}


class TensorFlowError(Exception):
    """A status that is not OK: `code` as in tensorflow/core/protobuf/error_codes.proto, and the message."""

    def __init__(self, code, message):
        super().__init__(f"{message} (code {code})")
        self.code = code


def load_library():
    """An object with the functions of the C API as attributes, their types declared.

    Raises:
        Skip: not Linux, or no TensorFlow wheel with the libraries.
    """
    if not sys.platform.startswith("linux"):
        raise Skip(f"the C API's library names are known for Linux only; this is {sys.platform}")
    specification = importlib.util.find_spec("tensorflow")
    folder = pathlib.Path(specification.submodule_search_locations[0]) if specification else pathlib.Path()
    missing = [name for name in LIBRARIES if not (folder / name).exists()]
    if missing:
        raise Skip(f"the installed TensorFlow has no {' and no '.join(missing)}")
    # In ctypes' default mode: with RTLD_GLOBAL later imports of other extension modules can crash.
    libraries = [ctypes.CDLL(str(folder / name)) for name in LIBRARIES]
    api = type("CApi", (), {})()
    for name, (result, arguments) in FUNCTIONS.items():
        function = next(getattr(library, name) for library in libraries if hasattr(library, name))
        function.restype, function.argtypes = result, arguments
        setattr(api, name, function)
    return api


def read_signatures(meta_graph):
    """{signature: (inputs, outputs)} of a serialised MetaGraphDef; both {name: name of the graph's tensor}."""
    signatures = {}
    for name, definition in wire_format.string_map(meta_graph, 5).items():  # MetaGraphDef.signature_def
        inputs, outputs = (
            {key: wire_format.message(info)[1].decode() for key, info in wire_format.string_map(definition, n).items()}
            for n in (1, 2)  # SignatureDef.inputs, outputs; TensorInfo.name = 1
        )
        if wire_format.message(definition).get(3):  # method_name; the initialisation's entry has none
            signatures[name] = inputs, outputs
    return signatures


class SavedModel:
    """A SavedModel loaded by the C API, to be used in a `with` statement.

    Attributes:
        signatures: as in `read_signatures`.

    Raises:
        TensorFlowError: it does not load.
    """

    def __init__(self, api, path):
        self.api, self.session = api, None
        self.status, self.graph = api.TF_NewStatus(), api.TF_NewGraph()
        options, meta_graph = api.TF_NewSessionOptions(), api.TF_NewBuffer()
        try:
            self.session = api.TF_LoadSessionFromSavedModel(
                options, None, str(path).encode(), (c_char_p * 1)(b"serve"), 1, self.graph, meta_graph, self.status
            )
            self.check_status()
            content = meta_graph.contents
            self.signatures = read_signatures(ctypes.string_at(content.data, content.length))
        except TensorFlowError:
            self.close()
            raise
        finally:
            api.TF_DeleteBuffer(meta_graph)
            api.TF_DeleteSessionOptions(options)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        """Frees everything of the model; of no use afterwards."""
        if self.session:
            self.api.TF_CloseSession(self.session, self.status)
            self.api.TF_DeleteSession(self.session, self.status)
        self.api.TF_DeleteGraph(self.graph)
        self.api.TF_DeleteStatus(self.status)

    def check_status(self):
        """Raises TensorFlowError if the last call failed."""
        code = self.api.TF_GetCode(self.status)
        if code:
            raise TensorFlowError(code, self.api.TF_Message(self.status).decode(errors="replace"))

    def output(self, name):
        """The TF_Output of a tensor called `operation:index`."""
        operation, index = name.rsplit(":", 1)
        pointer = self.api.TF_GraphOperationByName(self.graph, operation.encode())
        if not pointer:
            raise ValueError(f"The signature names {name}, which the graph does not have.")
        return Output(pointer, int(index))

    def make_tensor(self, array):
        """A TF_Tensor with the content of `array` (numbers, or objects of type bytes), to be freed by `free_tensor`."""
        strings = array.dtype == object
        number = wire_format.STRING if strings else TYPE_NUMBERS[array.dtype.name]
        size = STRING_BYTES * array.size if strings else array.nbytes
        tensor = self.api.TF_AllocateTensor(number, (c_int64 * array.ndim)(*array.shape), array.ndim, size)
        data = self.api.TF_TensorData(tensor)
        if strings:
            for index, value in enumerate(array.ravel()):
                self.api.TF_StringInit(data + STRING_BYTES * index)
                self.api.TF_StringCopy(data + STRING_BYTES * index, value, len(value))
        elif size:
            ctypes.memmove(data, np.ascontiguousarray(array).ctypes.data, size)
        return tensor

    def free_tensor(self, tensor):
        """Frees a tensor of `make_tensor`, and its strings, which TF_DeleteTensor would leave."""
        if self.api.TF_TensorType(tensor) == wire_format.STRING:
            data, size = self.api.TF_TensorData(tensor), self.api.TF_TensorByteSize(tensor)
            for offset in range(0, size, STRING_BYTES):
                self.api.TF_StringDealloc(data + offset)
        self.api.TF_DeleteTensor(tensor)

    def read_tensor(self, tensor):
        """The content of a TF_Tensor as an array; strings as an object array of bytes."""
        shape = [self.api.TF_Dim(tensor, axis) for axis in range(self.api.TF_NumDims(tensor))]
        data, number = self.api.TF_TensorData(tensor), self.api.TF_TensorType(tensor)
        if number != wire_format.STRING:
            content = ctypes.string_at(data, self.api.TF_TensorByteSize(tensor))
            return np.frombuffer(content, wire_format.DTYPES[number]).reshape(shape)
        strings = np.empty(int(np.prod(shape)), object)
        for index in range(len(strings)):
            string = data + STRING_BYTES * index
            size = self.api.TF_StringGetSize(string)
            strings[index] = ctypes.string_at(self.api.TF_StringGetDataPointer(string), size)
        return strings.reshape(shape)

    def predict(self, signature, inputs):
        """The signature's outputs {name: array} for `inputs` {name: array}.

        Raises:
            ValueError: no such signature, or other inputs than it has.
            TensorFlowError: the graph refuses the values, such as an image that does not decode.
        """
        if signature not in self.signatures:
            raise ValueError(f"Expected one of the signatures {sorted(self.signatures)}. Received: {signature!r}")
        input_names, output_names = self.signatures[signature]
        if set(inputs) != set(input_names):
            raise ValueError(f"{signature} takes {sorted(input_names)}. Received: {sorted(inputs)}")
        feeds = (Output * len(inputs))(*(self.output(input_names[name]) for name in inputs))
        fetches = (Output * len(output_names))(*map(self.output, output_names.values()))
        tensors = [self.make_tensor(array) for array in inputs.values()]
        results = (c_void_p * len(output_names))()
        try:
            self.api.TF_SessionRun(
                *(self.session, None),
                *(feeds, (c_void_p * len(tensors))(*tensors), len(tensors)),
                *(fetches, results, len(results)),
                *(None, 0, None, self.status),
            )
            self.check_status()
            return dict(zip(output_names, map(self.read_tensor, results), strict=True))
        finally:
            for tensor in tensors:
                self.free_tensor(tensor)
            for result in filter(None, results):
                self.api.TF_DeleteTensor(result)


def replay_warmup(model, path):
    """Runs the warm-up records of a version, as a server does before it serves it; returns their number."""
    if not (path / WARMUP).exists():
        return 0
    records = list(wire_format.records((path / WARMUP).read_bytes()))
    if not 1 <= len(records) <= MOST_WARMUP_RECORDS:
        raise ValueError(f"Expected 1 to {MOST_WARMUP_RECORDS} warm-up records. Received: {len(records)}")
    for record in records:
        model.predict(*wire_format.warmup_request(record))
    return len(records)


def consume(path, reference):
    api = load_library()
    with SavedModel(api, path) as model:
        answers = answer_calls(model.predict, reference)
        description = {
            "runtime": f"TensorFlow {api.TF_Version().decode()}, C API",
            "warmup_records": replay_warmup(model, path),
        }
    loaded = {"tensorflow", "keras", "google.protobuf"} & set(sys.modules)
    if loaded:
        raise RuntimeError(f"This consumer must not import {sorted(loaded)}.")
    return answers, description


if __name__ == "__main__":
    run_consumer(consume)
