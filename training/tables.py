"""Prints the paper's Tables 1 to 4 beside what this library's networks come to.

    python training/tables.py                     # builds 19 networks: a minute on 2 CPU cores
    python training/tables.py --runs runs         # with the accuracies of the finished ImageNet runs under runs/
    python training/tables.py --markdown

Parameters and GFLOPs are counted in the networks (na_keras/graph/complexity.py); the difference is ours, rounded as the
paper rounds, less the paper's. Accuracies are the paper's, and say so, until a run directory holds a finished run of
the same network on imagenet2012. Of detection, Table 4, parameters and operations are ours, no detector is trained yet.
"""

import sys

import progress
import terminal

PLACEHOLDER = "-"  # the paper prints nothing here, or there is nothing yet
HEADER = ("network", "params/M paper", "ours", "diff", "GFLOPs paper", "ours", "diff", "GMACs ours")
HEADER += ("top-1 paper", "ours", "top-5 paper", "ours")

# "Attention meets Normalization and Beyond". A row: its name there; model and attention in na_keras; parameters in
# millions, GFLOPs, top-1 and top-5 in per cent, as printed.
RESNET50 = ("ResNet50", "ResNet50", None, "25.557", "4.122", "75.8974", "92.7224")
TABLE_1 = (
    RESNET50,
    ("SE-ResNet50", "ResNet50", "se", "28.088", "4.130", "77.2877", "93.6478"),
    ("GE-ResNet50", "ResNet50", "ge", "25.557", "4.127", "76.2357", "92.9847"),
    ("SK-ResNet50", "ResNet50", "sk", "26.154", "4.187", "77.3657", "93.5256"),
    ("CBAM-ResNet50", "ResNet50", "cbam", "28.090", "4.139", "77.2840", "93.6005"),
    ("NA-ResNet50", "ResNet50", "na", "25.557", "4.122", "77.3078", "93.6096"),
    ("MobileNetV2", "MobileNetV2", None, "3.505", "0.320", "71.0320", "90.0670"),
    ("SE-MobileNetV2", "MobileNetV2", "se", "3.563", "0.321", "72.0482", "90.5812"),
    ("GE-MobileNetV2", "MobileNetV2", "ge", "3.555", "0.322", "72.2776", "90.9120"),
    ("CBAM-MobileNetV2", "MobileNetV2", "cbam", "3.565", "0.324", "71.9069", "90.5114"),
    ("NA-MobileNetV2", "MobileNetV2", "na", "3.50", "0.320", "72.2596", "90.7498"),
)
TABLE_2 = (  # no top-5 is printed in Tables 2 and 3
    (*RESNET50[:6], None),
    ("NA (w embedding)", "ResNet50", "na_embedding", "25.558", "4.123", "77.2183", None),
    ("NA (w/o embedding)", "ResNet50", "na", "25.557", "4.122", "77.3078", None),
)
TABLE_3 = (
    (*RESNET50[:6], None),
    ("NA (mean)", "ResNet50", "na_mean", "25.557", "4.122", "76.901", None),
    ("NA (ours)", "ResNet50", "na", "25.557", "4.122", "77.3078", None),
)
CLASSIFICATION = (
    ("Table 1. ImageNet validation, single crop", TABLE_1),
    ("Table 2. Embedding ablation", TABLE_2),
    ("Table 3. Context modeling ablation", TABLE_3),
)
# A row: detector and backbone there; detector and attention in na_keras; AP, AP50, AP75, AP of small, medium and large
# objects; parameters in millions, without the frozen stem and first stage; GMac of an image of 1280 x 800
TABLE_4 = (
    ("RetinaNet", "ResNet50", "retinanet", None, "36.2", "55.9", "38.5", "19.4", "39.8", "48.3", "37.74", "239.32"),
    ("RetinaNet", "SE-ResNet50", "retinanet", "se", "37.4", "57.8", "39.8", "20.6", "40.8", "50.3", "40.25", "239.43"),
    ("RetinaNet", "NA-ResNet50", "retinanet", "na", "37.3", "57.9", "39.5", "21.6", "40.9", "49.2", "37.74", "239.32"),
    (
        "Cascade R-CNN",
        "ResNet50",
        "cascade_rcnn",
        None,
        "40.6",
        "58.9",
        "44.2",
        "22.4",
        "43.7",
        "54.7",
        "69.17",
        "234.71",
    ),
    (
        "Cascade R-CNN",
        "GC-ResNet50",
        "cascade_rcnn",
        "gc",
        "41.1",
        "59.7",
        "44.6",
        "23.6",
        "44.1",
        "54.3",
        "71.69",
        "234.82",
    ),
    (
        "Cascade R-CNN",
        "NA-ResNet50",
        "cascade_rcnn",
        "na",
        "42.6",
        "61.3",
        "46.4",
        "25.5",
        "46.2",
        "55.3",
        "69.17",
        "234.71",
    ),
)
DETECTION_SIZE = (800, 1280)
DETECTION_HEADER = (
    "detector",
    "backbone",
    "params/M paper",
    "ours",
    "diff",
    "GMac paper",
    "ours",
    "diff",
    "GMACs ours",
)
DETECTION_HEADER += ("AP paper", "AP50", "AP75", "APs", "APm", "APl")

NOTES = """\
GE-ResNet50 and SE-, GE- and CBAM-MobileNetV2 are INFERRED from the paper's counts: no code of theirs is published.
NA-MobileNetV2 is printed with two decimals.
NA (mean): the released code takes its mean in a pooling module, which the paper's counter counts: 4.127; with a
function, as here, it counts the printed 4.122.
GFLOPs are the count of the paper's program, GMACs the multiply-accumulates of convolutions and fully connected layers;
Table 4's GMac are the former, of an image of 1280 x 800 and of 1000 regions.
"""


def finished_runs(folder):
    """{(model, attention): [(name of the run, top-1, top-5), ...]} of the finished ImageNet runs in a folder.

    A finished run has model.keras; accuracies, in per cent, are those after the last epoch. Runs with images of other
    sizes than 224, or with options of the network, are left out.

    Raises:
        ValueError: a finished run without a readable recipe or history.
    """
    from run_files import run_directory

    result = {}
    for path in sorted(folder.rglob(run_directory.RECIPE)):
        directory = path.parent
        if not (directory / run_directory.MODEL).exists():
            continue
        try:
            recipe = run_directory.read_recipe(directory)
            if (recipe["dataset"], recipe["size"], recipe["model_options"]) != ("imagenet2012", 224, {}):
                continue
            last = run_directory.read_history(directory, recipe["epochs"])[-1]
            accuracies = [f"{100 * float(last[column]):.4f}" for column in ("validation_top1", "validation_top5")]
            network = recipe["model"], recipe["attention"]
        except (ValueError, KeyError, IndexError) as error:
            raise ValueError(f"cannot read the run in {directory}: {error!r}. Repair it or move it away.") from error
        result.setdefault(network, []).append((str(directory.relative_to(folder)), *accuracies))
    return result


def difference(ours, paper):
    """Ours at the paper's decimals, and that less the paper's, as text."""
    decimals = len(paper.partition(".")[2])
    rounded = f"{ours:.{decimals}f}"
    return rounded, f"{float(rounded) - float(paper):+.{decimals}f}"


def count(model_name, attention):
    """(parameters, FLOPs by the paper's counter, multiply-accumulates) of a network at 224 x 224."""
    from na_keras.graph import complexity
    from na_keras.models import MODELS

    model = MODELS[model_name](attention=attention)
    return complexity.count_parameters(model), complexity.paper_flops(model), complexity.count_macs(model)


def count_detector(name, attention):
    """The same of a detector of Table 4: parameters that are trained, and operations for an image of 1280 x 800."""
    from na_keras.detection import DETECTORS, freeze_first_stage
    from na_keras.graph import complexity

    parts = DETECTORS[name]((*DETECTION_SIZE, 3), attention)
    for model, _ in parts:
        freeze_first_stage(model)
    parameters = sum(complexity.count_parameters(model) for model, _ in parts)
    counters = complexity.paper_flops, complexity.count_macs
    return parameters, *(sum(times * count(model) for model, times in parts) for count in counters)


def classification_rows(table, counts, runs):
    """The rows of one of Tables 1 to 3, from {(model, attention): counts} and `finished_runs`."""
    for name, model, attention, parameters, gflops, *accuracies in table:
        ours = counts[model, attention]
        done = runs.get((model, attention), [])
        of_runs = [" ".join(run[column] for run in done) or PLACEHOLDER for column in (1, 2)]
        paper = [PLACEHOLDER if value is None else f"{value} (paper)" for value in accuracies]
        yield (
            *(name, parameters, *difference(ours[0] / 1e6, parameters)),
            *(gflops, *difference(ours[1] / 1e9, gflops), f"{ours[2] / 1e9:.3f}"),
            *(paper[0], of_runs[0], paper[1], of_runs[1]),
        )


def detection_rows(counts):
    """The rows of Table 4, from {(detector, attention): counts}."""
    for detector, backbone, name, attention, *average_precision, parameters, gmac in TABLE_4:
        ours = counts[name, attention]
        yield (
            *(detector, backbone, parameters, *difference(ours[0] / 1e6, parameters)),
            *(gmac, *difference(ours[1] / 1e9, gmac), f"{ours[2] / 1e9:.2f}"),
            *average_precision,
        )


def count_networks():
    """{(model or detector, attention): counts} of every network in the tables, each counted once."""
    networks = dict.fromkeys((model, attention) for _, table in CLASSIFICATION for _, model, attention, *_ in table)
    detectors = [(detector, attention) for _, _, detector, attention, *_ in TABLE_4]
    bar, counts = progress.Progress(len(networks) + len(detectors), "networks", stream=sys.stderr), {}
    for counter, names in ((count, networks), (count_detector, detectors)):
        for network in names:
            counts[network] = counter(*network)
            bar.update(len(counts))
    return counts


def parse_arguments(argv):
    parser = terminal.make_parser(__doc__)
    parser.add_argument("--runs", type=terminal.folder, help="folder with run directories of train.py (default: none)")
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    if arguments.runs and not arguments.runs.is_dir():
        sys.exit(f"tables.py: no folder {arguments.runs}. Expected the folder that holds train.py's run directories.")
    print(f"Counting on {terminal.start_tensorflow()}", file=sys.stderr, flush=True)
    from na_keras.text_table import text_table

    try:
        runs = finished_runs(arguments.runs) if arguments.runs else {}
    except ValueError as error:
        sys.exit(f"tables.py: {error}")
    counts, style = count_networks(), "markdown" if arguments.markdown else "plain"
    for title, table in CLASSIFICATION:
        print(f"{title}\n\n{text_table(HEADER, classification_rows(table, counts, runs), style)}\n")
    print("Table 4. Detection on COCO; the average precisions are the paper's\n")
    print(text_table(DETECTION_HEADER, detection_rows(counts), style) + "\n")
    print(NOTES, end="")
    for (model, attention), done in runs.items():
        for name, top1, top5 in done:
            print(f"Run {name}: {model} with attention {attention}, top-1 {top1} %, top-5 {top5} %")
    if not runs:
        where = f"in {arguments.runs}" if arguments.runs else "given (--runs)"
        print(f"Our accuracies: there is no finished ImageNet run {where}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
