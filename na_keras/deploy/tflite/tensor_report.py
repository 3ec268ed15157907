"""Where a quantized network loses its accuracy: every tensor beside the same tensor of the float file, on real images.

Both files run image by image in LiteRT, without its delegate, which keeps no intermediate tensors. A tensor of the one
is that of the other if the converter gave both the same name and shape and an operation of the same kind writes them;
how many have a counterpart is printed. For each, over all images:

    low, high       range of the values in the float file
    scale, zero     value = scale * (stored - zero); empty for tensors that are not quantized
    levels          steps of `scale` between the smallest and the largest value that occur in the quantized file
    SQNR            signal-to-quantization-noise ratio, 10 log10(sum float^2 / sum (quantized - float)^2), in dB
    correlation     Pearson's, of the quantized values with the float ones; nan where one of them is constant

About 6 dB are one bit. SQNR counts a constant shift, correlation does not.
"""

import csv
import dataclasses

import numpy as np

from na_keras.deploy.attention_forms import GATE_SCOPE
from na_keras.deploy.tflite import graph
from na_keras.deploy.tflite.agreement import Agreement
from na_keras.deploy.tflite.runner import Runner
from na_keras.files import replace_file

CONVERSIONS = {"QUANTIZE", "DEQUANTIZE"}  # at the quantized file's borders they write what the float file computes


@dataclasses.dataclass(frozen=True)
class TensorReport:
    """What quantization did to one tensor; see the head of the file.

    Attributes:
        name, operation: the converter's name, and the operation that writes the tensor in the float file.
        shape, dtype: of the quantized file's tensor.
        scale, zero_point: None where the tensor is not quantized.
        low, high, levels, sqnr, correlation: over all images; `levels` is None where the tensor is not quantized.
    """

    name: str
    operation: str
    shape: tuple
    dtype: str
    scale: float | None
    zero_point: int | None
    low: float
    high: float
    levels: int | None
    sqnr: float
    correlation: float

    @property
    def is_gate(self):
        """Whether this is the output of a gate of NormalizationAttention; sigmoids of other modules are not."""
        return self.operation == "LOGISTIC" and GATE_SCOPE in self.name


def written_tensors(blob):
    """{name: (Operation, Tensor)} of the tensors that the main graph computes; names that occur twice are left out."""
    main = graph.read_graphs(blob)[0]
    pairs = [(operation, tensor) for operation in main.operations for tensor in operation.outputs]
    names = [tensor.name for _, tensor in pairs]
    names += [t.name for operation in main.operations for t in operation.inputs if t.constant]
    once = {name for name in set(names) if name and names.count(name) == 1}
    return {tensor.name: (operation, tensor) for operation, tensor in pairs if tensor.name in once}


def match_tensors(quantized, reference):
    """The tensors that two files (bytes) share, in the order in which the quantized one computes them.

    Returns:
        ([(name, Operation of the float file)], number of floating-point or quantized tensors that the quantized file
        computes).
    """
    ours, theirs = written_tensors(quantized), written_tensors(reference)
    # Shapes and indices are neither quantized nor float.
    candidates = {name: pair for name, pair in ours.items() if pair[1].scale or pair[1].is_float}
    matched = []
    for name, (operation, tensor) in candidates.items():
        if name not in theirs or theirs[name][1].shape != tensor.shape or not theirs[name][1].is_float:
            continue
        # The converter numbers names that it would give twice; the kind of operation tells a shifted number.
        if operation.name == theirs[name][0].name or operation.name in CONVERSIONS:
            matched.append((name, theirs[name][0]))
    return matched, len(candidates)


def compare_tensors(quantized, reference, images):
    """Compares every tensor that a quantized TFLite file shares with the float one, over all images.

    Args:
        quantized: the quantized file (bytes).
        reference: the file (bytes) of the same network in float, converted from the same form: the "float32" kind that
            convert_tflite makes of deploy_copy(model, "integer_safe")[0].
        images: float32 (count, size, size, 3), RGB 0..255, or an iterable of such images with or without a batch axis.

    Returns:
        A list of TensorReport, in the order in which the quantized file computes them. `is_gate` tells the outputs of
        NA's gates.

    Raises:
        ImportError: ai-edge-litert is not installed.
        ValueError: no images, files that share no tensor, or bytes that are not a TFLite file.
        RuntimeError: a file fails on an image (the message says which one); plain NA does in int8.
    """
    matched, _ = match_tensors(quantized, reference)
    if not matched:
        raise ValueError("The files share no tensor: are they of the same network, from the same converter?")
    runners = {kind: Runner(file, keep_tensors=True) for kind, file in (("quantized", quantized), ("float", reference))}
    sums = {name: Agreement() for name, _ in matched}
    count = 0
    for count, image in enumerate(images, start=1):
        image = np.asarray(image, np.float32)
        for kind, runner in runners.items():
            try:
                runner(image.reshape(1, *image.shape[-3:]))
            except RuntimeError as error:
                raise RuntimeError(f"The {kind} file fails on image {count}: {error}") from error
        for name, entry in sums.items():
            entry.add(runners["quantized"].value(name), runners["float"].value(name))
    if not count:
        raise ValueError("compare_tensors needs at least one image. Received: none")
    reports, tensors = [], written_tensors(quantized)
    for name, operation in matched:
        tensor, entry = tensors[name][1], sums[name]
        scale, zero = (tensor.scale[0], tensor.zero_point[0]) if tensor.scale else (None, None)
        levels = round((entry.quantized_high - entry.quantized_low) / scale) if scale else None
        values = (float(entry.low), float(entry.high), levels, entry.sqnr(), entry.correlation())
        reports.append(TensorReport(name, operation.name, tensor.shape, tensor.dtype, scale, zero, *values))
    return reports


def write_csv(reports, path):
    """Writes a list of TensorReport as a CSV file, a line per tensor in the order of computation.

    Raises:
        OSError: the file cannot be written; one that was there is then unchanged.
    """

    def write(temporary):
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(field.name for field in dataclasses.fields(TensorReport))
            for report in reports:
                row = {**dataclasses.asdict(report), "shape": "x".join(map(str, report.shape))}
                writer.writerow(row.values())

    replace_file(path, write)


def worst_first(reports):
    """By SQNR, lowest first."""
    return sorted(reports, key=lambda report: report.sqnr)


def table(reports):
    """The reports as lines of text."""
    yield f"{'SQNR/dB':>8} {'correl.':>8} {'levels':>6} {'low':>10} {'high':>10}  {'shape':16} {'operation':18} tensor"
    for report in reports:
        shape, levels = "x".join(map(str, report.shape)), "" if report.levels is None else report.levels
        yield (
            f"{report.sqnr:8.1f} {report.correlation:8.5f} {levels:>6} {report.low:10.4g} {report.high:10.4g}  "
            f"{shape:16} {report.operation:18} {report.name.split(';')[0]}"
        )
