"""Which side is the bottleneck: the input, the training step, or neither?

    python training/throughput.py --recipe=resnet50-paper --data-dir=DIR --strategy=mirrored --steps=50
    python training/throughput.py --compare            # against what one would write by hand, on a few photographs

Measures images per second of the input pipeline alone, of the step alone on one batch that stays on the device, and of
both together as in training; interleaved, several rounds, median and range. Takes train.py's flags. Without --data-dir
an ImageNet recipe is measured on photographs (parts of the two that scikit-learn brings, as JPEGs of 500 x 375).

--compare prints ratios. CPU time per image of the input pipeline: against a fused decode-and-crop and nothing else, and
against Model Garden's classification input where tf-models-official is installed. Time per step of the loop: against a
bare tf.function with the same network and optimizer.
"""

import statistics
import sys
import time

import progress
import recipe_fields
import recipes
import terminal

PHOTOGRAPHS, HEIGHT, WIDTH = 256, 375, 500  # ImageNet's typical size
BUFFERED = 32  # batches that the input may have ready from the time of the steps before; not counted


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    add = parser.add_argument
    add("--recipe", default="resnet50-paper", help=f"one of {', '.join(recipes.RECIPES)} (default: %(default)s)")
    add("--data-dir", type=terminal.folder, help="where the dataset lies")
    terminal.add_execution_flags(parser)
    positive = terminal.at_least_one
    add("--steps", type=positive, default=20, help="per measurement (default: %(default)s)")
    add("--rounds", type=positive, default=5, help="of interleaved measurements (default: %(default)s)")
    add("--compare", action="store_true", help="ratios against hand-written programs, instead of rates")
    recipe_fields.add_flags(parser, recipes.Recipe)
    arguments = parser.parse_args(argv)
    terminal.check_execution_flags(parser, arguments)
    return arguments


def photographs():
    """JPEGs cut out of scikit-learn's two photographs, as a Source with ImageNet's number of classes."""
    import numpy as np
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    from na_keras.data.source import Source, permuted_range

    generator = np.random.default_rng(0)
    whole, files = load_sample_images().images, []
    for index in range(PHOTOGRAPHS):
        image = whole[index % 2]
        top, left = generator.integers(image.shape[0] - HEIGHT), generator.integers(image.shape[1] - WIDTH)
        part = image[top : top + HEIGHT, left : left + WIDTH]
        files.append(tf.io.encode_jpeg(part, quality=90).numpy())
    encoded = tf.constant(files)

    def examples(seed):
        def example(index):
            name = tf.strings.as_string(index)
            return {"image": encoded[index], "label": index, "index": index, "name": name}

        return permuted_range(PHOTOGRAPHS, seed).map(example)

    return Source("photographs", tuple(map(str, range(1000))), PHOTOGRAPHS, examples)


def spread(values):
    """Median and range, as text."""
    return f"{statistics.median(values):9.1f}  ({min(values):.1f} .. {max(values):.1f})"


def batches_of(recipe, source, epoch, context, **changed):
    """The training pipeline of a recipe, as loop.py asks for it, with other values of the options in `changed`."""
    from engine.loop import augmentation_options
    from na_keras.data import pipeline

    options = {**augmentation_options(recipe), **changed}
    return pipeline.training_batches(source, seed=recipe.seed, epoch=epoch, first_step=0, context=context, **options)


def endless(recipe, source, context):
    """Epoch after epoch."""
    epochs = [batches_of(recipe, source, epoch, context) for epoch in range(2)]
    return epochs[0].concatenate(epochs[1]).repeat()


def measure_rates(recipe, source, strategy, arguments):
    """Prints images per second of the input, of the step, and of both."""
    import tensorflow as tf

    from engine import evaluation, steps
    from engine.training_state import TrainingState

    state = TrainingState(recipe, strategy, len(source.class_names), 1000, arguments.precision, arguments.sync_bn)
    options = {"loss_scale": state.loss_scale, "averaged": state.averaged, "xla": arguments.xla}
    options["task"] = evaluation.task_of(source.multi_label)
    train = steps.make_train_steps(strategy, state.model, state.optimizer, recipe, **options)

    @tf.function
    def consume(iterator, count):
        for _ in tf.range(count):
            next(iterator)

    def one_batch(context):
        return endless(recipe, source, context).take(1).cache().repeat()

    loaded = iter(strategy.distribute_datasets_from_function(lambda context: endless(recipe, source, context)))
    synthetic = iter(strategy.distribute_datasets_from_function(one_batch))
    count, go_on = tf.constant(arguments.steps), tf.constant(0.0)
    train_on = lambda iterator: train(iterator, count, steps.NO_SUMS, go_on)["sums"].numpy()  # noqa: E731
    jobs = {
        "input alone": lambda: consume(loaded, count),
        "step alone": lambda: train_on(synthetic),
        "both": lambda: train_on(loaded),
    }
    print(f"{recipe.model}, attention {recipe.attention}, {strategy.num_replicas_in_sync} replica(s), global batch "
          f"{recipe.batch_size}, {arguments.precision}, {source.name}; {arguments.rounds} rounds of {arguments.steps} "
          "steps, images/s")  # fmt: skip
    for job in jobs.values():  # compiles
        job()
    rates = {name: [] for name in jobs}
    bar = progress.Progress(arguments.rounds, "rounds")
    for done in range(arguments.rounds):
        for name, job in jobs.items():
            if name == "input alone":
                consume(loaded, count + BUFFERED)
            start = time.perf_counter()
            job()
            rates[name].append(arguments.steps * recipe.batch_size / (time.perf_counter() - start))
        bar.update(done + 1)
    for name, values in rates.items():
        print(f"  {name:12} {spread(values)}")
    feed, step, both = (statistics.median(values) for values in rates.values())
    side = "the step" if feed > step else "the input"
    print(f"The input could feed {feed / step:.2f} times what the step uses: the bottleneck is {side}. Together they "
          f"reach {100 * both / min(feed, step):.0f} % of the slower one.")  # fmt: skip
    return rates


def model_garden_batches(files, recipe):
    """Model Garden's classification input on the same files, or None without tf-models-official."""
    try:
        from official.vision.dataloaders import classification_input
    except ModuleNotFoundError:
        return None
    import tensorflow as tf

    def record(data, label):
        features = {
            "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[data])),
            "image/class/label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
        }
        return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()

    decoder = classification_input.Decoder(image_field_key="image/encoded", label_field_key="image/class/label")
    parser = classification_input.Parser((recipe.size, recipe.size), 1000, decode_jpeg_only=True)
    parse = parser.parse_fn(is_training=True)
    records = tf.data.Dataset.from_tensor_slices([record(data, index) for index, data in enumerate(files)])
    parsed = records.map(decoder.decode, tf.data.AUTOTUNE).map(parse, tf.data.AUTOTUNE)
    return parsed.batch(recipe.batch_size, drop_remainder=True)


def bare_batches(source, recipe, own_crops):
    """Decode and crop in one operation, and resize: the least that random-size cropping costs in TensorFlow.

    With TensorFlow's own sampler of crops, or with ours: its crops are smaller (mean .37 of the area, not .43) and so
    cheaper to decode, but they are not what the recipes mean.
    """
    import tensorflow as tf

    from na_keras.data import preprocessing

    whole = tf.constant([[[0.0, 0.0, 1.0, 1.0]]])

    def crop(shape):
        start, size, _ = tf.image.sample_distorted_bounding_box(
            shape,
            whole,
            area_range=recipe.crop_area,
            aspect_ratio_range=recipe.crop_aspect,
            use_image_if_no_bounding_boxes=True,
        )
        return tf.concat([start[:2], size[:2]], axis=0)

    def own_crop(shape):
        seed = tf.random.uniform([2], 0, 2**31 - 1, tf.int32)
        return preprocessing.random_window(shape, seed, recipe.crop_area, recipe.crop_aspect)

    def load(example):
        data = example["image"]
        window = (own_crop if own_crops else crop)(tf.io.extract_jpeg_shape(data))
        image = tf.image.resize(tf.io.decode_and_crop_jpeg(data, window, channels=3), (recipe.size, recipe.size))
        return tf.cast(image, tf.uint8)

    images = source.examples(None).map(load, tf.data.AUTOTUNE)
    return images.batch(recipe.batch_size, drop_remainder=True)


def compare_input(recipe, source, rounds):
    """Prints CPU time per image of the pipeline and of others on the same files."""
    import tensorflow as tf

    one = tf.distribute.InputContext()
    files = [example["image"].numpy() for example in source.examples(None).take(PHOTOGRAPHS)]
    if not all(tf.io.is_jpeg(data) for data in files):
        raise ValueError(f"{source.name} does not consist of JPEGs, which the comparison needs.")
    pipelines = {
        "bare, the same crops": bare_batches(source, recipe, own_crops=True),
        "bare, smaller crops": bare_batches(source, recipe, own_crops=False),
        "ours, no antialias": batches_of(recipe, source, 0, one, antialias=False),
        "ours, antialias": batches_of(recipe, source, 0, one, antialias=True),
        "Model Garden": model_garden_batches(files, recipe),
    }
    if pipelines["Model Garden"] is None:
        print("Model Garden: not compared, tf-models-official is not installed")
        del pipelines["Model Garden"]
    times = {name: [] for name in pipelines}
    for done in range(rounds + 1):  # the first warms up
        for name, batches in pipelines.items():
            start, images = time.process_time(), 0
            for _ in batches:
                images += recipe.batch_size
            if done:
                times[name].append(1000 * (time.process_time() - start) / images)
    print(f"CPU milliseconds per image ({len(files)} JPEGs to {recipe.size} x {recipe.size}), {rounds} rounds; ratio")
    base = times["bare, the same crops"]
    for name, values in times.items():
        ratio = statistics.median(value / bare for value, bare in zip(values, base, strict=True))
        print(f"  {name:22} {spread(values)}  {ratio:.2f}")
    return times


def compare_step(recipe, source, strategy, arguments):
    """Prints the loop's time per step against a bare tf.function's, with the same network, optimizer and batch.

    Both on one device, and with the plain loss: what is compared is what the loop adds.
    """
    import tensorflow as tf

    from engine import evaluation, steps
    from engine.training_state import TrainingState

    default = tf.distribute.get_strategy()
    batch = next(iter(batches_of(recipe, source, 0, tf.distribute.InputContext())))
    classes = len(source.class_names)

    def ours():
        state = TrainingState(recipe, default, classes, 1000)
        task = evaluation.task_of(source.multi_label)
        train = steps.make_train_steps(default, state.model, state.optimizer, recipe, task=task)
        iterator = iter(tf.data.Dataset.from_tensors(batch).cache().repeat())
        one, go_on = tf.constant(1), tf.constant(0.0)
        return lambda: train(iterator, one, steps.NO_SUMS, go_on)["sums"].numpy()

    def bare():
        state = TrainingState(recipe, default, classes, 1000)
        model, optimizer = state.model, state.optimizer
        trainable = [variable.value for variable in model.trainable_variables]
        iterator = iter(tf.data.Dataset.from_tensors(batch).cache().repeat())

        @tf.function
        def step(iterator):
            images, labels, _ = next(iterator)
            with tf.GradientTape() as tape:
                logits = model(images, training=True)
                loss = tf.reduce_mean(steps.recipe_losses(recipe, labels, logits))
            optimizer.apply(tape.gradient(loss, trainable), model.trainable_variables)
            return loss

        return lambda: step(iterator).numpy()

    jobs = {"bare tf.function": bare(), "the loop": ours()}
    for job in jobs.values():
        job()
    times = {name: [] for name in jobs}
    for _ in range(arguments.rounds * arguments.steps):
        for name, job in jobs.items():
            start = time.perf_counter()
            job()
            times[name].append(1000 * (time.perf_counter() - start))
    count = len(times["the loop"])
    print(f"Milliseconds per step ({recipe.model}, batch {recipe.batch_size}), {count} of each in turn; ratio")
    base = statistics.median(times["bare tf.function"])
    for name, values in times.items():
        print(f"  {name:22} {spread(values)}  {statistics.median(values) / base:.3f}")
    return times


def main(argv=None):
    arguments = parse_arguments(argv)
    print(f"Measuring on {terminal.start_tensorflow()}", flush=True)
    from engine import evaluation, strategies
    from na_keras.data import load_source

    try:
        given = recipe_fields.overrides(arguments, recipes.Recipe)
        recipe = recipes.get_recipe(arguments.recipe, **given)
        recipes.check_effects(recipe, given)
        if given.get("weights"):
            raise ValueError("--weights has no effect on the speed: leave it out.")
        strategy = strategies.make_strategy(arguments.strategy, arguments.virtual_cpus)
        strategies.check_batch_size(recipe.batch_size, strategy, recipe.accumulate)
        if recipe.dataset == "imagenet2012" and arguments.data_dir is None:
            source = photographs()
        else:
            source = load_source(recipe.dataset, "train", arguments.data_dir, **recipe.splits)
        evaluation.check_recipe(recipe, source)
        if source.count < recipe.batch_size:
            raise ValueError(f"{source.name} holds {source.count} images, fewer than --batch-size={recipe.batch_size}.")
        if arguments.compare:
            compare_input(recipe, source, arguments.rounds)
        measure = compare_step if arguments.compare else measure_rates
        return measure(recipe, source, strategy, arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"throughput.py: {error}")


if __name__ == "__main__":
    main()
