"""All TFLite files of one version, with what quantization did to them.

tflite/model_KIND.tflite           with class names and description inside (not int16x8, which MediaPipe refuses)
tflite/model_KIND.tensors.csv      of quantized kinds: each tensor beside the same tensor in float, on a few of the
                                   representative images (tensor_report.py)
"""

import itertools

import tensor_report
import tflite
import tflite_file
import tflite_metadata

REPORT_IMAGES = 8  # of the representative ones; each runs twice, without the fast delegate


def gates(reports):
    """How NA's gates in a quantized file correlate with the float ones: {"count", "lowest", "median"}; None if none.

    Inside the whole network: what layers before lost is part of it.
    """
    found = sorted(report.correlation for report in reports if report.operation == "LOGISTIC")
    return {"count": len(found), "lowest": found[0], "median": found[len(found) // 2]} if found else None


def write_files(folder, plan):
    """Writes the files of all kinds of a version_folder.Plan into the new folder `folder`.

    Returns:
        {file name: what tflite_file.describe says of it, and for quantized kinds "gates"}.

    Raises:
        ValueError: see tflite.convert.
    """
    folder.mkdir()
    classifiers, described = {}, {}
    for kind in plan.kinds:
        settings = tflite.KINDS[kind]
        print(f"  {kind}", flush=True)
        if settings.form not in classifiers:
            classifiers[settings.form], _ = plan.classifier(settings.form)
        converted = tflite.convert(classifiers[settings.form], kind, plan.representative)
        blob = converted
        if settings.has_metadata:
            blob = tflite_metadata.attach(converted, plan.labels, plan.model.name)
        path = folder / f"model_{kind}.tflite"
        path.write_bytes(blob)
        described[path.name] = tflite_file.describe(blob)
        if settings.quantized:
            in_float = tflite.convert(classifiers[settings.form])  # the same operations with the same names
            images = [image[0] for (image,) in itertools.islice(plan.representative(), REPORT_IMAGES)]
            reports = tensor_report.compare_tensors(converted, in_float, images)
            tensor_report.write_csv(reports, folder / f"model_{kind}.tensors.csv")
            described[path.name]["gates"] = gates(reports)
    return described
