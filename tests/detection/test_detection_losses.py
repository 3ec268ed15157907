"""The losses of Cascade R-CNN against loops over anchors and regions, in float64."""

import numpy as np
import pytest

pytest.importorskip("official", reason="needs the extra detection, in an environment of its own (docs/detection.md)")

from official.vision.configs import maskrcnn  # noqa: E402

from na_keras.detection.model_garden import losses, tasks  # noqa: E402

LEVELS = {"2": (2, 4, 4), "3": (2, 2, 2)}  # batch, height, width
ANCHORS, REGIONS, CLASSES = 3, 5, 4


def smooth_l1(difference, beta):
    return sum(0.5 * d * d / beta if abs(d) < beta else abs(d) - beta / 2 for d in difference)


def cross_entropy(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


@pytest.fixture
def answers():
    rng = np.random.default_rng(0)
    normal = lambda *shape: rng.normal(size=shape).astype("float32")  # noqa: E731
    outputs = {"rpn_scores": {}, "rpn_boxes": {}}
    labels = {"rpn_score_targets": {}, "rpn_box_targets": {}}
    for level, shape in LEVELS.items():
        outputs["rpn_scores"][level] = normal(*shape, ANCHORS)
        outputs["rpn_boxes"][level] = normal(*shape, 4 * ANCHORS)
        labels["rpn_score_targets"][level] = rng.integers(-1, 2, (*shape, ANCHORS)).astype("float32")
        labels["rpn_box_targets"][level] = 0.2 * normal(*shape, 4 * ANCHORS)
    for ending in ("", "_1", "_2"):
        outputs[f"class_outputs{ending}"] = normal(2, REGIONS, CLASSES + 1)
        outputs[f"box_outputs{ending}"] = 3 * normal(2, REGIONS, 4)
        outputs[f"class_targets{ending}"] = rng.integers(0, CLASSES + 1, (2, REGIONS))
        outputs[f"box_targets{ending}"] = normal(2, REGIONS, 4)
    return outputs, labels


def expected(outputs, labels):
    sampled, scores, boxes = 0, 0.0, 0.0
    for level in LEVELS:
        targets = labels["rpn_score_targets"][level].reshape(-1)
        logits = outputs["rpn_scores"][level].reshape(-1).astype("float64")
        differences = outputs["rpn_boxes"][level].astype("float64") - labels["rpn_box_targets"][level]
        for target, logit, difference in zip(targets, logits, differences.reshape(-1, 4), strict=True):
            if target >= 0:
                sampled += 1
                scores += np.log1p(np.exp(-logit if target else logit))
            if target > 0:
                boxes += smooth_l1(difference, 1 / 9)
    values = [scores / sampled, boxes / sampled, 0.0, 0.0]
    for ending, weight in (("", 1.0), ("_1", 0.5), ("_2", 0.25)):
        for image in range(2):
            for region in range(REGIONS):
                label = outputs[f"class_targets{ending}"][image, region]
                logits = outputs[f"class_outputs{ending}"][image, region].astype("float64")
                values[2] += weight * cross_entropy(logits, label) / (2 * REGIONS)
                if label > 0:
                    names = f"box_outputs{ending}", f"box_targets{ending}"
                    one, other = (outputs[name][image, region].astype("float64") for name in names)
                    values[3] += weight * smooth_l1(one - other, 1.0) / (2 * REGIONS)
    return values


def test_the_losses_of_cascade_rcnn_are_mmdetections(answers):
    found = losses.cascade_rcnn_losses(*answers)
    names = ["rpn_score_loss", "rpn_box_loss", "frcnn_cls_loss", "frcnn_box_loss"]
    assert list(found) == names
    # Sums of some hundred float32 numbers.
    assert [float(found[name]) for name in names] == pytest.approx(expected(*answers), rel=1e-5)


def test_without_positive_anchors_and_objects_boxes_cost_nothing(answers):
    outputs, labels = answers
    for level in LEVELS:
        labels["rpn_score_targets"][level] = np.minimum(labels["rpn_score_targets"][level], 0)
    for ending in ("", "_1", "_2"):
        outputs[f"class_targets{ending}"] = np.zeros((2, REGIONS), int)
    found = losses.cascade_rcnn_losses(outputs, labels)
    assert float(found["rpn_box_loss"]) == float(found["frcnn_box_loss"]) == 0


def test_numbers_that_would_have_no_effect_are_refused():
    tasks.check_losses(maskrcnn.Losses(l2_weight_decay=0.5))
    with pytest.raises(ValueError, match="only l2_weight_decay can be chosen"):
        tasks.check_losses(maskrcnn.Losses(rpn_score_weight=2.0))
