"""What is inside a TFLite file: its operations and the tensors that they touch.

Two promises of an exported file cannot be seen from outside. That it uses TFLite's builtin operations only: a custom or
"Flex" operation needs a runtime that phones do not have. And that an integer-only file computes in integers: the
converter leaves an operation that has no integer form in float (NEG and SQRT are two), without a word, and an
accelerator for integers refuses such a file.

The flatbuffer is read in place with LiteRT's generated classes; the weights are not copied.
"""

import collections
import dataclasses
import struct

from na_keras.deploy.tflite.runner import litert

IDENTIFIER = b"TFL3"  # bytes 4 to 8 of every TFLite file


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a file.

    Attributes:
        name: the converter's; unique only by habit.
        dtype: "float32", "int8", ...
        shape: the stored one; a dimension that may change is stored as 1.
        scale, zero_point: value = scale * (stored - zero_point), a number per channel; () where not quantized.
        constant: whether the file holds its values.
    """

    name: str
    dtype: str
    shape: tuple
    scale: tuple
    zero_point: tuple
    constant: bool

    @property
    def is_float(self):
        """Whether the values are floating-point numbers."""
        return self.dtype.startswith(("float", "bfloat", "complex"))


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation: its name ("CONV_2D"; "CUSTOM FlexErf" outside the builtin set) and its tensors."""

    name: str
    inputs: tuple
    outputs: tuple

    @property
    def is_custom(self):
        """Whether it needs more than TFLite's own runtime."""
        return self.name.startswith("CUSTOM")


@dataclasses.dataclass(frozen=True)
class Graph:
    """A subgraph: its operations in the order in which they run, and the tensors that go in and come out."""

    operations: tuple
    inputs: tuple
    outputs: tuple


def names_of(enumeration):
    """{number: name} of a generated enumeration."""
    return {number: name for name, number in vars(enumeration).items() if not name.startswith("_")}


def operator_name(code, builtin):
    """ "CONV_2D", or "CUSTOM FlexErf"."""
    if code.CustomCode():
        return f"CUSTOM {code.CustomCode().decode()}"
    # Files of before 2020 hold the number in the older, 8-bit field.
    return builtin[max(code.BuiltinCode(), code.DeprecatedBuiltinCode())]


def read_tensor(model, tensor, dtypes):
    """Tensor of the flatbuffer's entry."""
    quantization, buffer = tensor.Quantization(), model.Buffers(tensor.Buffer())
    quantized = quantization is not None and quantization.ScaleLength()
    return Tensor(
        tensor.Name().decode(),
        dtypes[tensor.Type()].lower(),
        tuple(tensor.ShapeAsNumpy().tolist()) if tensor.ShapeLength() else (),
        tuple(quantization.ScaleAsNumpy().tolist()) if quantized else (),
        tuple(quantization.ZeroPointAsNumpy().tolist()) if quantized else (),
        constant=bool(buffer.DataLength() or buffer.Size()),
    )


def read_graph(model, graph, codes, dtypes):
    """Graph of the flatbuffer's subgraph."""
    tensors = [read_tensor(model, graph.Tensors(index), dtypes) for index in range(graph.TensorsLength())]

    def pick(index_of, count):
        indices = [index_of(position) for position in range(count)]
        return tuple(tensors[index] for index in indices if index >= 0)  # -1: an optional input that is not given

    def read(node):
        name = codes[node.OpcodeIndex()]
        return Operation(name, pick(node.Inputs, node.InputsLength()), pick(node.Outputs, node.OutputsLength()))

    nodes = tuple(read(graph.Operators(index)) for index in range(graph.OperatorsLength()))
    return Graph(nodes, pick(graph.Inputs, graph.InputsLength()), pick(graph.Outputs, graph.OutputsLength()))


def read_graphs(blob):
    """The subgraphs of a TFLite file (bytes), the main one first.

    Raises:
        ImportError: ai-edge-litert is not installed.
        ValueError: bytes that are not a TFLite file, or a damaged one.
    """
    schema = litert("schema_py_generated")
    if bytes(blob[4:8]) != IDENTIFIER:
        raise ValueError(f"Expected a TFLite file, with {IDENTIFIER} in bytes 4 to 8. Received: {bytes(blob[:8])!r}")
    builtin, dtypes = names_of(schema.BuiltinOperator), names_of(schema.TensorType)
    try:
        model = schema.Model.GetRootAs(blob, 0)
        codes = [operator_name(model.OperatorCodes(index), builtin) for index in range(model.OperatorCodesLength())]
        subgraphs = [model.Subgraphs(index) for index in range(model.SubgraphsLength())]
        graphs = [read_graph(model, graph, codes, dtypes) for graph in subgraphs]
    except (struct.error, IndexError, KeyError, ValueError) as error:
        raise ValueError(f"The TFLite file is damaged or cut short ({len(blob)} bytes): {error!r}") from error
    if not graphs:
        raise ValueError("The TFLite file holds no graph.")
    return graphs


def operations(blob):
    """Every operation of a TFLite file (bytes), in the order in which they run. Raises as `read_graphs`."""
    return [operation for graph in read_graphs(blob) for operation in graph.operations]


def counted(names):
    """Names, or {name: count}, as text: "ADD (2), NEG", the most frequent first."""
    return ", ".join(f"{name} ({n})" if n > 1 else name for name, n in collections.Counter(names).most_common())


def check_builtins_only(blob):
    """Checks that a file needs nothing but TFLite's own runtime.

    Raises:
        ValueError: it holds custom operations ("Flex": TensorFlow's own); the message names them.
    """
    if custom := [operation.name for operation in operations(blob) if operation.is_custom]:
        raise ValueError(
            f"Expected TFLite's builtin operations only. Received: {counted(custom)}. Interpreters on devices refuse "
            "such a file; convert with OpsSet.TFLITE_BUILTINS and a float32 network."
        )


def float_operations(blob):
    """The operations that touch floating-point tensors, each with the first of these: [(Operation, Tensor)]."""
    found = []
    for operation in operations(blob):
        if floats := [tensor for tensor in (*operation.outputs, *operation.inputs) if tensor.is_float]:
            found.append((operation, floats[0]))
    return found


def check_integer_only(blob):
    """Checks that no operation of a file reads or writes a floating-point tensor.

    Raises:
        ValueError: some do; the message names each operation with its first floating-point tensor.
    """
    if found := float_operations(blob):
        lines = [f"  {operation.name}: {tensor.dtype} {tensor.name}" for operation, tensor in found]
        raise ValueError(
            f"Expected an integer-only file. {len(found)} operations touch floating-point tensors:\n" + "\n".join(lines)
        )


def describe_tensor(tensor):
    """A tensor as a dictionary that JSON takes."""
    described = {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}
    if tensor.scale:
        described |= {"scale": list(tensor.scale), "zero_point": list(tensor.zero_point)}
    return described


def describe(blob):
    """A TFLite file in numbers, as a dictionary that JSON takes, for a manifest.

    Returns:
        bytes (the size), operations ({name: count}, most frequent first), inputs and outputs (name, dtype, shape and,
        where quantized, scale and zero_point, a number per channel each). Raises as `read_graphs`.
    """
    graphs = read_graphs(blob)
    counts = collections.Counter(operation.name for graph in graphs for operation in graph.operations)
    return {
        "bytes": len(blob),
        "operations": dict(counts.most_common()),
        "inputs": [describe_tensor(tensor) for tensor in graphs[0].inputs],
        "outputs": [describe_tensor(tensor) for tensor in graphs[0].outputs],
    }
