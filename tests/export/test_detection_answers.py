"""When a consumer's detections are right, and how the client prints them. NumPy only."""

import json
import pathlib
import re

import numpy as np
import pytest
from test_serving_client import rest_server

import serving_client
from consumers import detection_rules, verification

LABELS = np.array(["cat", "dog"])
ROWS = 4  # of an answer


def answer(*images):
    """{name: array} of lists of (top, left, bottom, right, class, score)."""
    boxes = np.zeros((len(images), ROWS, 4))
    classes, scores = np.zeros((len(images), ROWS), int), np.zeros((len(images), ROWS))
    for index, found in enumerate(images):
        for row, (*box, label, score) in enumerate(found):
            boxes[index, row], classes[index, row], scores[index, row] = box, label, score
    counts = np.array([len(found) for found in images])
    return dict(zip(detection_rules.FOUND, (counts, boxes, classes, scores), strict=True))


CAT, DOG = (10, 20, 50, 60, 1, 0.9), (12, 20, 50, 60, 2, 0.8)
EXPECTED = answer([CAT, DOG], [])


def reference(expected=EXPECTED, **more):
    found = {f"{key}/{name}": value for key in ("images", "files", "canvases") for name, value in expected.items()}
    sizes = {f"{key}/sizes": np.array([(100, 50), (100, 50)]) for key in ("images", "files", "canvases")}
    return {**found, **sizes, "labels": LABELS, "origin": np.array("sample images"), **more}


def check(ours, expected=EXPECTED, **replaced):
    """(difference, sentences) of answers to the signature serve_bytes."""
    ours = ours | {"detection_labels": np.array(["", *LABELS])[ours["detection_classes"]]} | replaced
    answers = {}
    for first, last in ((0, 1), (0, 2), (1, 2)):
        answers |= {f"serve_bytes/{first}:{last}/{name}": value[first:last] for name, value in ours.items()}
    differences, found = detection_rules.check_calls(answers, reference(expected), ["serve_bytes"])
    return differences["serve_bytes"], found


def test_the_order_of_equal_boxes_does_not_count_and_a_pixel_does():
    assert check(EXPECTED) == (0.0, [])
    assert check(answer([DOG, CAT], [])) == (0.0, [])
    near = (10.01, 20, 50, 60, 1, 0.9)
    difference, found = check(answer([near, DOG], []))
    assert difference == pytest.approx(1e-4) and found == []
    difference, found = check(answer([(11, 20, 50, 60, 1, 0.9), DOG], []))
    assert difference == pytest.approx(1e-2) and found[0].gate == "float-difference"


@pytest.mark.parametrize(
    "ours",
    [
        answer([CAT], []),
        answer([CAT, DOG], [DOG]),
        answer([(*CAT[:4], 2, 0.9), DOG], []),
        answer([(60, 20, 90, 60, 1, 0.9), DOG], []),
    ],
    ids=["lost", "invented", "classes", "elsewhere"],
)
def test_what_has_no_partner_differs_infinitely_and_cannot_be_accepted(ours):
    difference, (finding,) = check(ours)
    assert difference == np.inf and finding.gate is None


def test_of_a_full_answer_the_rest_is_unknown():
    full = [CAT, DOG, (60, 1, 90, 9, 1, 0.7), (60, 11, 90, 19, 1, 0.6)]
    other = [*full[:3], (60, 21, 90, 29, 2, 0.55)]  # another one in the last place, which a kernel's order decides
    assert check(answer(other, []), answer(full, []))[1] != []
    lower = [CAT, DOG, (60, 1, 90, 9, 1, 0.7)]
    assert check(answer([*lower, (60, 11, 90, 11, 1, 0.65)], []), answer(lower, []))[1] == []  # a box without an area
    assert check(answer(full, []), answer(lower, []))[1] != []


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"detection_labels": np.full((2, ROWS), "cat")}, "class 2 is called 'cat'"),
        ({"detection_scores": np.full((2, ROWS), np.nan)}, "not finite"),
        ({"detection_scores": np.zeros((2, 3))}, "outputs have the shapes"),
        ({"num_detections": np.array([9, 0])}, r"num_detections is \[9"),
        ({"detection_classes": np.full((2, ROWS), 3), "detection_labels": np.full((2, ROWS), "")}, "from 3 to 3"),
    ],
)
def test_malformed_answers_are_named(replaced, message):
    difference, found = check(EXPECTED, **replaced)
    assert difference == np.inf and any(re.search(message, sentence) for sentence in found)


def test_an_output_that_is_missing_is_named():
    _, found = detection_rules.check_calls({}, reference(), ["tf2:serve_bytes"])
    assert "tf2:serve_bytes/0:1: lacks detection_boxes" in found[0]


def test_files_of_reduced_precision_agree_on_boxes_or_are_refused():
    moved = answer([(13, 20, 53, 60, 1, 0.7), DOG], [])
    limits = {"limits": np.array(json.dumps({"int8": 0.9}))}
    path = pathlib.Path("model_int8.tflite")
    _, numbers, found = detection_rules.check_file(path, moved, reference(**limits))
    assert found == [] and numbers["model_int8.tflite"]["agreement"] == 1
    assert numbers["model_int8.tflite"]["mean_overlap"] == pytest.approx((37 / 43 + 1) / 2)
    assert numbers["model_int8.tflite"]["largest_score_difference"] == pytest.approx(0.2)
    _, _, (finding,) = detection_rules.check_file(path, answer([DOG], []), reference(**limits))
    assert "agrees on 67% of the detections only, expected 90%" in finding and finding.gate == "reduced-precision"
    _, _, (finding,) = detection_rules.check_file(pathlib.Path("model_float32.tflite"), moved, reference())
    assert finding.gate == "float-difference"


def test_a_detector_that_finds_nothing_proves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(verification, "CONSUMERS", {})
    np.savez(tmp_path / "reference.npz", **reference(answer([], [])))
    report, (finding,) = verification.verify(tmp_path, tmp_path / "reference.npz")
    assert finding.gate == "equal-answers" and "finds nothing in the sample images" in finding
    assert report["detections"] == {"images": 0, "files": 0} and report["tolerance"] == detection_rules.TOLERANCE
    np.savez(tmp_path / "reference.npz", **reference())
    assert verification.verify(tmp_path, tmp_path / "reference.npz")[1] == []


def test_the_client_asks_a_server_for_boxes(tmp_path, capsys):
    image = tmp_path / "photo.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n")
    found = answer([CAT, DOG, (1, 2, 3, 4, 1, 0.2)])
    found["detection_labels"] = np.array(["", *LABELS], object)[found["detection_classes"]]
    found["detection_labels"] = np.vectorize(str.encode, otypes=[object])(found["detection_labels"])
    with rest_server(lambda signature, inputs: found) as url:
        serving_client.main(["--url", url, "--image", str(image)])
        assert capsys.readouterr().out.splitlines() == [
            str(image),
            "  cat   90.0 %     20.0    10.0    60.0    50.0",
            "  dog   80.0 %     20.0    12.0    60.0    50.0",
        ]
        serving_client.main(["--url", url, "--image", str(image), "--lowest-score", "0.95"])
    assert capsys.readouterr().out.splitlines()[1:] == ["  nothing with a score of at least 0.95"]
    with pytest.raises(serving_client.ClientError, match="Expected the outputs classes, .* or num_detections, "):
        serving_client.as_rows({"num_detections": np.zeros(1)})
