"""Image classification datasets of TensorFlow Datasets, ImageNet first among them; nothing is ever downloaded.

A dataset must lie prepared in the data directory. ImageNet ("imagenet2012") is prepared here, once, when its two
archives from image-net.org lie there: ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar.

Images stay encoded while they are read and shuffled. Files are read in a seeded order and mixed in a buffer, so equal
seeds give equal orders and consecutive epochs differ.
"""

import pathlib

import tensorflow as tf

from na_keras.data.source import Source

IMAGENET = "imagenet2012"
IMAGENET_TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
SHUFFLE_BUFFER = 16_384  # encoded images: some 1.8 GB of ImageNet
EXAMPLE = "--train-split='train[:80%]' --validation-split='train[80%:]'"
SPLITS = {"train": ("train",), "validation": ("validation", "test"), "test": ("test",)}  # ours: TFDS's, best first


def prepared_builder(name, data_dir):
    """The dataset's builder, its data on disk.

    Raises:
        ValueError: TFDS does not know the name.
        FileNotFoundError: the data is not there.
    """
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.registered.DatasetNotFoundError as error:
        raise ValueError(
            f"dataset must be digits, folder, csv or a name that TFDS knows. Received: {name!r}"
        ) from error
    if builder.info.splits:
        return builder
    if name != IMAGENET:
        raise FileNotFoundError(
            f"{name} is not prepared in {builder.data_dir}. Prepare it once with `tfds build {name} --data_dir DIR` "
            "and give --data-dir=DIR; training never downloads."
        )
    missing = [tar for tar in IMAGENET_TARS if data_dir is None or not (pathlib.Path(data_dir) / tar).is_file()]
    if missing:
        raise FileNotFoundError(
            f"ImageNet is not prepared in {builder.data_dir}, and {' and '.join(missing)} not found in --data-dir="
            f"{data_dir}. Get the archives from image-net.org and put them there; training never downloads."
        )
    print(f"Preparing ImageNet from the archives in {data_dir}, once; this takes hours for the real ones")
    builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=str(data_dir)))
    return builder


def positions(builder, text):
    """Which images a split of TFDS's syntax holds: [(split of the dataset, first, one past the last)].

    Raises:
        ValueError: it does not parse, names no split of the dataset, holds no image, or one twice.
    """
    import tensorflow_datasets as tfds

    splits = builder.info.splits
    try:
        parts = tfds.core.ReadInstruction.from_spec(text).to_absolute(splits)
    except ValueError as error:
        reason = str(error).splitlines()[-1]
        raise ValueError(
            f"{builder.name} has the splits {', '.join(sorted(splits))}. Received: {text!r}. {reason}"
        ) from error
    sizes = {name: info.num_examples for name, info in splits.items()}
    ranges = [(p.splitname, p.from_ or 0, sizes[p.splitname] if p.to is None else p.to) for p in parts]
    ranges = [part for part in ranges if part[1] < part[2]]
    if not ranges:
        raise ValueError(f"The split {text!r} of {builder.name} holds no images.")
    if any(shared([part], ranges[:index]) for index, part in enumerate(ranges)):
        raise ValueError(f"The split {text!r} of {builder.name} holds some images twice.")
    return ranges


def shared(one, other):
    """How many images two lists of `positions` share."""
    pairs = ((a, b) for a in one for b in other if a[0] == b[0])
    return sum(max(0, min(a[2], b[2]) - max(a[1], b[1])) for a, b in pairs)


def choose_split(builder, split, asked):
    """The split to read, in TFDS's syntax.

    Args:
        builder: of the dataset.
        split: "train", "validation" or "test".
        asked: {"train": split in TFDS's syntax or None, "validation": the same}.

    Raises:
        ValueError: no such split; or one is asked for, and training and validation share images.
    """

    def choose(which):
        if asked.get(which) is not None:
            positions(builder, asked[which])
            return asked[which]
        found = [candidate for candidate in SPLITS[which] if candidate in builder.info.splits]
        if found:
            return found[0]
        hint = "" if which == "test" else f" Divide one: {EXAMPLE}."
        raise ValueError(
            f"{builder.name} has no split named {' or '.join(SPLITS[which])}: it has {sorted(builder.info.splits)}"
            f".{hint}"
        )

    if split != "test" and any(text is not None for text in asked.values()):
        train, validation = choose("train"), choose("validation")
        if common := shared(positions(builder, train), positions(builder, validation)):
            raise ValueError(
                f"The training split {train!r} and the validation split {validation!r} of {builder.name} share "
                f"{common} images. Give two that share none, as in {EXAMPLE}."
            )
    return choose(split)


def tfds_source(name, split, data_dir, train_split=None, validation_split=None):
    """A split of a prepared TFDS dataset with the features "image" and "label" as a Source.

    Args:
        name: as TFDS writes it, "imagenet2012" or with config and version.
        split: "train", "validation" or "test"; of a dataset without it, "validation" is the test split.
        data_dir: TFDS's data directory, by default TFDS's own default.
        train_split, validation_split: what these splits are instead, in TFDS's syntax: "train[:80%]",
            "test+validation".

    Raises:
        ValueError: an unknown dataset, one without images and labels, or without the split; or training and validation
            images, as they are asked for, are partly the same.
        FileNotFoundError: data that is not there.
    """
    import tensorflow_datasets as tfds

    builder = prepared_builder(name, data_dir)
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise ValueError(f"{name} is no image classification dataset: its features are {sorted(features)}")
    chosen = choose_split(builder, split, {"train": train_split, "validation": validation_split})
    count = builder.info.splits[chosen].num_examples

    def examples(seed):
        config = tfds.ReadConfig(shuffle_seed=seed, add_tfds_id=True, skip_prefetch=True, try_autocache=False)
        config.options.deterministic = True
        dataset = builder.as_dataset(
            split=chosen,
            shuffle_files=seed is not None,
            decoders={"image": tfds.decode.SkipDecoding()},
            read_config=config,
        )
        if seed is not None:
            dataset = dataset.shuffle(min(count, SHUFFLE_BUFFER), seed=seed, reshuffle_each_iteration=False)

        def example(element):
            identity = element["tfds_id"]
            return {
                "image": element["image"],
                "label": element["label"],
                "index": tf.strings.to_hash_bucket_fast(identity, 2**62),
                "name": element.get("file_name", identity),
            }

        return dataset.map(example)

    def details():
        splits = builder.info.splits
        stored = sum(splits[part].num_bytes for part in {part for part, _, _ in positions(builder, chosen)})
        return {"version": builder.info.full_name, "split": chosen, "bytes": stored}

    return Source(f"{name}/{chosen}", tuple(features["label"].names), count, examples, details=details)
