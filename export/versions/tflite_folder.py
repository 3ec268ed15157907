"""All TFLite files of one version, with what quantization did to them.

tflite/model_KIND.tflite           with class names and description inside (not int16x8, which MediaPipe refuses)
tflite/model_KIND.tensors.csv      of quantized kinds: each tensor beside the same tensor in float, on a few of the
                                   representative images (na_keras/deploy/tflite/tensor_report.py)
"""

import functools
import itertools

from na_keras import deploy

REPORT_IMAGES = 8  # of the representative ones; each runs twice, without the fast delegate


def summarise_gates(reports):
    """How NA's gates in a quantized file follow the float ones: lowest and median, over the layers; None without NA.

    Inside the whole network: what layers before lost is part of it. A gate that is all but constant, as gamma near 0
    makes it, has a low correlation and yet a high signal-to-quantization-noise ratio.
    """
    gates = [report for report in reports if report.is_gate]
    if not gates:
        return None
    summary = {"count": len(gates)}
    for key, values in (
        ("correlation", sorted(report.correlation for report in gates)),
        ("sqnr_decibels", sorted(report.sqnr for report in gates)),
    ):
        summary[key] = {"lowest": values[0], "median": values[len(values) // 2]}
    return summary


def write_files(folder, plan, before_each=lambda kind: None):
    """Writes the files of all kinds of a writer.Plan into the new folder `folder`.

    Args:
        folder, plan: where to, and from what.
        before_each: called with the name of each kind before it is converted.

    Returns:
        {file name: what deploy.describe says of it, and for quantized kinds "gates"}.

    Raises:
        ValueError: see deploy.convert_tflite.
    """

    @functools.cache
    def network(form):
        return deploy.deploy_copy(plan.model, form)[0]

    @functools.cache
    def float_twin(form):
        """The float file with the same operations, under the same names, as the quantized ones."""
        return deploy.convert_tflite(network(form), size=plan.size)

    folder.mkdir()
    described = {}
    for kind in plan.kinds:
        before_each(kind)
        settings = deploy.TFLITE_KINDS[kind]
        blob = deploy.convert_tflite(
            network(settings.form),
            kind,
            plan.representative,
            size=plan.size,
            labels=plan.labels if settings.has_metadata else None,
        )
        path = folder / f"model_{kind}.tflite"
        path.write_bytes(blob)
        described[path.name] = deploy.describe(blob)
        if settings.quantized:
            images = [image for (image,) in itertools.islice(plan.representative(), REPORT_IMAGES)]
            reports = deploy.compare_tensors(blob, float_twin(settings.form), images)
            deploy.write_csv(reports, folder / f"model_{kind}.tensors.csv")
            described[path.name]["gates"] = summarise_gates(reports)
    return described
