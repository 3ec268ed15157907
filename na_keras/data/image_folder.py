"""Image files sorted into one folder per class.

    DATA_DIR/train/CLASS/anything.jpg        and DATA_DIR/validation/CLASS/... (or val/, or test/)

or, with a share to hold out (held_out.py) and no validation/ or val/, train/ alone or DATA_DIR/CLASS/anything.jpg.

Classes are the names of train's folders in sorted order, unless they are given. Only files that end as images do are
read, in folders below a class too, linked ones included. What file managers, archives and servers leave behind is no
class and no image: names that begin with a dot, and those of IGNORED_FOLDERS. The notes of the Source say what a class
holds and what was ignored.
"""

import collections
import functools
import hashlib
import os
import pathlib
import stat

import numpy as np

from na_keras.data.held_out import divide, parse_share
from na_keras.data.source import Source, file_examples, shortened

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp")
FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test"), "test": ("test",)}
SPLIT_FOLDERS = {name for names in FOLDERS.values() for name in names}
IGNORED_FOLDERS = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found")
LISTED_CLASSES = 20  # up to so many, the notes give each class's count


def is_ignored(name):
    """Whether a file or folder is not the owner's: hidden, or made by a system."""
    return name.startswith(".") or name in IGNORED_FOLDERS


def folders_in(folder):
    """Names of the folders in `folder` that are not ignored, links to folders included, sorted."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_ignored(path.name))


def printable(name):
    """A file name for a message: bytes that are no UTF-8 as escapes."""
    return os.fsencode(name).decode(errors="backslashreplace")


def images_and_others(folder):
    """What is in a folder and in those below it; links to folders are followed, each folder once.

    A folder that ends as an image does counts as an image, which cannot be read.

    Returns:
        (paths of the images, sorted; names of the other files, without the hidden ones; how many were hidden).

    Raises:
        OSError: a folder that cannot be listed.
    """

    def fail(error):
        raise error

    def is_image(name):
        return pathlib.PurePath(name).suffix.lower() in IMAGE_SUFFIXES

    images, others, hidden, seen = [], [], 0, set()
    for parent, folders, files in os.walk(folder, onerror=fail, followlinks=True):
        if os.path.realpath(parent) in seen:  # a link to a folder that was here already, perhaps above itself
            folders.clear()
            continue
        seen.add(os.path.realpath(parent))
        images += [pathlib.Path(parent, name) for name in folders if is_image(name) and not is_ignored(name)]
        folders[:] = sorted(name for name in folders if not is_ignored(name) and not is_image(name))
        for name in files:
            if is_ignored(name):
                hidden += 1
            elif is_image(name):
                images.append(pathlib.Path(parent, name))
            else:
                others.append(name)
    return sorted(images), others, hidden


def split_folder(data_dir, split):
    """The folder of a split.

    Raises:
        FileNotFoundError: none of its names exists.
    """
    for name in FOLDERS[split]:
        if (data_dir / name).is_dir():
            return data_dir / name
    inner = folders_in(data_dir) if data_dir.is_dir() else []
    deeper = [data_dir / name for name in inner if (data_dir / name / FOLDERS[split][0]).is_dir()]
    hint = f" Perhaps you mean {deeper[0]}." if deeper else ""
    if split == "validation" and (data_dir / "train").is_dir():
        hint += " Or hold a part of its training images out, for example by --validation-split=0.2."
    elif split != "test" and inner and not deeper and not SPLIT_FOLDERS.intersection(inner):
        hint += (
            f" If its folders {shortened([printable(name) for name in inner])} are the classes, hold a part of each "
            "out, for example by --validation-split=0.2."
        )
    raise FileNotFoundError(
        f"{data_dir} must hold a folder named {' or '.join(FOLDERS[split])} with one per class.{hint}"
    )


def folder_to_divide(data_dir):
    """The folder of whose images a part is held out: DATA_DIR/train, or DATA_DIR if no split has a folder in it.

    Raises:
        ValueError: there are validation images already.
        FileNotFoundError: there are neither training images nor classes.
    """
    for name in ("validation", "val"):
        if (data_dir / name).is_dir():
            raise ValueError(
                f"{data_dir / name} holds validation images, and --validation-split asks for a part of the training "
                "images instead. Leave it out, or move that folder away."
            )
    inner = folders_in(data_dir) if data_dir.is_dir() else []
    if not inner or SPLIT_FOLDERS.intersection(inner) or any((data_dir / name / "train").is_dir() for name in inner):
        return split_folder(data_dir, "train")
    return data_dir


def check_level(folder, images):
    """Refuses class folders that are not classes but hold them: DATA_DIR/train/train/CLASS.

    Args:
        folder: of the split.
        images: {class name: paths}.

    Raises:
        ValueError: a single folder, or folders named like splits, whose images all lie in two or more further folders.
    """
    if len(images) > 1 and not SPLIT_FOLDERS.issuperset(images):
        return
    for name, paths in images.items():
        inner = {path.relative_to(folder / name).parts[0] for path in paths}
        if len(inner) < 2 or any((folder / name / part).is_file() for part in inner):
            return
    raise ValueError(
        f"{folder} must hold one folder per class. Received: {', '.join(map(printable, images))}, whose images all lie "
        "in further folders. If those are the classes, move them up by one level."
    )


def count_notes(where, counts, images=None):
    """Lines that say how many images a split and its classes hold, and which classes are empty.

    Args:
        where: the split's folder or file.
        counts: {class name: number of images}.
        images: number of images, if not their sum.
    """
    if len(counts) <= LISTED_CLASSES:
        each = ", ".join(f"{name} {count}" for name, count in counts.items())
    else:
        each = f"{min(counts.values())} to {max(counts.values())} a class"
    images = sum(counts.values()) if images is None else images
    notes = [f"{where}: {images} images in {len(counts)} classes: {each}"]
    empty = [name for name, count in counts.items() if not count]
    if empty:
        notes.append(f"{where}: no images of {len(empty)} classes: {', '.join(empty[:LISTED_CLASSES])}")
    return notes


def ignored_notes(folder, others, hidden):
    """Lines that say what a split holds besides images in class folders."""
    notes = []
    suffixes = collections.Counter(pathlib.PurePath(name).suffix or "without an ending" for name in others)
    if suffixes:
        kinds = ", ".join(f"{count} {printable(suffix)}" for suffix, count in suffixes.most_common(LISTED_CLASSES))
        notes.append(f"{folder}: ignored files that do not end in {', '.join(IMAGE_SUFFIXES)}: {kinds}")
    outside = [path.name for path in folder.iterdir() if not path.is_dir() and not is_ignored(path.name)]
    if outside:
        notes.append(
            f"{folder}: ignored {len(outside)} files outside of class folders, {printable(min(outside))} first"
        )
    hidden_here = [path.name for path in folder.iterdir() if is_ignored(path.name)]
    if hidden_here:
        notes.append(f"{folder}: ignored {', '.join(map(printable, sorted(hidden_here)[:LISTED_CLASSES]))}")
    if hidden:
        notes.append(f"{folder}: ignored {hidden} hidden files in class folders")
    return notes


def file_size(path):
    """Bytes of a file; None of what is none, such as a folder or a link that leads nowhere."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def folder_details(folder, images):
    """What tells one folder of images from another, wherever it lies: how many images a class has, and a digest of the
    files' names and sizes in the order of the examples.

    Args:
        folder: of the split.
        images: {class name: paths}.
    """
    digest = hashlib.sha256()
    for paths in images.values():
        for path in paths:
            digest.update(os.fsencode(path.relative_to(folder)) + f"\0{file_size(path)}\n".encode())
    return {
        "images_per_class": {name: len(paths) for name, paths in images.items()},
        "sha256_of_names_and_sizes": digest.hexdigest(),
    }


def find_classes(data_dir, split, class_names, divided):
    """(folder of the split, class names in the order of their labels); see `image_folder`. `divided`: whether training
    and validation are parts of one folder.
    """
    folder = folder_to_divide(data_dir) if divided else split_folder(data_dir, split)
    train = folder if divided or class_names is not None else split_folder(data_dir, "train")
    classes = folders_in(train) if class_names is None else list(class_names)
    if len(set(classes)) != len(classes):
        raise ValueError(f"class_names must differ from one another. Received: {classes}")
    for name in classes:
        if printable(name) != name:
            raise ValueError(f"The class folder {printable(train / name)} must have a name in UTF-8.")
    unknown = set(folders_in(folder)) - set(classes)
    if unknown:
        known = f"{train} does not" if class_names is None else f"are not among the {len(classes)} class names"
        raise ValueError(f"{folder} holds classes that {known}: {[printable(name) for name in sorted(unknown)]}")
    return folder, classes


def one_part(folder, images, split, share):
    """({class name: paths} of one part of the images, lines for the notes); see `held_out.divide`."""
    files = [(label, path) for label, paths in enumerate(images.values()) for path in paths]
    names = [os.fsencode(path.relative_to(folder).as_posix()) for _, path in files]
    chosen, notes = divide(names, [(label,) for label, _ in files], share, split, folder)
    part = {name: [] for name in images}
    for position in chosen:
        label, path = files[position]
        part[list(images)[label]].append(path)
    alone = [name for name, paths in images.items() if len(paths) == 1]
    if alone and split == "validation":
        notes.append(f"{folder}: classes of one image, which is trained on: {shortened(alone)}")
    return part, notes


def image_folder(split, data_dir, class_names=None, validation_split=None):
    """A folder of image files as a Source.

    Args:
        split: "train", "validation" (the folder validation, val or test, whichever is there first) or "test".
        data_dir: the folder that holds the splits' folders.
        class_names: the names of the classes in the order of their labels, for instance those of a trained network;
            by default train's folders in sorted order. With names given, no train folder is needed.
        validation_split: None, or the share of the training images, 0 to 1, that is the validation split, the same
            images each time; see held_out.py. There must be no folder validation or val then, and if there is no train
            either, the classes' folders lie in `data_dir`.

    Returns:
        Source; its notes say what each class holds and what was ignored.

    Raises:
        ValueError: no data directory is given, a class folder that is no class, a folder level too many, no images, or
            a share of images of which none can be held out.
        FileNotFoundError: the split's folder does not exist.
        OSError: a folder that cannot be listed.
    """
    if data_dir is None:
        raise ValueError("The dataset folder needs --data-dir: it must hold train/CLASS/ and validation/CLASS/.")
    share = None if validation_split is None or split == "test" else parse_share(validation_split)
    folder, classes = find_classes(pathlib.Path(data_dir), split, class_names, share is not None)
    images, others, hidden = {}, [], 0
    for name in classes:
        images[name], other, more_hidden = images_and_others(folder / name) if (folder / name).is_dir() else ([], [], 0)
        others, hidden = others + other, hidden + more_hidden
    if not any(images.values()):
        ignored = " ".join(ignored_notes(folder, others, hidden))
        raise ValueError(
            f"No images in {folder}: expected files that end in {', '.join(IMAGE_SUFFIXES)} in class folders. {ignored}"
        )
    if class_names is None:
        check_level(folder, images)
    source_name, notes = f"{folder}", []
    if share is not None:
        images, notes = one_part(folder, images, split, share)
        source_name += ", training part" if split == "train" else ", held-out part"
    notes = [*count_notes(source_name, {name: len(paths) for name, paths in images.items()}), *notes]
    notes += ignored_notes(folder, others, hidden)
    paths = [os.fsencode(path) for of_class in images.values() for path in of_class]
    labels = np.repeat(np.arange(len(classes)), [len(of_class) for of_class in images.values()])
    details = functools.partial(folder_details, folder, images)
    return Source(source_name, tuple(classes), len(paths), file_examples(paths, labels), tuple(notes), details)
