"""Everything that one version of an exported detector holds, and what it is compared with.

The reference are the detector's own answers, found as its evaluation finds them
(na_keras/detection/model_garden/inference.py), from files on disk; those in canvases, which TFLite files take, by the
same function.
"""

import dataclasses
import json
import math
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from official.vision.ops import preprocess_ops

from consumers import detection_rules
from na_keras import deploy
from na_keras.data import preprocessing
from na_keras.deploy import calibration
from na_keras.detection import coco
from na_keras.detection.model_garden import inference, lite, saved, served
from na_keras.files import sha256_of
from versions import manifest, tflite_folder, writer

SAMPLES = 6  # photographs that verification asks about
OF_ONE_SIZE = 3  # of them, brought to one size, for the signature that takes such
BATCH = 3
LIMITS = {"float16": 0.9, "int8": 0.5}  # share of the detections that a file must agree on; less is broken
RECIPE = "recipe.json"


@dataclasses.dataclass
class DetectorPlan:
    """What a version is made from.

    Attributes:
        detector: saved.Detector.
        source: the manifest's entry `model`: where the detector is from, and the sha256 of its files.
        reference: see `reference_data`.
        warmup_batches, kinds, accept, keep_going, failed: as of writer.Plan.
        representative: function of canvases for the quantized kind, as lite.convert_tflite takes it, or None.
    """

    detector: saved.Detector
    source: dict
    reference: dict
    warmup_batches: tuple = (1,)
    kinds: tuple = ()
    representative: Callable | None = None
    accept: tuple = ()
    keep_going: bool = False
    failed: dict = dataclasses.field(default_factory=dict)

    @property
    def labels(self):
        """The classes' names."""
        return list(self.detector.categories.values())

    @property
    def steps(self):
        """As of writer.Plan."""
        return (
            ("Writing the SavedModel", add_saved_model),
            ("Adding warm-up requests", writer.add_warmup),
            ("Converting" if self.kinds else "No TFLite files were asked for", add_tflite),
            ("Writing the class names", writer.add_labels),
        )

    def entries(self):
        """The manifest's entries on the detector."""
        config = self.detector.config
        sizes = {"shorter": config.resize.shorter, "longer": config.resize.longer, "canvas": config.model.input_size[0]}
        return {
            "model": self.source,
            "categories": [[number, name] for number, name in self.detector.categories.items()],
            "classes": len(self.labels),
            "max_detections": config.model.detection_generator.max_num_detections,
            "preprocessing": {**sizes, "pixels": "RGB 0..255", "exif_orientation": False},
            "packages": manifest.packages((*manifest.PACKAGES, *manifest.FOR_DETECTION)),
        }


def add_saved_model(folder, plan):
    served.write_saved_model(plan.detector, folder)


def add_tflite(folder, plan):
    described, failed = {}, dict(plan.failed)
    if plan.kinds:
        (folder / "tflite").mkdir()
    for kind in plan.kinds:
        print(f"  {kind}", flush=True)
        name = tflite_folder.file_name(kind)
        try:
            blob = lite.convert_tflite(plan.detector, kind, plan.representative)
        except Exception as error:  # the converter has several kinds; the other files are tried all the same
            failed[name] = tflite_folder.failure(error)
            continue
        (folder / "tflite" / name).write_bytes(blob)
        described[name] = deploy.describe(blob)
    return {"tflite": described, "failed": failed}


def describe_source(path, description, weights):
    """(the manifest's entry `model`, the run's recipe or None) of a detector's two files, found at `path`."""
    content = json.loads(description.read_text("utf-8"))
    files = [description, *sorted(weights.parent.glob(f"{weights.name}.*"))]
    source = {"path": str(path), "sha256": {file.name: sha256_of(file) for file in files}}
    source |= {name: content[name] for name in ("detector", "network")}
    folders = [path, *weights.parents[:3]]
    recipe = next((folder / RECIPE for folder in folders if (folder / RECIPE).is_file()), None)
    return source, None if recipe is None else json.loads(recipe.read_text("utf-8"))


def patterns(size, count=SAMPLES):
    """Encoded images of about this size, in different proportions, with smooth structure and noise."""
    rng, files = np.random.default_rng(0), []
    for index in range(count):
        shape = (size + 17 * index, max(2 * size - 11 * index, 8))
        coarse = tf.image.resize(rng.uniform(0, 255, (1, 6, 6, 3)), shape, "bicubic")[0]
        picture = tf.cast(tf.clip_by_value(coarse + rng.normal(0, 12, (*shape, 3)), 0, 255), tf.uint8)
        files.append((tf.io.encode_png if index % 2 else tf.io.encode_jpeg)(picture).numpy())
    return files


def decoded(data, name):
    """uint8 (height, width, 3) of an encoded image. Raises ValueError: it does not decode; `name` says which."""
    try:
        return preprocessing.decode(tf.constant(data), exif_orientation=False).numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{name} does not decode: {error.message}") from error


def canvases_of(paths, config):
    """A function that yields [float32 (1, side, side, 3)] of each image file; each is read once before.

    Raises:
        ValueError: one does not decode.
    """

    def canvases():
        for path in paths:
            yield [lite.on_uint8_canvas(decoded(path.read_bytes(), path), config).numpy()[None].astype("float32")]

    for _ in canvases():
        pass
    return canvases


def spread_out(paths, count):
    """So many of the paths, from first to last."""
    places = np.unique(np.linspace(0, len(paths) - 1, count).round().astype(int))
    return [paths[place] for place in places]


def sample_files(folder, count):
    """The paths of at most so many image files in a folder. Raises FileNotFoundError: there are none."""
    return spread_out([pathlib.Path(path) for path in calibration.image_files(folder)], count)


def png(image):
    return tf.io.encode_png(tf.cast(image, tf.uint8)).numpy()


def questions(files, shorter):
    """What verification asks about.

    Args:
        files: encoded images.
        shorter: pixels of the shorter side that the detector resizes to.

    Returns:
        (uint8 (n, height, width, 3), images of one size, which is none of the detector's; list of encoded images: those
        given, and one that is grey and of an odd size).
    """
    pictures = [decoded(data, f"sample {index}") for index, data in enumerate(files)]
    shape = (shorter + 13, math.ceil(shorter * 4 / 3))
    same = tf.stack([tf.image.resize(picture, shape) for picture in pictures[:OF_ONE_SIZE]])
    # Arrays of NumPy drop zero bytes at the end.
    kept = [png(picture) if data.endswith(b"\0") else data for data, picture in zip(files, pictures, strict=True)]
    odd = pictures[0][: pictures[0].shape[0] // 2 * 2 - 1, : pictures[0].shape[1] // 2 * 2 - 1]
    return tf.cast(same, tf.uint8).numpy(), [*kept, png(tf.image.rgb_to_grayscale(odd))]


def packed(found, most):
    """{name: array} of lists of evaluation.Detection, at most so many each."""
    arrays = [np.zeros(len(found), "int32"), np.zeros((len(found), most, 4), "float32")]
    arrays += [np.zeros((len(found), most), dtype) for dtype in ("int32", "float32")]
    for index, each in enumerate(found):
        arrays[0][index] = len(each)
        for row, one in enumerate(each):
            arrays[1][index, row] = one.top, one.left, one.bottom, one.right
            arrays[2][index, row], arrays[3][index, row] = one.label, one.score
    return dict(zip(detection_rules.FOUND, arrays, strict=True))


def found_in_files(find, detector, files):
    """({name: array}, heights and widths) of what the detector's evaluation finds in encoded images."""
    strategy, most = tf.distribute.get_strategy(), detector.config.model.detection_generator.max_num_detections
    sizes = [decoded(data, f"sample {index}").shape[:2] for index, data in enumerate(files)]
    with tempfile.TemporaryDirectory() as folder:
        folder, photographs = pathlib.Path(folder), []
        for index, (data, (height, width)) in enumerate(zip(files, sizes, strict=True)):
            (folder / str(index)).write_bytes(data)
            photographs.append(coco.Photograph(index, str(index), width, height, ()))
        options = {"strategy": strategy, "batch_size": BATCH}
        found = inference.detect(find, detector.config, photographs, folder, **options)
    return packed([found[index] for index in range(len(files))], most), np.array(sizes)


def found_on_canvases(find, canvases):
    """{name: array} of what the detector finds on uint8 canvases (n, side, side, 3)."""
    side, parts = canvases.shape[1], []
    filled = np.concatenate([canvases, np.repeat(canvases[-1:], -len(canvases) % BATCH, axis=0)])
    for start in range(0, len(filled), BATCH):
        pixels = preprocess_ops.normalize_image(tf.cast(filled[start : start + BATCH], tf.float32) / 255.0)
        _, *arrays = find(pixels, tf.fill((BATCH, 2), side))
        parts.append(arrays)
    joined = (np.concatenate(arrays)[: len(canvases)] for arrays in zip(*parts, strict=True))
    return dict(zip(detection_rules.FOUND, joined, strict=True))


def reference_data(detector, samples=None):
    """What consumers are asked, and what the detector itself answers, as consumers/detection_rules.py has it.

    Args:
        detector: saved.Detector.
        samples: paths of image files, or None for random patterns.

    Raises:
        ValueError: an image does not decode.
    """
    resize, side = detector.config.resize, detector.config.model.input_size[0]
    if samples is None:
        files = patterns(resize.shorter)
    else:
        files = [path.read_bytes() for path in spread_out(samples, SAMPLES)]
        for path, data in zip(spread_out(samples, SAMPLES), files, strict=True):
            decoded(data, path)
    same, files = questions(files, resize.shorter)
    find = inference.make_find(detector.model, tf.distribute.get_strategy())
    canvases = [lite.on_uint8_canvas(decoded(data, index), detector.config) for index, data in enumerate(files)]
    canvases = np.stack(canvases)
    found, sizes = found_in_files(find, detector, [*map(png, same), *files])
    parts = {"images": slice(None, len(same)), "files": slice(len(same), None)}
    expected = {f"{key}/{name}": values[part] for key, part in parts.items() for name, values in found.items()}
    expected |= {f"{key}/sizes": sizes[part] for key, part in parts.items()}
    on_canvas = {f"canvases/{name}": values for name, values in found_on_canvases(find, canvases).items()}
    return {
        "origin": np.array("random patterns" if samples is None else "sample images"),
        "limits": np.array(json.dumps(LIMITS)),
        "labels": np.array(list(detector.categories.values())),
        "images": same,
        "files": np.array(files),
        "canvases": canvases.astype("float32"),
        "canvases/sizes": np.full((len(canvases), 2), side),
        **expected,
        **on_canvas,
    }
