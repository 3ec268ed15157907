"""A TFLite file's one graph as objects, to be changed and packed into a file again."""

from na_keras.deploy.tflite.graph import names_of
from na_keras.deploy.tflite.metadata import AlignedBuilder
from na_keras.deploy.tflite.runner import litert


class EditedFile:
    """A TFLite file in memory.

    Args:
        flatbuffer: the file (bytes), with one graph.

    Raises:
        ImportError: ai-edge-litert is not installed.
    """

    def __init__(self, flatbuffer):
        self.schema = schema = litert("schema_py_generated")
        self.operations = names_of(schema.BuiltinOperator)
        self.size = len(flatbuffer)
        self.model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(bytearray(flatbuffer), 0))
        (self.graph,) = self.model.subgraphs

    def name(self, operator):
        """The builtin operation of an operator."""
        code = self.model.operatorCodes[operator.opcodeIndex]
        return self.operations[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def data(self, index):
        """A constant tensor's bytes; None for the others."""
        data = self.model.buffers[self.graph.tensors[index].buffer].data
        return None if data is None or len(data) == 0 else bytes(data)

    def shape(self, index):
        """A tensor's stored shape as a list of int."""
        shape = self.graph.tensors[index].shape
        return [] if shape is None else [int(size) for size in shape]

    def add_tensor(self, name, shape, dtype, data=None, quantization=None):
        """A new tensor's index.

        Args:
            name: bytes.
            shape: list of int.
            dtype: of schema.TensorType.
            data: numpy array of uint8 for a constant.
            quantization: of another tensor, or None.
        """
        buffer, tensor = self.schema.BufferT(), self.schema.TensorT()
        buffer.data = data
        self.model.buffers.append(buffer)
        tensor.name, tensor.shape, tensor.type = name, shape, dtype
        tensor.buffer, tensor.quantization = len(self.model.buffers) - 1, quantization
        self.graph.tensors.append(tensor)
        return len(self.graph.tensors) - 1

    def make_operator(self, name, inputs, outputs, version=1):
        """A new operator without options, not yet in the graph.

        Args:
            name: of the builtin operation, such as "RESHAPE".
            inputs, outputs: indices of tensors.
            version: of the operation, where the file has none of it yet.
        """
        code = getattr(self.schema.BuiltinOperator, name)
        codes = [max(other.builtinCode, other.deprecatedBuiltinCode) for other in self.model.operatorCodes]
        if code not in codes:
            new = self.schema.OperatorCodeT()
            new.builtinCode = new.deprecatedBuiltinCode = code
            new.version = version
            self.model.operatorCodes.append(new)
            codes.append(code)
        operator = self.schema.OperatorT()
        operator.opcodeIndex, operator.inputs, operator.outputs = codes.index(code), inputs, outputs
        return operator

    def pack(self):
        """The file as it is now (bytes)."""
        builder = AlignedBuilder(self.size + 4096)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        return bytes(builder.Output())
