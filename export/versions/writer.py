"""Everything that one version of an exported model holds: the steps that write it, and what it is compared with."""

import dataclasses
import itertools
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from na_keras.data import preprocessing
from na_keras.deploy import rewrite, saved_model
from versions import manifest, publish, tflite_folder, warmup

SAMPLES = 16  # representative images that verification asks about


@dataclasses.dataclass
class Plan:
    """What a version is made from.

    Args:
        model: the trained network as a float32 Keras model; what every artifact is compared with.
        labels: class names.
        resize, size, top, image_dtype: see saved_model.Classifier.
        reference: see `reference_data`.
        warmup_batches: batch sizes of the warm-up requests.
        kinds: of TFLite files, keys of tflite.KINDS.
        representative: images for the quantized kinds, see tflite.convert.
        onnx: whether to write an ONNX file too.
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

    def classifier(self, form):
        """(saved_model.Classifier around the deploy copy in a form, the copy's counts); see rewrite.deploy_copy."""
        network, counts = rewrite.deploy_copy(self.model, form)
        classifier = saved_model.Classifier(network, self.labels, self.resize, self.size, self.top, self.image_dtype)
        return classifier, counts


def reference_data(model, labels, resize, size, image_dtype="float32", representative=None, count=4):
    """Inputs and the Keras model's answers to them, for verify.py.

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
    return {
        "images": images,
        "files": np.array(files),  # fixed-length bytes: neither format ends in a zero byte, which NumPy would drop
        "labels": np.array(labels),
        "probabilities": model.predict(images.astype("float32"), verbose=0),
        "file_probabilities": model.predict(crops.astype("float32"), verbose=0),
    }


def verify(version, reference):
    """Runs verify.py on a written version in a process of its own; returns what it measured.

    Raises:
        RuntimeError: the artifacts disagree with the Keras model, or do not run at all.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "reference.npz"
        np.savez(path, **reference)
        program = pathlib.Path(__file__).parents[1] / "verify.py"
        result = subprocess.run([sys.executable, program, version, path], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"The exported artifacts failed verification.\n{result.stdout}{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def write_savedmodel(folder, plan):
    classifier, counts = plan.classifier("tensorflow")
    saved_model.write_savedmodel(classifier, folder)
    return {"deploy": counts}


def write_warmup(folder, plan):
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


def write_converted(folder, plan):
    described = tflite_folder.write_files(folder / "tflite", plan)
    if plan.onnx:
        from na_keras.deploy import onnx_file

        print("  onnx", flush=True)
        (folder / "onnx").mkdir()
        onnx_file.write_onnx(plan.model, folder / "onnx" / "model.onnx")
    return {"tflite": described}


def write_labels(folder, plan):
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in plan.labels), "utf-8")


# What is printed, and what is then written into the version's folder; in this order. A step may return entries for the
# manifest.
STEPS = (
    ("Writing the SavedModel", write_savedmodel),
    ("Adding warm-up requests", write_warmup),
    ("Converting", write_converted),
    ("Writing the class names", write_labels),
)


def write_version(folder, plan, source, recipe):
    """Writes everything of one version into the empty folder `folder`, verified; returns the checks.

    Raises:
        RuntimeError: the artifacts disagree with the Keras model, or do not run.
        ValueError: the network does not convert.
    """
    entries = {}
    for message, step in STEPS:
        publish.exit_if_stopped()
        print(message, flush=True)
        entries |= step(folder, plan) or {}
    publish.exit_if_stopped()
    print("Running the warm-up requests", flush=True)
    warm = warmup.replay(folder)
    print("Verifying with every consumer that is installed, each in a process of its own", flush=True)
    checks = verify(folder, plan.reference)
    manifest.write_manifest(
        folder,
        model={"path": str(source), "sha256": manifest.sha256(source), "name": plan.model.name},
        recipe=recipe,
        preprocessing={"resize": plan.resize, "size": plan.size, "pixels": "RGB 0..255"},
        classes=len(plan.labels),
        warmup=warm,
        checks=checks,
        **entries,
    )
    return checks
