"""Image files sorted into one folder per class.

    DATA_DIR/train/CLASS/anything.jpg        and DATA_DIR/validation/CLASS/... (or val/, or test/)

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

import tensorflow as tf

from na_keras.data.source import FileExamples, Source, permuted_range

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".webp")
FOLDERS = {"train": ("train",), "validation": ("validation", "val", "test"), "test": ("test",)}
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
    raise FileNotFoundError(
        f"{data_dir} must hold a folder named {' or '.join(FOLDERS[split])} with one per class.{hint}"
    )


def check_level(folder, images):
    """Refuses class folders that are not classes but hold them: DATA_DIR/train/train/CLASS.

    Args:
        folder: of the split.
        images: {class name: paths}.

    Raises:
        ValueError: a single folder, or folders named like splits, whose images all lie in two or more further folders.
    """
    splits = {name for names in FOLDERS.values() for name in names}
    if len(images) > 1 and not set(images) <= splits:
        return
    for name, paths in images.items():
        inner = {path.relative_to(folder / name).parts[0] for path in paths}
        if len(inner) < 2 or any((folder / name / part).is_file() for part in inner):
            return
    raise ValueError(
        f"{folder} must hold one folder per class. Received: {', '.join(map(printable, images))}, whose images all lie "
        "in further folders. If those are the classes, move them up by one level."
    )


def count_notes(folder, images):
    """Lines that say how many images a split and its classes hold, and which classes are empty."""
    counts = {name: len(paths) for name, paths in images.items()}
    if len(counts) <= LISTED_CLASSES:
        each = ", ".join(f"{name} {count}" for name, count in counts.items())
    else:
        each = f"{min(counts.values())} to {max(counts.values())} a class"
    notes = [f"{folder}: {sum(counts.values())} images in {len(counts)} classes: {each}"]
    empty = [name for name, count in counts.items() if not count]
    if empty:
        notes.append(f"{folder}: no images of {len(empty)} classes: {', '.join(empty[:LISTED_CLASSES])}")
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


def find_classes(data_dir, split, class_names):
    """(folder of the split, class names in the order of their labels); see `image_folder`."""
    folder = split_folder(data_dir, split)
    train = folder if class_names is not None else split_folder(data_dir, "train")
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


def image_folder(split, data_dir, class_names=None):
    """A folder of image files as a Source.

    Args:
        split: "train", "validation" (the folder validation, val or test, whichever is there first) or "test".
        data_dir: the folder that holds the splits' folders.
        class_names: the names of the classes in the order of their labels, for instance those of a trained network;
            by default train's folders in sorted order. With names given, no train folder is needed.

    Returns:
        Source; its notes say what each class holds and what was ignored.

    Raises:
        ValueError: no data directory is given, a class folder that is no class, a folder level too many, or no images.
        FileNotFoundError: the split's folder does not exist.
        OSError: a folder that cannot be listed.
    """
    if data_dir is None:
        raise ValueError("The dataset folder needs --data-dir: it must hold train/CLASS/ and validation/CLASS/.")
    folder, classes = find_classes(pathlib.Path(data_dir), split, class_names)
    images, others, hidden = {}, [], 0
    for name in classes:
        images[name], other, more_hidden = images_and_others(folder / name) if (folder / name).is_dir() else ([], [], 0)
        others, hidden = others + other, hidden + more_hidden
    files = [(os.fsencode(path), label) for label, name in enumerate(classes) for path in images[name]]
    notes = [*count_notes(folder, images), *ignored_notes(folder, others, hidden)]
    if not files:
        ignored = " ".join(ignored_notes(folder, others, hidden))
        raise ValueError(
            f"No images in {folder}: expected files that end in {', '.join(IMAGE_SUFFIXES)} in class folders. {ignored}"
        )
    if class_names is None:
        check_level(folder, images)
    names, labels = (tf.constant(column) for column in zip(*files, strict=True))

    def entries(seed):
        entry = lambda i: {"label": tf.cast(labels[i], tf.int64), "index": i, "name": names[i]}  # noqa: E731
        return permuted_range(len(files), seed).map(entry)

    def read(entry):
        return {**entry, "image": tf.io.read_file(entry["name"])}

    details = functools.partial(folder_details, folder, images)
    return Source(f"{folder}", tuple(classes), len(files), FileExamples(entries, read), tuple(notes), details)
