"""A TFLite file in LiteRT, with float or quantized input and output.

A quantized tensor stands for value = scale * (stored - zero_point). A value that lies between two steps becomes the
nearer one, half a step the even one, before the zero point is added, as LiteRT's own QUANTIZE does on CPUs (its plain
reference kernel alone rounds halves away from zero); what is out of range becomes the last step.
"""

import importlib

import numpy as np


def litert(module):
    """A module of the optional package ai-edge-litert, "interpreter" or "schema_py_generated".

    Raises:
        ImportError: the package is not installed; the message says how to get it.
    """
    try:
        return importlib.import_module(f"ai_edge_litert.{module}")
    except ImportError as error:
        raise ImportError(
            "TFLite files need ai-edge-litert. Run: pip install 'na-keras[export]', in a checkout pip install -e "
            f"'.[export]'. ({error})"
        ) from error


def quantize(values, dtype, scale, zero_point):
    """Float values as integers of `dtype`: values / scale, rounded half to even, plus the zero point, clipped."""
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values / np.float32(scale)) + zero_point, limits.min, limits.max).astype(dtype)


def dequantize(stored, scale, zero_point):
    """The float64 values of integers."""
    return (stored.astype(np.float64) - zero_point) * scale


class Runner:
    """A TFLite file with one input, in LiteRT.

    Args:
        file: the file (bytes), or its path.
        threads: of LiteRT; None leaves it the choice.
        keep_tensors: whether `value` can be asked for intermediate tensors; then LiteRT runs without its delegate,
            which keeps none.

    Attributes:
        input_shape, input_dtype: shape (batch, height, width, channels) with the batch that the file was made for, 1,
            and NumPy dtype as stored.
        output_shapes: of the outputs.

    Raises:
        ImportError: ai-edge-litert is not installed.
        ValueError: not a TFLite file, one that needs operations which LiteRT does not have, or one with several inputs.
    """

    def __init__(self, file, *, threads=None, keep_tensors=False):
        interpreter = litert("interpreter")
        options = {"num_threads": threads}
        if keep_tensors:
            options |= {
                "experimental_preserve_all_tensors": True,
                "experimental_op_resolver_type": interpreter.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            }
        if isinstance(file, bytes):
            name, source = f"The file ({len(file)} bytes)", {"model_content": file}
        else:
            name, source = file, {"model_path": str(file)}
        try:
            self._interpreter = interpreter.Interpreter(**source, **options)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:  # not a TFLite file; operations that LiteRT does not have
            raise ValueError(f"{name} does not run in LiteRT: {error}") from error
        inputs = self._interpreter.get_input_details()
        if len(inputs) != 1:
            raise ValueError(f"Expected a file with one input. Received: {[detail['name'] for detail in inputs]}")
        (self._input,) = inputs
        self._outputs = self._interpreter.get_output_details()
        self._tensors = {detail["name"]: detail for detail in self._interpreter.get_tensor_details()}
        self.input_shape, self.input_dtype = tuple(map(int, self._input["shape"])), np.dtype(self._input["dtype"])
        self.output_shapes = [tuple(map(int, detail["shape"])) for detail in self._outputs]

    def run_stored(self, stored):
        """Runs the file on an input as it is stored, of input_shape and input_dtype; returns all outputs as stored.

        Raises:
            RuntimeError: an operation fails on this input; plain NA in int8 does.
            ValueError: an input of another shape or dtype.
        """
        self._interpreter.set_tensor(self._input["index"], stored)
        self._interpreter.invoke()
        return [self._interpreter.get_tensor(detail["index"]) for detail in self._outputs]

    def __call__(self, values):
        """Runs the file on real numbers.

        Args:
            values: array of input_shape; for an image 0..255.

        Returns:
            The first output's values: float32. Raises as `run_stored`.
        """
        scale, zero_point = self._input["quantization"]
        if scale:
            values = quantize(values, self.input_dtype, scale, zero_point)
        stored = self.run_stored(values.astype(self.input_dtype, copy=False))[0]
        scale, zero_point = self._outputs[0]["quantization"]
        return (dequantize(stored, scale, zero_point) if scale else stored).astype(np.float32)

    def value(self, name):
        """The values of the tensor with this name after a run, in real units; needs `keep_tensors`."""
        detail = self._tensors[name]
        stored = self._interpreter.get_tensor(detail["index"])
        scale, zero_point = detail["quantization"]
        return dequantize(stored, scale, zero_point) if scale else stored
