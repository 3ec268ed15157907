"""Everything that one version of an exported model holds: the steps that write it, and what it is compared with."""

import dataclasses
import itertools
import json
import pathlib
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from consumers import verification
from na_keras import deploy
from na_keras.data import preprocessing
from versions import manifest, tflite_folder, warmup

SAMPLES = 16  # representative images that verification asks about


@dataclasses.dataclass
class Plan:
    """What a version is made from.

    Args:
        model: the trained network as a float32 Keras model; what every artifact is compared with.
        labels: class names.
        size, resize, top, image_dtype: see deploy.write_saved_model.
        reference: see `reference_data`.
        warmup_batches: batch sizes of the warm-up requests.
        kinds: kinds of TFLite files, keys of deploy.TFLITE_KINDS.
        representative: function of images for the quantized kinds, see deploy.convert_tflite.
        onnx: whether to write an ONNX file too.
        exif_orientation: see deploy.write_saved_model.
    """

    model: keras.Model
    labels: list
    resize: int
    size: int
    top: int
    image_dtype: str
    reference: dict
    warmup_batches: tuple = (1,)
    kinds: tuple = ("float32",)
    representative: Callable | None = None
    onnx: bool = False
    exif_orientation: bool = True


def reference_data(model, labels, resize, size, image_dtype="float32", representative=None, count=4):
    """Inputs, the Keras model's answers, and how far each kind of TFLite file may be from these: for verify.py.

    The images are random ones, or the first of the representative ones: a quantized file answers only for such images
    as its ranges were taken from.
    """
    rng = np.random.default_rng(0)
    images, files = [], []
    for index in range(count):
        # Smooth structure and noise; the files are larger than the crop and not square.
        coarse = rng.uniform(0, 255, (1, 6, 6, 3))
        shape = (size + 17 * index, 2 * size - 11 * index)
        picture = tf.image.resize(coarse, shape, "bicubic")[0] + rng.normal(0, 12, (*shape, 3))
        picture = tf.cast(tf.clip_by_value(picture, 0, 255), tf.uint8)
        encode = tf.io.encode_png if index % 2 else tf.io.encode_jpeg
        files.append(encode(picture).numpy())
        images.append(tf.image.resize(picture, (size, size)).numpy())
    crops = np.stack([preprocessing.evaluation_image(data, resize, size).numpy() for data in files])
    if representative is not None:
        images = [image[0] for (image,) in itertools.islice(representative(), SAMPLES)]
    images = np.stack(images).astype(image_dtype)
    limits = {name: dataclasses.astuple(kind.limits) for name, kind in deploy.TFLITE_KINDS.items() if kind.limits}
    return {
        "limits": np.array(json.dumps(limits)),
        "images": images,
        "files": np.array(files),  # fixed-length bytes: neither format ends in a zero byte, which NumPy would drop
        "labels": np.array(labels),
        "probabilities": model.predict(images.astype("float32"), verbose=0),
        "file_probabilities": model.predict(crops.astype("float32"), verbose=0),
    }


def check_artifacts(version, reference):
    """Runs every consumer on a written version, each in a process of its own; returns what verify.py measured.

    Raises:
        RuntimeError: the artifacts disagree with the Keras model, or do not run at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "reference.npz"
        np.savez(path, **reference)
        report, found = verification.verify(version, path)
    if found:
        lines = "\n".join((json.dumps(report), *found))
        raise RuntimeError(f"The exported artifacts failed verification.\n{lines}")
    return report


def add_saved_model(folder, plan):
    network, counts = deploy.deploy_copy(plan.model, "tensorflow")
    options = {"size": plan.size, "resize": plan.resize, "top": plan.top, "image_dtype": plan.image_dtype}
    deploy.write_saved_model(network, folder, plan.labels, **options, exif_orientation=plan.exif_orientation)
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
    described = tflite_folder.write_files(folder / "tflite", plan, lambda kind: print(f"  {kind}", flush=True))
    if plan.onnx:
        print("  onnx", flush=True)
        (folder / "onnx").mkdir()
        deploy.write_onnx(plan.model, folder / "onnx" / "model.onnx")
    return {"tflite": described}


def add_labels(folder, plan):
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in plan.labels), "utf-8")


# What is printed, and what is then written into the version's folder; in this order. A step may return entries for the
# manifest.
STEPS = (
    ("Writing the SavedModel", add_saved_model),
    ("Adding warm-up requests", add_warmup),
    ("Converting", add_converted),
    ("Writing the class names", add_labels),
)


def write_version(folder, plan, source, recipe, check_stopped):
    """Writes everything of one version into the empty folder `folder`, verified; returns the checks.

    Args:
        folder, plan: where to, and from what.
        source: path of the trained network's file, for the manifest.
        recipe: what the run directory says of the training, for the manifest.
        check_stopped: function that is called between the steps; it raises what is to stop them.

    Raises:
        RuntimeError: the artifacts disagree with the Keras model, or do not run.
        ValueError: the network does not convert.
    """
    entries = {}
    for message, step in STEPS:
        check_stopped()
        print(message, flush=True)
        entries |= step(folder, plan) or {}
    check_stopped()
    print("Running the warm-up requests", flush=True)
    warm = warmup.replay(folder)
    print("Verifying with every consumer that is installed, each in a process of its own", flush=True)
    checks = check_artifacts(folder, plan.reference)
    manifest.write_manifest(
        folder,
        model={"path": str(source), "sha256": manifest.sha256(source), "name": plan.model.name},
        recipe=recipe,
        preprocessing={
            **{"resize": plan.resize, "size": plan.size, "pixels": "RGB 0..255"},
            "exif_orientation": plan.exif_orientation,
        },
        classes=len(plan.labels),
        warmup=warm,
        checks=checks,
        **entries,
    )
    check_stopped()
    return checks
