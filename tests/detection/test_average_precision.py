"""Average precision of detections that are known by hand, without any network."""

import json

import pytest

pytest.importorskip("pycocotools", reason="needs the extra detection, in an environment of its own (docs/detection.md)")

from na_keras.detection import coco, evaluation  # noqa: E402

# One small, one medium and one large object; sparse ids; an image without boxes; an object without area and iscrowd.
BOXES = [(4, 9, [10, 10, 20, 20]), (4, 70, [100, 100, 50, 50]), (8, 9, [20, 30, 200, 200])]


@pytest.fixture
def annotations(tmp_path):
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in (4, 8, 15)],
        "categories": [{"id": 70, "name": "cup"}, {"id": 9, "name": "dog"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": category, "bbox": box}
            for n, (image, category, box) in enumerate(BOXES, start=1)
        ],
    }
    path = tmp_path / "instances_val.json"
    path.write_text(json.dumps(content))
    return coco.read_annotations(path)


def perfect(annotations, shift=0.0):
    """All boxes, each shifted right by that share of its width."""
    return {
        photograph.id: [
            evaluation.Detection(
                box.left + shift * (box.right - box.left),
                box.top,
                box.right + shift * (box.right - box.left),
                box.bottom,
                box.label,
                0.9,
            )
            for box in photograph.boxes
        ]
        for photograph in annotations.photographs
    }


def test_perfect_boxes_have_ap_1_at_every_size_and_in_every_class(annotations):
    numbers, classes = evaluation.evaluate(annotations, perfect(annotations))
    assert numbers == pytest.approx(dict.fromkeys(evaluation.METRICS, 1.0))
    assert classes == pytest.approx({"dog": 1.0, "cup": 1.0})


def test_boxes_shifted_to_iou_072_pass_five_of_ten_thresholds(annotations):
    shift = (1 - 0.72) / (1 + 0.72)  # IoU = (1 - s) / (1 + s)
    numbers, _ = evaluation.evaluate(annotations, perfect(annotations, shift))
    assert (numbers["AP"], numbers["AP50"], numbers["AP75"]) == pytest.approx((0.5, 1.0, 0.0))


def test_a_class_that_is_never_found_halves_the_mean_over_two(annotations):
    found = {image: [one for one in each if one.label == 1] for image, each in perfect(annotations).items()}
    numbers, classes = evaluation.evaluate(annotations, found)
    assert numbers["AP"] == pytest.approx(0.5)
    assert classes == pytest.approx({"dog": 1.0, "cup": 0.0})


def test_nothing_found_is_ap_0(annotations):
    numbers, _ = evaluation.evaluate(annotations, {4: [], 8: [], 15: []})
    assert numbers["AP"] == 0


def test_detections_of_another_split_or_of_unknown_classes_are_refused(annotations):
    found = perfect(annotations)
    with pytest.raises(ValueError, match="1 missing, 1 others"):
        evaluation.evaluate(annotations, {4: found[4], 8: found[8], 16: []})
    found[15] = [evaluation.Detection(0, 0, 9, 9, 3, 0.5)]
    with pytest.raises(ValueError, match=r"classes 1 to 2. Received: \[3\]"):
        evaluation.evaluate(annotations, found)
