"""Evaluates a trained network: single-crop top-1 and top-5 over every image of a dataset's validation split.

    python training/evaluate.py --model runs/demo/model.keras

Dataset and image sizes are those of the run that made the file (recipe.json beside it) unless given.
"""

import argparse
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ["KERAS_BACKEND"] = "tensorflow"


def parse_arguments(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a .keras file")
    parser.add_argument("--dataset", help="instead of the run's")
    parser.add_argument("--data-dir", help="where the dataset lies")
    parser.add_argument("--resize", type=int, help="pixels of the shorter side before the crop, instead of the run's")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step (default: %(default)s)")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    import tensorflow as tf

    import loop
    import steps
    from na_keras.data import load_source
    from na_keras.model_files import check_classifier, load_model, training_record

    try:
        model = load_model(arguments.model)
        check_classifier(model)
        recipe, _ = training_record(arguments.model)
        dataset = arguments.dataset or (recipe and recipe.get("dataset"))
        resize = arguments.resize or (recipe and recipe.get("evaluation_resize"))
        if dataset is None or resize is None:
            raise ValueError(f"There is no recipe.json beside {arguments.model}: give --dataset and --resize.")
        source = load_source(dataset, "validation", arguments.data_dir)
        classes, size = model.output_shape[-1], model.input_shape[1]
        if size is None or model.input_shape[2] != size:
            raise ValueError(f"Expected a network of square images of a known size. Received: {model.input_shape}")
        if resize < size or arguments.batch_size < 1:
            raise ValueError(
                f"Expected --batch-size of at least 1 and --resize of at least the network's image size {size}. "
                f"Received: {arguments.batch_size} and {resize}"
            )
        if classes != len(source.class_names):
            raise ValueError(f"The network has {classes} classes, {dataset} has {len(source.class_names)}.")
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate.py: {error}")
    strategy = tf.distribute.get_strategy()
    evaluate_steps = steps.make_evaluate_steps(strategy, model)
    try:
        result, count = loop.evaluate(strategy, evaluate_steps, source, arguments.batch_size, resize, size)
    except loop.UnreadableImageError as error:
        sys.exit(f"evaluate.py: {error}")
    print(
        f"{arguments.model} on {source.name}: top-1 {100 * result['top1']:.2f} %, top-5 {100 * result['top5']:.2f} %, "
        f"loss {result['loss']:.4f}, over {count} images"
    )
    return result


if __name__ == "__main__":
    main()
