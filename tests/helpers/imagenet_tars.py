"""Writes archives of the shape of ILSVRC 2012 from scikit-learn's digits, for TFDS's real imagenet2012 builder."""

import io
import tarfile

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from sklearn.datasets import load_digits

CLASSES = slice(100, 110)  # ten neighbouring classes of ImageNet stand for the ten digits


def add_file(tar, name, data=None):
    """A file, or without data a folder: the builder counts its name and skips it."""
    info = tarfile.TarInfo(name)
    if data is None:
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
    else:
        info.size = len(data)
        tar.addfile(info, io.BytesIO(data))


def jpeg(digit):
    buffer = io.BytesIO()
    image = Image.fromarray((digit * 15.9).astype(np.uint8)).resize((48, 48), Image.BILINEAR)
    image.convert("RGB").save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def write_imagenet_tars(folder, per_class=8, slots=5000, damaged=None):
    """ILSVRC2012_img_{train,val}.tar in `folder`: 10 * per_class training images and some fifty for validation.

    The builder gives the k-th validation image a fixed label; slots with another class's label hold nothing. `damaged`
    names a training image that is cut in half.
    """
    digits = load_digits()
    path = lambda name: tfds.core.tfds_path("datasets/imagenet2012/" + name)  # noqa: E731
    synsets = path("labels.txt").read_text().split()[CLASSES]
    pools = {name: list(digits.images[digits.target == k]) for k, name in enumerate(synsets)}
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as outer:
        for synset in synsets:
            buffer = io.BytesIO()
            with tarfile.open(fileobj=buffer, mode="w") as inner:
                for j in range(per_class):
                    name, data = f"{synset}_{j}.JPEG", jpeg(pools[synset].pop())
                    add_file(inner, name, data[: len(data) // 2] if name == damaged else data)
            add_file(outer, synset + ".tar", buffer.getvalue())
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for k, synset in enumerate(path("validation_labels.txt").read_text().split()[:slots]):
            name = f"ILSVRC2012_val_{k + 1:08d}.JPEG"
            add_file(tar, name, jpeg(pools[synset].pop()) if synset in pools else None)
    return synsets
