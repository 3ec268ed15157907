"""Everything that one version of an exported model holds: the steps that write it, and what it is compared with."""

import dataclasses
import functools
import itertools
import json
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from consumers import answer_rules, verification
from na_keras import deploy
from na_keras.deploy.images import GREY, ImageFormat
from na_keras.deploy.outputs import answer_alone, answer_name, named
from versions import manifest, tflite_folder, warmup

SAMPLES = 16  # representative images that verification asks about


@dataclasses.dataclass
class Plan:
    """What a version is made from.

    Args:
        model: the trained network as a float32 Keras model; what every artifact is compared with. Its output as of
            deploy.write_saved_model; TFLite and ONNX files hold the classifier's answer alone.
        ending: what that is: "softmax", "sigmoid" or "logits".
        labels: class names.
        images: ImageFormat.
        top, image_dtype: see deploy.write_saved_model.
        source: the manifest's entry `model`: where the network is from, and its sha256.
        reference: see `reference_data`.
        warmup_batches: batch sizes of the warm-up requests.
        kinds: kinds of TFLite files, keys of deploy.TFLITE_KINDS.
        representative: function of images for the quantized kinds, see deploy.convert_tflite.
        onnx: whether to write an ONNX file too.
        accept: gates (keys of consumers.gates.GATES) whose findings do not stop the export.
        keep_going: whether files that fail are left out, instead of stopping the export.
        failed: {file name: reason} of the files that cannot be written from this network; they are not tried.
    """

    model: keras.Model
    ending: str
    labels: list
    images: ImageFormat
    top: int
    image_dtype: str
    source: dict
    reference: dict
    warmup_batches: tuple = (1,)
    kinds: tuple = ("float32",)
    representative: Callable | None = None
    onnx: bool = False
    accept: tuple = ()
    keep_going: bool = False
    failed: dict = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def classifier(self):
        """The network with its answer alone."""
        return answer_alone(self.model)

    @property
    def steps(self):
        """What is printed, and what is then written into the version's folder; in this order."""
        return STEPS

    def entries(self):
        """The manifest's entries on the network."""
        return {
            "model": {**self.source, "name": self.model.name},
            "preprocessing": preprocessing(self.images),
            "classes": len(self.labels),
            "answer": {"output": answer_rules.answer_name(self.reference), "ending": self.ending},
        }


def patterns(images, count=4):
    """Encoded images, larger than the crop and of other proportions, with smooth structure and noise: (list of bytes,
    the same pictures as float32 arrays of an ImageFormat's shape).
    """
    rng = np.random.default_rng(0)
    files, pictures = [], []
    for index in range(count):
        coarse = rng.uniform(0, 255, (1, 6, 6, 3))
        shape = (images.height + 17 * index, max(2 * images.width - 11 * index, 8))
        picture = tf.image.resize(coarse, shape, "bicubic")[0] + rng.normal(0, 12, (*shape, 3))
        picture = tf.cast(tf.clip_by_value(picture, 0, 255), tf.uint8)
        encode = tf.io.encode_png if index % 2 else tf.io.encode_jpeg
        files.append(encode(picture).numpy())
        fitted = tf.image.resize(picture, images.shape[:2])
        pictures.append((tf.image.rgb_to_grayscale(fitted) if images.channels == 1 else fitted).numpy())
    return files, pictures


def reference_data(model, ending, labels, images, image_dtype="float32", representative=None):
    """Inputs, the Keras model's answers, and how far each kind of TFLite file may be from these: for verify.py.

    The images are random ones, or the first of the representative ones: a quantized file answers only for such images
    as its ranges were taken from.
    """
    files, pictures = patterns(images)
    if representative is not None:
        pictures = [image[0] for (image,) in itertools.islice(representative(), SAMPLES)]
    pictures = np.stack(pictures).astype(image_dtype)
    crops = np.stack([images.crop(data).numpy() for data in files])
    answers, of_files = (named(model.predict(x.astype("float32"), verbose=0)) for x in (pictures, crops))
    answer = answer_name(answers)
    origin = "random patterns" if representative is None else "sample images"
    limits = {name: dataclasses.astuple(kind.limits) for name, kind in deploy.TFLITE_KINDS.items() if kind.limits}
    return {
        "origin": np.array(origin),
        "ending": np.array(ending),
        "limits": np.array(json.dumps(limits)),
        "images": pictures,
        "files": np.array(files),  # fixed-length bytes: neither format ends in a zero byte, which NumPy would drop
        "labels": np.array(labels),
        "probabilities": answers[answer],
        "file_probabilities": of_files[answer],
        **{f"{answer_rules.OTHER}{name}": values for name, values in answers.items() if name != answer},
    }


def check_artifacts(version, reference):
    """Runs every consumer on a written version, each in a process of its own; returns (report, findings) of verify."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "reference.npz"
        np.savez(path, **reference)
        return verification.verify(version, path)


def remove_file(folder, name, entries, checks):
    """Takes a TFLite or ONNX file out of a version, with its report and all that was measured of it."""
    for path in folder.glob(f"*/{name}"):
        path.unlink()
        tflite_folder.report_path(path).unlink(missing_ok=True)
    entries["tflite"].pop(name, None)
    for key in ("largest_difference", "reduced_precision", "consumers"):
        checks[key].pop(name, None)


def judge(folder, plan, entries, checks, found):
    """What becomes of a version with these findings: it is refused, or published, with what was accepted and without
    the files that failed.

    Args:
        folder, plan: of the version.
        entries: of the manifest so far; "failed" grows, and "tflite" loses what failed.
        checks, found: report and findings of verification. `checks` gets "accepted".

    Raises:
        RuntimeError: something failed that is neither accepted nor may be left out; all that failed is named.
    """
    accepted = [finding for finding in found if finding.gate in plan.accept]
    refused = [finding for finding in found if finding not in accepted]
    checks["accepted"] = [
        {"gate": finding.gate, "artifact": finding.artifact, "finding": str(finding)} for finding in accepted
    ]
    failed = entries["failed"]
    files = {path.name for path in folder.glob("*/model*")}
    for finding in [finding for finding in refused if finding.artifact in files]:
        failed[finding.artifact] = "; ".join(filter(None, (failed.get(finding.artifact), finding)))
    whole = [finding for finding in refused if finding.artifact not in files]
    if whole or (failed and not plan.keep_going):
        gates = sorted({finding.gate for finding in refused if finding.gate})
        raise RuntimeError("\n".join(explanation(checks, whole, failed, gates)))
    for name in failed:
        remove_file(folder, name, entries, checks)
    for sub in ("tflite", "onnx"):
        if (folder / sub).exists() and not any((folder / sub).iterdir()):
            (folder / sub).rmdir()


def explanation(checks, whole, failed, gates):
    """Lines on why a version was refused, and what may be done about it."""
    measured = whole or any(name in checks["consumers"] for name in failed)
    yield "The exported artifacts failed verification." if measured else "Not all files could be written."
    if measured:
        yield json.dumps(manifest.strict(checks))
    yield from whole
    yield from (f"{name}: {reason.removeprefix(f'{name}: ')}" for name, reason in failed.items())
    if failed and not whole:
        yield "To publish what passed, without these files: --keep-going."
    if gates:
        yield f"To publish in spite of what a gate found: --accept {' '.join(gates)}."


def add_saved_model(folder, plan):
    network, counts = deploy.deploy_copy(plan.model, "tensorflow")
    images = {"size": plan.images.size, "resize": plan.images.resize, "exif_orientation": plan.images.exif_orientation}
    deploy.write_saved_model(network, folder, plan.labels, top=plan.top, image_dtype=plan.image_dtype, **images)
    return {"deploy": counts}


def add_warmup(folder, plan):
    one_of_each = {
        "serving_default": {"images": plan.reference["images"][:1]},
        "serve_bytes": {"image_bytes": plan.reference["files"][:1]},
    }
    warmup.write_requests(
        folder,
        [
            (signature, {name: np.repeat(value, batch, axis=0) for name, value in inputs.items()})
            for batch in plan.warmup_batches
            for signature, inputs in one_of_each.items()
        ],
    )


def add_converted(folder, plan):
    described, failed = tflite_folder.write_files(folder / "tflite", plan, lambda kind: print(f"  {kind}", flush=True))
    if plan.onnx:
        print("  onnx", flush=True)
        (folder / "onnx").mkdir()
        try:
            deploy.write_onnx(plan.classifier, folder / "onnx" / "model.onnx")
        except Exception as error:  # tf2onnx has several kinds
            failed["model.onnx"] = tflite_folder.failure(error)
    return {"tflite": described, "failed": {**plan.failed, **failed}}


def add_labels(folder, plan):
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in plan.labels), "utf-8")


# A step may return entries for the manifest.
STEPS = (
    ("Writing the SavedModel", add_saved_model),
    ("Adding warm-up requests", add_warmup),
    ("Converting", add_converted),
    ("Writing the class names", add_labels),
)


def preprocessing(images):
    """The manifest's entry on an ImageFormat."""
    grey = {"pixels": "grey 0..255", "grey": GREY}
    return {
        **{"resize": images.resize, "size": images.size},
        **(grey if images.channels == 1 else {"pixels": "RGB 0..255"}),
        "exif_orientation": images.exif_orientation,
    }


def write_version(folder, plan, recipe, check_stopped):
    """Writes everything of one version into the empty folder `folder`, verified; returns the checks.

    Args:
        folder, plan: where to, and from what: a Plan, or what has its `steps`, `entries`, `reference`, `accept` and
            `keep_going`.
        recipe: what the run directory says of the training, for the manifest.
        check_stopped: function that is called between the steps; it raises what is to stop them.

    Raises:
        RuntimeError: the artifacts disagree with the Keras model, or do not run, or could not be written.
        ValueError: the network has no deploy form.
    """
    entries = {}
    for message, step in plan.steps:
        check_stopped()
        print(message, flush=True)
        entries |= step(folder, plan) or {}
    check_stopped()
    print("Running the warm-up requests", flush=True)
    warm = warmup.replay(folder)
    print("Verifying with every consumer that is installed, each in a process of its own", flush=True)
    checks, found = check_artifacts(folder, plan.reference)
    judge(folder, plan, entries, checks, found)
    manifest.write_manifest(
        folder,
        recipe=recipe,
        warmup=warm,
        checks=checks,
        **plan.entries(),
        **entries,
    )
    check_stopped()
    return {**checks, "failed": entries["failed"]}
