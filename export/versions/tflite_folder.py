"""All TFLite files of one version, with what quantization did to them.

tflite/model_KIND.tflite           with class names and description inside (not int16x8, which MediaPipe refuses)
tflite/model_KIND.tensors.csv      of quantized kinds: each tensor beside the same tensor in float, on a few of the
                                   representative images (tensor_report.py)
"""

import itertools

from na_keras.deploy.tflite import conversion, graph, metadata, tensor_report

REPORT_IMAGES = 8  # of the representative ones; each runs twice, without the fast delegate


def gates(reports):
    """How NA's gates in a quantized file follow the float ones: lowest and median, over the layers; None without gates.

    Inside the whole network: what layers before lost is part of it. A gate that is all but constant, as gamma near 0
    makes it, has a low correlation and yet a high signal-to-quantization-noise ratio.
    """
    found = [report for report in reports if report.operation == "LOGISTIC"]
    if not found:
        return None
    summary = {"count": len(found)}
    for key, values in (
        ("correlation", sorted(report.correlation for report in found)),
        ("sqnr_decibels", sorted(report.sqnr for report in found)),
    ):
        summary[key] = {"lowest": values[0], "median": values[len(values) // 2]}
    return summary


def write_files(folder, plan):
    """Writes the files of all kinds of a writer.Plan into the new folder `folder`.

    Returns:
        {file name: what graph.describe says of it, and for quantized kinds "gates"}.

    Raises:
        ValueError: see conversion.convert.
    """
    folder.mkdir()
    classifiers, described = {}, {}
    for kind in plan.kinds:
        settings = conversion.KINDS[kind]
        print(f"  {kind}", flush=True)
        if settings.form not in classifiers:
            classifiers[settings.form], _ = plan.classifier(settings.form)
        converted = conversion.convert(classifiers[settings.form], kind, plan.representative)
        blob = converted
        if settings.has_metadata:
            blob = metadata.attach(converted, plan.labels, plan.model.name)
        path = folder / f"model_{kind}.tflite"
        path.write_bytes(blob)
        described[path.name] = graph.describe(blob)
        if settings.quantized:
            in_float = conversion.convert(classifiers[settings.form])  # the same operations with the same names
            images = [image[0] for (image,) in itertools.islice(plan.representative(), REPORT_IMAGES)]
            reports = tensor_report.compare_tensors(converted, in_float, images)
            tensor_report.write_csv(reports, folder / f"model_{kind}.tensors.csv")
            described[path.name]["gates"] = gates(reports)
    return described
