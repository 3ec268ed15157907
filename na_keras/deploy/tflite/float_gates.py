"""An int8 TFLite file whose attention gates compute in float: faster on CPUs, and truer.

In an integer-only file the few numbers of NA's gates, a one-channel map and one number a channel, go through int8 EXP,
MINIMUM and RSQRT, which have 256 steps each and which LiteRT's CPU delegate does not take: it cuts the graph in two at
each, three times a block. Between a DEQUANTIZE and a QUANTIZE the same numbers are computed in float, and the whole
graph stays in one piece. Everything with as many numbers as the feature map stays int8.

What is changed: starting at operations that only a gate has (SEEDS), all elementwise operations and means that are
connected with them through small tensors, those of one channel or of one row.
"""

import numpy as np

from na_keras.deploy.tflite.editing import EditedFile
from na_keras.deploy.tflite.runner import dequantize

SEEDS = ("EXP", "RSQRT")
ELEMENTWISE = (*SEEDS, "ADD", "LOGISTIC", "MEAN", "MINIMUM", "MUL", "RESHAPE", "SUB")


def is_small(shape):
    """Whether a tensor of this shape is a gate's: (1, positions), (1, h, w, 1), (1, 1, w, c)."""
    return len(shape) == 2 or (len(shape) > 2 and (shape[-1] == 1 or shape[1] == 1))


class Rewriting(EditedFile):
    """One file's graph while its gates are moved to float."""

    def __init__(self, flatbuffer):
        super().__init__(flatbuffer)
        self.floats = {}  # index of an int8 tensor: index of the float one with the same meaning
        self.operators = []  # the new list, in order

    def activations(self, operator):
        """Indices of the tensors that an operator reads and writes, without constants."""
        return [i for i in (*operator.inputs, *operator.outputs) if i >= 0 and self.data(i) is None]

    def is_int8(self, index):
        """Whether a tensor holds 8-bit integers."""
        return self.graph.tensors[index].type == self.schema.TensorType.INT8

    def is_small_int8(self, index):
        """Whether a tensor is an int8 one of a gate's size."""
        return self.is_int8(index) and is_small(self.graph.tensors[index].shape)

    def gates(self):
        """Positions in the list of operators of those that will compute in float."""
        candidates = {
            position: self.activations(operator)
            for position, operator in enumerate(self.graph.operators)
            if self.name(operator) in ELEMENTWISE and all(map(self.is_small_int8, self.activations(operator)))
        }
        touching = {}
        for position, indices in candidates.items():
            for index in indices:
                touching.setdefault(index, []).append(position)
        found = {position for position in candidates if self.name(self.graph.operators[position]) in SEEDS}
        waiting = list(found)
        while waiting:
            for index in candidates[waiting.pop()]:
                new = set(touching[index]) - found
                found |= new
                waiting += new
        return found

    def float_tensor(self, index):
        """A new float tensor with the shape of an int8 one, and its values if it is constant."""
        tensor, data = self.graph.tensors[index], self.data(index)
        if data is not None:
            quantization = tensor.quantization
            scale, zero_point = np.asarray(quantization.scale), np.asarray(quantization.zeroPoint)
            values = dequantize(np.frombuffer(data, np.int8), scale, zero_point)
            data = np.frombuffer(values.astype("float32").tobytes(), np.uint8)
        new = self.add_tensor(tensor.name + b"/float", tensor.shape, self.schema.TensorType.FLOAT32, data)
        self.graph.tensors[new].shapeSignature = tensor.shapeSignature
        self.floats[index] = new
        return new

    def add_conversion(self, name, source, target):
        """Appends a conversion, QUANTIZE or DEQUANTIZE, from one tensor to another."""
        version = 2 if name == "DEQUANTIZE" else 1  # the first versions that know int8
        self.operators.append(self.make_operator(name, [source], [target], version))

    def as_float(self, index):
        """The float tensor to read instead of tensor `index`; integer arguments such as axes stay what they are."""
        if not self.is_int8(index):
            return index
        if index not in self.floats:
            constant = self.data(index) is not None
            new = self.float_tensor(index)
            if not constant:
                self.add_conversion("DEQUANTIZE", index, new)
        return self.floats[index]

    def rewrite(self):
        """Moves the gates to float; returns how many operators that were."""
        gates = self.gates()
        others = {i for k, o in enumerate(self.graph.operators) if k not in gates for i in o.inputs}
        others |= set(self.graph.outputs)
        for position, operator in enumerate(self.graph.operators):
            if position not in gates:
                self.operators.append(operator)
                continue
            (output,) = operator.outputs
            operator.inputs = [self.as_float(index) for index in operator.inputs]
            operator.outputs = [self.float_tensor(output)]
            self.operators.append(operator)
            if output in others:
                self.add_conversion("QUANTIZE", self.floats[output], output)
        self.graph.operators = self.operators
        return len(gates)


def with_float_gates(flatbuffer):
    """The same TFLite file with the gates of its attention modules in float.

    Args:
        flatbuffer: bytes of an integer-only file with one graph, whose attention is in integer-safe form.

    Returns:
        bytes; the inputs and outputs are the same.

    Raises:
        ImportError: ai-edge-litert is not installed.
        ValueError: there is no gate in the file: it would be the same file.
    """
    rewriting = Rewriting(flatbuffer)
    if not rewriting.rewrite():
        raise ValueError(
            "No attention gate in this file: expected int8 operations of the integer-safe form of "
            f"NormalizationAttention ({', '.join(SEEDS)} on small tensors). The plain int8 file is what you want."
        )
    return rewriting.pack()
