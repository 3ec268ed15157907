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
        raise ValueError(f"dataset must be digits, folder or a name that TFDS knows. Received: {name!r}") from error
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


def tfds_source(name, split, data_dir):
    """A split of a prepared TFDS dataset with the features "image" and "label" as a Source.

    Args:
        name: as TFDS writes it, "imagenet2012" or with config and version.
        split: "train", "validation" or "test"; of a dataset without it, "validation" is the test split.
        data_dir: TFDS's data directory, by default TFDS's own default.

    Raises:
        ValueError: an unknown dataset, one without images and labels, or without the split.
        FileNotFoundError: data that is not there.
    """
    import tensorflow_datasets as tfds

    builder = prepared_builder(name, data_dir)
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise ValueError(f"{name} is no image classification dataset: its features are {sorted(features)}")
    found = [candidate for candidate in SPLITS[split] if candidate in builder.info.splits]
    if not found:
        raise ValueError(
            f"{name} has no split named {' or '.join(SPLITS[split])}: it has {sorted(builder.info.splits)}"
        )
    count = builder.info.splits[found[0]].num_examples

    def examples(seed):
        config = tfds.ReadConfig(shuffle_seed=seed, add_tfds_id=True, skip_prefetch=True, try_autocache=False)
        config.options.deterministic = True
        dataset = builder.as_dataset(
            split=found[0],
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
        info = builder.info.splits[found[0]]
        return {"version": builder.info.full_name, "split": found[0], "bytes": info.num_bytes}

    return Source(f"{name}/{found[0]}", tuple(features["label"].names), count, examples, details=details)
