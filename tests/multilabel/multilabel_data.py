"""Small multi-label data: images of bands of colour, in a table with a column for each colour and one for nothing."""

import numpy as np
import tensorflow as tf
from tiny_network import FLAGS

COLOURS = {"blue": (20, 20, 230), "green": (20, 230, 20), "red": (230, 20, 20)}
CLASSES = (*COLOURS, "violet")  # which no held-out image has
RUN = (*FLAGS, "--dataset", "csv", "--loss", "binary_cross_entropy", "--batch-size", 4, "--warmup-epochs", 0)
# Keras' Adam learns colours in some steps.
RUN = (*RUN, "--no-flip", "--optimizer", "adamw", "--learning-rate", 0.03, "--weight-decay", 0, "--epochs", 2)
BEST = (*RUN, "--keep-best", "mean_average_precision", "--checkpoint-every", 4)


def write_images(folder, split, count, rng):
    """So many images, and SPLIT.csv with a line each: every colour with a chance of a half, so that some have none."""
    lines = [f"image,{','.join(CLASSES)}"]
    for index in range(count):
        has = rng.random(len(COLOURS)) < 0.5
        violet = split == "train" and index == 0
        pixels = rng.integers(60, 120, (36, 36, 3))
        for band, (present, colour) in enumerate(zip(has, COLOURS.values(), strict=True)):
            if present:
                pixels[12 * band : 12 * band + 12] = colour
        (folder / f"{split}{index}.png").write_bytes(tf.io.encode_png(pixels.astype(np.uint8)).numpy())
        lines.append(f"{split}{index}.png,{','.join(str(int(value)) for value in (*has, violet))}")
    (folder / f"{split}.csv").write_text("\n".join(lines) + "\n")
