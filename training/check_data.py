"""Says what a folder of images holds, and decodes every file of it, so that none stops a run later.

    python training/check_data.py --data-dir photographs/
    python training/check_data.py --data-dir photographs/ --validation-split 0.2
    python training/check_data.py --dataset imagenet2012 --data-dir /data --split train

Prints the classes and counts of each split and what is ignored, then a line for each file that cannot be opened or
decoded. The exit status is 1 if there is one.
"""

import sys

import recipe_fields
import recipes
import terminal


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    add = parser.add_argument
    add("--dataset", default="folder", help="digits, folder, csv or a dataset of TFDS (default: %(default)s)")
    add("--data-dir", type=terminal.folder, help="where the data lies")
    add(
        "--split",
        nargs="+",
        default=["train", "validation"],
        choices=["train", "validation", "test"],
        help="(default: train validation)",
    )
    recipe_fields.add_flags(parser, recipes.Recipe, recipes.SPLITS)
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    terminal.start_tensorflow()
    from na_keras.data import load_source, pipeline

    splits = recipes.given_splits(arguments)
    try:
        sources = [load_source(arguments.dataset, split, arguments.data_dir, **splits) for split in arguments.split]
    except (ValueError, OSError) as error:
        sys.exit(f"check_data.py: {error}")
    bad = 0
    for source in sources:
        print(*source.summary, sep="\n")
        for name, reason in pipeline.check_files(source):
            bad += 1
            print(f"{name}: {reason}")
    images = sum(source.count for source in sources)
    if bad:
        sys.exit(f"check_data.py: {bad} of {images} images cannot be read")
    print(f"All {images} images can be read")


if __name__ == "__main__":
    main()
