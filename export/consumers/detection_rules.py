"""When a consumer's detections are those of the detector that was exported; NumPy only, one rule for all consumers.

The reference holds, for each of `images`, `files` and `canvases` (what TFLite files take), what the detector itself
found in them, under KEY/NAME with the names of OUTPUTS, their heights and widths as KEY/sizes (n, 2), and the `labels`.

Detections are compared as sets. Two are partners if they have the same class and overlap (intersection over union) by
at least one half: suppression leaves no two such in one answer. The difference of partners is the largest of their
scores' difference and of their boxes' coordinates', these as a share of the image's longer side; who has no partner
differs infinitely. Suppression decides by thresholds, and a last bit may turn such a decision: of an answer's
difference the EDGE of the detections that differ most is left out, of fewer than 50 none. Of an answer that is full the
rest is unknown: what the other one has below its lowest score is left out as well.
"""

import numpy as np

from consumers.answer_rules import decoded, differs, kind_of, limits_of, unknown_kind
from consumers.gates import Finding
from consumers.protocol import INPUT, batches

TOLERANCE = 1e-3
EDGE = 0.02
OVERLAP = 0.5
THINNEST = 0.01  # pixels; boxes without an area count for nothing
FOUND = ("num_detections", "detection_boxes", "detection_classes", "detection_scores")
LABELS = "detection_labels"
OUTPUTS = (*FOUND, LABELS)
UNASKED = {"openvino": "never tried with detectors"}


def is_detectors(reference):
    """Whether a reference holds detections."""
    return "images/detection_boxes" in reference


def expected_of(reference, key):
    """({name: array}, sizes) of what the detector found in the inputs `key`."""
    return {name: reference[f"{key}/{name}"] for name in FOUND}, reference[f"{key}/sizes"]


def measure(reference):
    """What the report says of the reference itself."""
    return {"detections": {key: int(reference[f"{key}/num_detections"].sum()) for _, key in INPUT.values()}}


def check_reference(reference):
    """A list with what makes agreement with the detector's answers worthless, or none."""
    if any(measure(reference)["detections"].values()):
        return []
    sentence = (
        f"The detector finds nothing in the {reference['origin']} that verification asks about, so that agreement says "
        "nothing. Ask about photographs in which it finds something (export_detection.py --sample-images DIR), or "
        "accept it (--accept equal-answers)."
    )
    return [Finding(sentence, "equal-answers")]


def rows(answer, index, lowest=0.0):
    """(boxes, classes, scores) of one image, those with an area and at least this score."""
    count = int(answer["num_detections"][index])
    boxes, classes, scores = (answer[name][index][:count] for name in FOUND[1:])
    kept = ((boxes[:, 2:] - boxes[:, :2]) > THINNEST).all(1) & (scores >= lowest)
    return boxes[kept], classes[kept], scores[kept]


def comparable(ours, theirs, index, other=None):
    """What two answers found in one image, as `rows` gives it, down to the lowest score that both know of.

    Args:
        ours, theirs: {name: array}.
        index: of the image in `ours`.
        other: of the image in `theirs`, where it is not the same.
    """
    both = (ours, index), (theirs, index if other is None else other)
    scores = [answer["detection_scores"][at] for answer, at in both]
    counts = [int(answer["num_detections"][at]) for answer, at in both]
    lowest = [values[-1] for values, count in zip(scores, counts, strict=True) if 0 < count == len(values)]
    return tuple(rows(answer, at, max(lowest, default=0.0)) for answer, at in both)


def overlaps(first, second):
    """Intersection over union of boxes (n, 4) with boxes (m, 4): (n, m)."""
    corners = [np.minimum(first[:, None, 2:], second[None, :, 2:]), np.maximum(first[:, None, :2], second[None, :, :2])]
    shared = np.clip(corners[0] - corners[1], 0, None).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def partners(ours, expected):
    """[(i, j, overlap)]: each detection's partner, the largest overlaps first; arguments as `rows` gives them."""
    table = np.where(ours[1][:, None] == expected[1][None], overlaps(ours[0], expected[0]), 0.0)
    pairs, left, right = [], set(range(len(ours[0]))), set(range(len(expected[0])))
    for i, j in zip(*np.unravel_index(np.argsort(-table, axis=None), table.shape), strict=True):
        if table[i, j] < OVERLAP:
            break
        if i in left and j in right:
            pairs.append((i, j, float(table[i, j])))
            left.remove(i)
            right.remove(j)
    return pairs


def differences(ours, expected, size):
    """The difference of every detection of either side, infinite of those without a partner; and the overlaps."""
    pairs = partners(ours, expected)
    longer = float(max(size))
    values = []
    for i, j, _ in pairs:
        values.append(float(max(np.abs(ours[0][i] - expected[0][j]).max() / longer, abs(ours[2][i] - expected[2][j]))))
    alone = len(ours[0]) + len(expected[0]) - 2 * len(pairs)
    return [*values, *values, *[np.inf] * alone], [overlap for *_, overlap in pairs]


def without_edge(values):
    """The largest of some differences, of which a share of EDGE is left out."""
    ordered = sorted(values)
    return ordered[-1 - int(EDGE * len(ordered))] if ordered else 0.0


def malformed(answer, names, images, labels=None):
    """What is wrong with the form of an answer to so many images; None if nothing is."""
    if missing := sorted(set(names) - set(answer)):
        return f"lacks {', '.join(missing)}"
    rows = answer["detection_scores"].shape[1:]
    shapes = {name: (images, *rows) for name in names}
    shapes |= {"num_detections": (images,), "detection_boxes": (images, *rows, 4)}
    received = {name: answer[name].shape for name in names}
    if len(rows) != 1 or received != shapes:
        return f"outputs have the shapes {received} for {images} images"
    if not all(np.isfinite(answer[name]).all() for name in FOUND):
        return "answers are not finite"
    counts, classes = answer["num_detections"], answer["detection_classes"]
    if counts.min(initial=0) < 0 or counts.max(initial=0) > rows[0]:
        return f"num_detections is {counts.tolist()} of {rows[0]} rows"
    if labels is None:
        return None
    if classes.dtype.kind != "i" or classes.min(initial=0) < 0 or classes.max(initial=0) > len(labels):
        return f"classes are {classes.dtype}s from {classes.min()} to {classes.max()}"
    wrong = np.argwhere(decoded(answer[LABELS]) != np.array(["", *labels])[classes])
    if not len(wrong):
        return None
    at = tuple(wrong[0])
    return f"class {classes[at]} is called {str(decoded(answer[LABELS])[at])!r}"


def check_calls(answers, reference, groups):
    """As answer_rules.check_calls, of detections."""
    found, largest = [], {}
    for group in groups:
        signature = group.rsplit(":", 1)[-1]
        _, key = INPUT[signature]
        (expected, sizes), values = expected_of(reference, key), []
        for first, last in batches(len(sizes)):
            call = f"{group}/{first}:{last}"
            answer = {name: answers[f"{call}/{name}"] for name in OUTPUTS if f"{call}/{name}" in answers}
            if sentence := malformed(answer, OUTPUTS, last - first, reference["labels"]):
                values.append(np.inf)
                found.append(f"{call}: {sentence}")
                continue
            for index in range(first, last):
                values += differences(*comparable(answer, expected, index - first, index), sizes[index])[0]
        largest[group] = float(without_edge(values))
        if not largest[group] <= TOLERANCE:
            found.append(differs(largest[group], group))
    return largest, found


def check_file(path, answers, reference):
    """({name: difference}, {name: numbers}, sentences) of a TFLite file's detections in the canvases."""
    expected, sizes = expected_of(reference, "canvases")
    if sentence := malformed(answers, FOUND, len(sizes)):
        return {}, {}, [sentence]
    values, shared, scores = [], [], []
    for index, size in enumerate(sizes):
        ours, theirs = comparable(answers, expected, index)
        own, overlap = differences(ours, theirs, size)
        values, shared = [*values, *own], [*shared, *overlap]
        scores += [abs(float(ours[2][i] - theirs[2][j])) for i, j, _ in partners(ours, theirs)]
    kind, limits = kind_of(path), limits_of(reference)
    if kind == "float32":
        value = float(without_edge(values))
        return {path.name: value}, {}, [] if value <= TOLERANCE else [differs(value)]
    if kind not in limits:
        return {}, {}, [unknown_kind(limits)]
    numbers = {
        "agreement": 2 * len(shared) / len(values) if values else 1.0,
        "mean_overlap": float(np.mean(shared)) if shared else 0.0,
        "largest_score_difference": max(scores, default=0.0),
    }
    if numbers["agreement"] >= limits[kind]:
        return {}, {path.name: numbers}, []
    sentence = f"agrees on {numbers['agreement']:.0%} of the detections only, expected {limits[kind]:.0%}"
    return {}, {path.name: numbers}, [Finding(sentence, "reduced-precision")]
