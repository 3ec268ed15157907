"""Evaluates a detector on every image of a split: AP, AP50, AP75, APS, APM, APL by pycocotools, and AP of each class.

    python training/evaluate_detection.py --model runs/cells --data-dir DIR                          # a run
    python training/evaluate_detection.py --model runs/cells/checkpoints/step-00000330 --data-dir DIR
    python training/evaluate_detection.py --model exported/cells/1 --data-dir DIR --output looked_at  # a SavedModel

DIR holds annotations and images as for train_detection.py; the categories must be those that the detector knows.
--output DIR writes per_class.csv and detections.png, photographs with their annotations and with what was found. Needs
the extra "detection" (docs/detection.md).
"""

import sys

import terminal
from detection_engine import EXTRA, NEEDED


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    add = parser.add_argument
    add("--model", type=terminal.folder, required=True, help="a run, its detector, a checkpoint, or a SavedModel")
    add("--data-dir", type=terminal.folder, required=True, help="where annotations and images lie")
    add("--split", default="val", choices=["train", "val", "test"], help="which images (default: %(default)s)")
    add("--batch-size", type=terminal.at_least_one, default=8, help="images at once (default: %(default)s)")
    add("--output", type=terminal.folder, metavar="DIR", help="write per_class.csv and detections.png into this folder")
    return parser.parse_args(argv)


def open_both(arguments):
    """(the opened detector, the data's Split).

    Raises:
        ValueError, OSError: something is not there, or they do not fit together.
    """
    from detection_engine import dataset, opened

    split = dataset.open_split(arguments.data_dir, arguments.split)
    detector = opened.open_detector(arguments.model)
    if detector.categories != split.annotations.categories:
        differing = {*detector.categories.items()} ^ {*split.annotations.categories.items()}
        raise ValueError(
            f"{arguments.model} does not have the categories of {split.annotations.path}: {sorted(differing)[:5]} are "
            "of one only."
        )
    if arguments.output:
        arguments.output.mkdir(parents=True, exist_ok=True)
    return detector, split


def main(argv=None):
    arguments = parse_arguments(argv)
    terminal.check_installed("evaluate_detection.py", NEEDED, EXTRA)
    print(f"Evaluating on {terminal.start_tensorflow()}", flush=True)
    from detection_engine import evaluation
    from na_keras.text_table import text_table

    try:
        detector, split = open_both(arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"evaluate_detection.py: {error}")
    print(*split.annotations.summary, sep="\n", flush=True)
    result = detector.evaluator(split, arguments.batch_size).evaluate()
    print(f"{detector.path} on {split.annotations.path}: {result.in_words}")
    print(text_table(("class", "AP"), [(name, evaluation.number(value)) for name, value in result.classes.items()]))
    if arguments.output:
        names = evaluation.write(arguments.output, result, split)
        print(f"Wrote {', '.join(names)} in {arguments.output}")
    return result.numbers


if __name__ == "__main__":
    main()
