"""All TFLite files of one version, with what quantization did to them.

tflite/model_KIND.tflite           with class names and description inside (not int16x8, which MediaPipe refuses)
tflite/model_KIND.tensors.csv      of quantized kinds: each tensor beside the same tensor in float, on a few of the
                                   representative images (na_keras/deploy/tflite/tensor_report.py)
"""

import functools
import itertools
import math

import tensorflow as tf

from na_keras import deploy

REPORT_IMAGES = 8  # of the representative ones; each runs twice, without the fast delegate


def file_name(kind):
    """Of a kind's file."""
    return f"model_{kind}.tflite"


def report_path(path):
    """Of the tensors' report beside a quantized file."""
    return path.with_suffix(".tensors.csv")


def summarise_gates(reports):
    """How NA's gates in a quantized file follow the float ones: lowest and median, over the layers; None without NA.

    Inside the whole network: what layers before lost is part of it. A gate that is all but constant, as gamma near 0
    makes it, has a low correlation and yet a high signal-to-quantization-noise ratio.
    """
    gates = [report for report in reports if report.is_gate]
    if not gates:
        return None
    summary = {"count": len(gates)}
    for key, numbers in (
        ("correlation", [report.correlation for report in gates]),  # NaN of a constant gate, which has none
        ("sqnr_decibels", [report.sqnr for report in gates]),
    ):
        values = sorted(number for number in numbers if not math.isnan(number)) or [math.nan]
        summary[key] = {"lowest": values[0], "median": values[len(values) // 2]}
    return summary


def failure(error):
    """Why a file could not be written, in a line or two; raises again what concerns the whole export."""
    if isinstance(error, OSError | tf.errors.OpError):  # a full disk, in Python's words or TensorFlow's
        raise error
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) < 800 else f"{text[:800]} ..."


def write_files(folder, plan, before_each=lambda kind: None):
    """Writes the files of all kinds of a writer.Plan into the new folder `folder`.

    Args:
        folder, plan: where to, and from what.
        before_each: called with the name of each kind before it is converted.

    Returns:
        ({file name: what deploy.describe says of it, and for quantized kinds "gates"}, {file name: why it could not be
        written}).
    """

    @functools.cache
    def network(form):
        return deploy.deploy_copy(plan.classifier, form)[0]

    @functools.cache
    def float_twin(form):
        """The float file with the same operations, under the same names, as the quantized ones."""
        return deploy.convert_tflite(network(form), size=plan.images.size)

    def write(kind, path):
        settings = deploy.TFLITE_KINDS[kind]
        options = {"size": plan.images.size, "labels": plan.labels if settings.has_metadata else None}
        blob = deploy.convert_tflite(network(settings.form), kind, plan.representative, **options)
        about, reports = deploy.describe(blob), None
        if settings.quantized:
            images = [image for (image,) in itertools.islice(plan.representative(), REPORT_IMAGES)]
            reports = deploy.compare_tensors(blob, float_twin(settings.form), images)
            about["gates"] = summarise_gates(reports)
        path.write_bytes(blob)
        if reports is not None:
            deploy.write_csv(reports, report_path(path))
        return about

    folder.mkdir()
    described, failed = {}, {}
    for kind in plan.kinds:
        before_each(kind)
        name = file_name(kind)
        try:
            described[name] = write(kind, folder / name)
        except Exception as error:  # the converter has several kinds; the other files are tried all the same
            failed[name] = failure(error)
    return described, failed
