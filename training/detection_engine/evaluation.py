"""The evaluation of a detector over every image of a split, and what one looks at of it."""

import csv
import dataclasses
import io
import math

import numpy as np
import tensorflow as tf

import plots
import progress
from na_keras.data import preprocessing
from na_keras.detection import evaluation as average_precision
from na_keras.detection.model_garden import inference
from run_files import run_directory

PER_CLASS, PICTURE = "per_class.csv", "detections.png"
SHOWN = 6  # photographs
LOWEST_SCORE = 0.3  # of the boxes on the picture


@dataclasses.dataclass(frozen=True)
class Result:
    """What a detector found: {image id: list of Detection}; its six numbers; {class name: AP}."""

    found: dict
    numbers: dict
    classes: dict

    @property
    def in_words(self):
        """The numbers for a person, as COCO's tables have them."""
        texts = (f"{name} {number(value)}" for name, value in self.numbers.items())
        return f"{', '.join(texts)}, over {len(self.found)} images"


def number(value):
    """An average precision in hundredths, "-" if there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def in_table(numbers):
    """Numbers as a CSV file has them: nothing where there is none."""
    return {name: "" if math.isnan(value) else value for name, value in numbers.items()}


class Evaluator:
    """Evaluates a model on a split, as often as one likes.

    Args:
        model, config: of the task.
        strategy: in whose scope the model was made.
        split: dataset.Split.
        batch_size: images at once, on all replicas together.
    """

    def __init__(self, model, config, strategy, split, batch_size):
        self.config, self.strategy, self.split, self.batch_size = config, strategy, split, batch_size
        self.find = inference.make_find(model, strategy)

    def detect(self, progress):
        """{image id: list of Detection}; `progress` gets the number of images that are done."""
        options = {"strategy": self.strategy, "batch_size": self.batch_size, "progress": progress}
        return inference.detect(self.find, self.config, self.split.photographs, self.split.folder, **options)

    def evaluate(self):
        """The Result of the model as it is now."""
        return measured(self.detect, self.split)


class SavedModelEvaluator:
    """Evaluates an exported SavedModel on a split, by its signature of encoded images.

    Args:
        signature: of encoded images (batch,) -> boxes (batch, n, 4) top, left, bottom, right in pixels of each image,
            classes and scores (batch, n), and how many of the n count (batch,).
        split, batch_size: as of `Evaluator`.
    """

    def __init__(self, signature, split, batch_size):
        self.signature, self.split, self.batch_size = signature, split, batch_size

    def detect(self, progress):
        """As of `Evaluator`."""
        found, photographs = {}, self.split.photographs
        for start in range(0, len(photographs), self.batch_size):
            part = photographs[start : start + self.batch_size]
            data = [(self.split.folder / photograph.file_name).read_bytes() for photograph in part]
            answer = self.signature(tf.constant(data))
            counts, *arrays = (answer[name].numpy() for name in inference.FOUND)
            for index, photograph in enumerate(part):
                own = (values[index][: counts[index]] for values in arrays)
                shape = (photograph.height, photograph.width)
                found[photograph.id] = inference.detections(photograph, shape, *own)
            progress(len(found))
        return found

    def evaluate(self):
        """The Result of the SavedModel."""
        return measured(self.detect, self.split)


def measured(detect, split):
    """The Result of what `detect`, a function of a progress, finds in a split."""
    shown, done = progress.Progress(len(split.photographs), "held-out images"), 0

    def after(now):
        nonlocal done
        shown.update(now, count=now - done)
        done = now

    found = detect(after)
    numbers, classes = average_precision.evaluate(split.annotations, found)
    return Result(found, numbers, classes)


def write(folder, result, split):
    """Writes per_class.csv and detections.png; old ones are replaced. Returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "AP"])
    writer.writerows(in_table(result.classes).items())
    run_directory.write_text(folder / PER_CLASS, text.getvalue())
    plots.save(picture(result, split), folder / PICTURE)
    return PER_CLASS, PICTURE


def draw_boxes(axes, boxes, class_names):
    """Draws (left, top, right, bottom, class from 1 on, text) in the colours of the classes."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    for left, top, right, bottom, label, text in boxes:
        colour = colormaps["tab10"]((label - 1) % 10)
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=colour, linewidth=1.2))
        name = plots.shortened(class_names[label - 1], 12)
        box = {"facecolor": colour, "edgecolor": "none", "pad": 0.5, "alpha": 0.7}
        axes.text(left, top, f"{name} {text}".strip(), fontsize=5, color="white", va="bottom", bbox=box, clip_on=True)


def picture(result, split):
    """A figure of some photographs, spread over the split: their annotations, and below what was found."""
    photographs = split.photographs
    chosen = [photographs[i] for i in np.unique(np.linspace(0, len(photographs) - 1, SHOWN).round().astype(int))]
    names = split.annotations.class_names
    figure = plots.new_figure(3.2 * len(chosen), 5.4)
    figure.suptitle(f"Annotations above, detections from a score of {LOWEST_SCORE} on below")
    for column, photograph in enumerate(chosen):
        data = (split.folder / photograph.file_name).read_bytes()
        image = preprocessing.decode(data, exif_orientation=False).numpy()
        truth = [(b.left, b.top, b.right, b.bottom, b.label, "crowd" if b.crowd else "") for b in photograph.boxes]
        found = [d for d in result.found[photograph.id] if d.score >= LOWEST_SCORE]
        found = [(d.left, d.top, d.right, d.bottom, d.label, f"{d.score:.2f}") for d in found]
        for row, boxes in enumerate((truth, found)):
            axes = figure.add_subplot(2, len(chosen), 1 + row * len(chosen) + column)
            axes.imshow(image)
            axes.set_axis_off()
            draw_boxes(axes, boxes, names)
        figure.axes[-2].set_title(plots.shortened(photograph.file_name, 30), fontsize=7)
    return figure


def curves(rows, title):
    """A figure of a run's history: losses, and average precision."""
    losses = [name for name in rows[-1] if name.endswith("loss")]
    figure = plots.new_figure(9, 3.6)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    shown = {name.replace("_", " "): (rows, name) for name in losses}
    plots.draw_curves(left, shown, None, "loss", logarithmic=True)
    precision = {name: (rows, name) for name in ("AP", "AP50", "AP75")}
    plots.draw_curves(right, precision, None, "average precision, %", factor=100)
    return figure
