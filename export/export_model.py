"""Exports a trained network: a SavedModel for TF Serving and a TFLite file for devices, verified, as one version.

    python export/export_model.py --model runs/demo/model.keras --output exported/demo

    exported/demo/               the base path to give to TF Serving
      1/                         the first version; the next export into the same folder writes 2/
        saved_model.pb, variables/    signatures in savedmodel.py
        tflite/model_float32.tflite
        labels.txt               class names, one a line
        manifest.json            sources, versions, checks passed with their numbers, sha256 of every file

A version is written under a name that no server takes for one, checked there in a process without Keras, and only then
renamed. Existing versions and other people's files are never touched.
"""

import argparse
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"

INCOMING = "incoming-"  # prefix of a version being written; an export that was killed leaves such a folder
PACKAGES = ("na-keras", "keras", "tensorflow", "numpy", "ai-edge-litert")


def next_version(output):
    """The number of the next version in the folder `output`.

    Raises:
        FileExistsError: the folder holds something that no export wrote.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; it is kept. Choose another --output.")
    versions = [0]
    for child in output.iterdir() if output.exists() else ():
        if child.name.isdigit() and (child / "manifest.json").exists():
            versions.append(int(child.name))
        elif not child.name.startswith((INCOMING, ".")):  # hidden files are a file browser's
            raise FileExistsError(
                f"{output} is not empty and holds {child.name}, which no export wrote; it is kept. "
                "Choose another --output."
            )
    return 1 + max(versions)


def choose_sizes(model, recipe, resize):
    """(pixels of the shorter side before the crop, of the crop): from the flags, the run, or the network."""
    size = model.input_shape[1] or (recipe and recipe["size"])
    if size is None or model.input_shape[2] not in (size, None):
        raise ValueError(
            "An export needs one square image size, from the network or from recipe.json beside it. "
            f"Received: input_shape={model.input_shape}"
        )
    resize = resize or (recipe["evaluation_resize"] if recipe else round(size * 256 / 224))
    if resize < size:
        raise ValueError(f"--resize must be at least the image size {size}. Received: {resize}")
    return resize, size


def reference_data(model, labels, resize, size, count=4):
    """Inputs and the Keras model's answers to them, for verify.py."""
    import numpy as np
    import tensorflow as tf

    from na_keras import preprocessing

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
    images = np.stack(images).astype("float32")
    return {
        "images": images,
        "files": np.array(files),  # fixed-length bytes: neither format ends in a zero byte, which NumPy would drop
        "labels": np.array(labels),
        "probabilities": model.predict(images, verbose=0),
        "file_probabilities": model.predict(crops.astype("float32"), verbose=0),
    }


def verify(version, reference):
    """Runs verify.py on a written version in a process of its own; returns what it measured.

    Raises:
        RuntimeError: the artifacts disagree with the Keras model, or do not run at all.
    """
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "reference.npz"
        np.savez(path, **reference)
        program = pathlib.Path(__file__).with_name("verify.py")
        result = subprocess.run([sys.executable, program, version, path], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"The exported artifacts failed verification.\n{result.stdout}{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def sha256(path):
    """Hexadecimal digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_version(folder, model, labels, resize, size, top, source):
    """Writes everything of one version into the empty folder `folder`, verified."""
    import savedmodel
    import tflite

    classifier = savedmodel.Classifier(model, labels, resize, size, top)
    print("Writing the SavedModel")
    savedmodel.write_savedmodel(classifier, folder)
    print("Converting to TFLite")
    (folder / "tflite").mkdir()
    (folder / "tflite" / "model_float32.tflite").write_bytes(tflite.convert(classifier))
    (folder / "labels.txt").write_text("".join(f"{label}\n" for label in labels), "utf-8")
    print("Verifying both in a process without Keras")
    checks = verify(folder, reference_data(model, labels, resize, size))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    manifest = {
        "model": {"path": str(source), "sha256": sha256(source), "name": model.name},
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "preprocessing": {"resize": resize, "size": size, "pixels": "RGB 0..255"},
        "classes": len(labels),
        "checks": checks,
        "files": {path.relative_to(folder).as_posix(): sha256(path) for path in files},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
    return checks


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", type=pathlib.Path, required=True, help="a .keras file")
    add("--output", type=pathlib.Path, required=True, help="base folder of the versions")
    add("--labels", type=pathlib.Path, help="class names, one a line (default: labels.txt beside the model)")
    add("--resize", type=int, help="pixels of the shorter side before the crop (default: the run's)")
    add("--top", type=int, default=5, help="classes named in an answer (default: %(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.top < 1:
        parser.error(f"--top must be at least 1. Received: {arguments.top}")
    return arguments


def main(argv=None):
    arguments = parse_arguments(argv)
    if importlib.util.find_spec("ai_edge_litert") is None:
        sys.exit("export_model.py: ai-edge-litert is not installed. Run: pip install -e '.[export]'")
    import deploy
    from na_keras.model_files import check_classifier, load_model, training_record

    output = arguments.output
    try:
        version = next_version(output)
        model = load_model(arguments.model)
        check_classifier(model)
        model = deploy.float32_copy(model)
        recipe, labels = training_record(arguments.model)
        if arguments.labels is not None:
            labels = arguments.labels.read_text("utf-8").splitlines()
        if labels is None:
            labels = [str(index) for index in range(model.output_shape[-1])]
            print(f"No labels.txt beside {arguments.model} and no --labels: the classes are called 0, 1, 2 ...")
        if len(labels) != model.output_shape[-1]:
            raise ValueError(f"The network has {model.output_shape[-1]} classes. Received: {len(labels)} labels")
        resize, size = choose_sizes(model, recipe, arguments.resize)
    except (ValueError, OSError) as error:
        sys.exit(f"export_model.py: {error}")
    output.mkdir(parents=True, exist_ok=True)
    incoming = pathlib.Path(tempfile.mkdtemp(prefix=INCOMING, dir=output))
    try:
        checks = write_version(incoming, model, labels, resize, size, arguments.top, arguments.model)
        incoming.chmod(0o755)  # mkdtemp's folders are private; a server runs as another user
        target = incoming.rename(output / str(version))
    except RuntimeError as error:
        sys.exit(f"export_model.py: {error}")
    finally:
        if incoming.exists():
            shutil.rmtree(incoming)
    print(f"Exported to {target}. Largest difference of a probability from Keras (tolerance {checks['tolerance']}):")
    for name, value in checks["largest_difference"].items():
        print(f"  {name:24} {value:.1e}")


if __name__ == "__main__":
    main()
