"""A trained detector as files: what it is, in words, and its weights as a checkpoint of TensorFlow's.

    detector.json    {"detector": "retinanet", "categories": [[18, "dog"], ...], "size": 800, "longer_size": 1333,
                     "network": {...}}; "network" as configurations.retinanet_model or cascade_rcnn_model takes it
    weights.index, weights.data-...

A checkpoint of a run's training is read as well: it has the model's weights under the same key.
"""

import dataclasses
import json
import pathlib

import tensorflow as tf

from na_keras.detection.model_garden import configurations, tasks

DESCRIPTION, WEIGHTS = "detector.json", "weights"
TASKS = {tasks.RetinaNetTask: tasks.RetinaNet, tasks.CascadeRCNNTask: tasks.CascadeRCNN}


@dataclasses.dataclass(frozen=True)
class Detector:
    """A detector with its weights.

    Attributes:
        model: Model Garden's.
        config: tasks.RetinaNetTask or tasks.CascadeRCNNTask.
        categories: {id in COCO's format: name}, by ascending ids; the class of the n-th is n, from 1 on.
    """

    model: object
    config: object
    categories: dict


def describe(detector, categories, size, longer_size, **network):
    """What detector.json holds; arguments as of configurations.detection_task, and `categories` as of Detector."""
    pairs = [[number, name] for number, name in categories.items()]  # JSON has no whole numbers for keys
    numbers = {"size": size, "longer_size": longer_size}
    return {"detector": detector, "categories": pairs, **numbers, "network": network}


def task_config(description, batch_size=1, **options):
    """The configuration of a described detector's task; `options` as of configurations.detection_task."""
    ids = [number for number, _ in description["categories"]]
    sizes = {name: description[name] for name in ("size", "longer_size")}
    return configurations.detection_task(
        description["detector"], ids, batch_size=batch_size, **sizes, **options, **description["network"]
    )


def make_task(config):
    """Model Garden's task of a configuration, which builds the model."""
    return TASKS[type(config)](config)


def save(folder, model, description):
    """Writes a detector into a new folder; killed meanwhile, there is none of this name."""
    folder = pathlib.Path(folder)
    incoming = folder.with_name(f"{folder.name}.incoming")
    incoming.mkdir(parents=True, exist_ok=True)
    tf.train.Checkpoint(model=model).write(str(incoming / WEIGHTS))
    (incoming / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n", "utf-8")
    incoming.rename(folder)


def load(description, weights, max_detections=None):
    """The Detector of two files.

    Args:
        description: path of detector.json.
        weights: of the checkpoint, without the ending .index.
        max_detections: the most objects that it finds in an image (default: Model Garden's 100, as COCO counts).

    Raises:
        FileNotFoundError: one of them is not there.
        ValueError: they are not of one detector, or the weights are damaged.
    """
    if not pathlib.Path(f"{weights}.index").exists():
        raise FileNotFoundError(f"There is no checkpoint {weights}.index.")
    content = json.loads(pathlib.Path(description).read_text("utf-8"))
    config = task_config(content)
    if max_detections is not None:
        config.model.detection_generator.max_num_detections = max_detections
    model = make_task(config).build_model()
    try:
        status = tf.train.Checkpoint(model=model).read(str(weights)).expect_partial()
        status.assert_existing_objects_matched()
    except (AssertionError, IndexError, tf.errors.OpError) as error:
        raise ValueError(f"{weights} is damaged, or not of the detector in {description}: {error}") from error
    return Detector(model, config, {number: name for number, name in content["categories"]})


def find(path):
    """(detector.json, weights) of a finished run, its folder `detector`, an unfinished run, or a run's checkpoint.

    Raises:
        FileNotFoundError: nothing of that kind is there.
    """
    path = pathlib.Path(path)
    newest = sorted(path.glob("checkpoints/step-*[0-9]"))[-1:]
    folders = [path / "detector", path]
    places = [(folder / DESCRIPTION, folder / WEIGHTS) for folder in folders]
    places += [(path / DESCRIPTION, folder / "state") for folder in newest]
    places += [(path.parent.parent / DESCRIPTION, path / "state")]
    for description, weights in places:
        if description.exists() and pathlib.Path(f"{weights}.index").exists():
            return description, weights
    raise FileNotFoundError(
        f"{path} must be a run of train_detection.py with a checkpoint, its folder detector, or one of its checkpoints."
    )
