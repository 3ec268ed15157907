"""Answers that are no softmax: independent probabilities, logits, and outputs beside the classifier's."""

import numpy as np
import pytest

import serving_client
from consumers import answer_rules

LOGITS = np.array([[4.0, -6.0, 1.0], [-3.0, 2.0, 8.0]], "float32")
SIGMOIDS = 1 / (1 + np.exp(-LOGITS))


def reference_of(ending, **others):
    values = {"sigmoid": SIGMOIDS, "logits": LOGITS}[ending]
    arrays = {"ending": np.array(ending), "labels": np.array(["a", "b", "c"]), "probabilities": values}
    return arrays | {f"other/{name}": array for name, array in others.items()}


def answers_of(values, name, **others):
    order = np.argsort(-values, 1)[:, :2]
    full = {name: values, "classes": order, "scores": np.take_along_axis(values, order, 1), **others}
    full["labels"] = np.array(["a", "b", "c"])[order]
    calls = ((0, 1), (0, 2), (1, 2))
    return {f"serving_default/{a}:{b}/{key}": array[a:b] for a, b in calls for key, array in full.items()}


def check(reference, answers):
    return answer_rules.check_calls(answers, reference, ["serving_default"])


@pytest.mark.parametrize(("ending", "name"), [("sigmoid", "probabilities"), ("logits", "logits")])
def test_sigmoids_and_logits_are_held_to_their_own_numbers(ending, name):
    reference = reference_of(ending)
    values = reference["probabilities"]
    assert check(reference, answers_of(values, name)) == ({"serving_default": 0.0}, [])
    assert "differs by" in str(check(reference, answers_of(values + np.float32(0.01), name)))
    wrong = {"logits": "probabilities", "probabilities": "logits"}[name]
    assert f"lacks {name}" in str(check(reference, answers_of(values, wrong)))


def test_differences_of_sigmoids_and_logits_are_in_units_of_the_largest_logit():
    assert answer_rules.float32_scale(LOGITS, "logits") == 8
    assert answer_rules.float32_scale(SIGMOIDS, "sigmoid") == pytest.approx(8 * SIGMOIDS.max(), rel=1e-3)
    certain = np.array([[1.0], [0.0]], "float32")
    assert 1 < answer_rules.float32_scale(certain, "sigmoid") < 100


def test_further_outputs_must_be_there_and_be_right():
    maps = np.linspace(-5, 5, 16).reshape(2, 2, 4)
    reference = reference_of("sigmoid", maps=maps)
    answers = answers_of(SIGMOIDS, "probabilities", maps=maps)
    assert check(reference, answers) == ({"serving_default": 0.0}, [])
    assert "lacks maps" in str(check(reference, answers_of(SIGMOIDS, "probabilities")))
    differences, found = check(reference, answers_of(SIGMOIDS, "probabilities", maps=maps + 0.05))
    assert differences["serving_default"] == pytest.approx(0.01) and "differs by 1.0e-02" in found[0]


def test_one_sigmoid_agrees_where_it_says_yes_to_the_same_images():
    expected = np.array([[0.9], [0.1], [0.6], [0.2]])
    numbers, found = answer_rules.check_reduced((0.6, 0.8), np.array([[0.8], [0.2], [0.4], [0.1]]), expected, "sigmoid")
    assert numbers["top1_agreement"] == 0.75 and found == []
    numbers, _ = answer_rules.check_reduced((0.6, 0.8), -LOGITS[:, :1], LOGITS[:, :1], "logits")
    assert numbers["top1_agreement"] == 0 and answer_rules.spread(LOGITS) == 1


def test_the_client_prints_per_cent_of_probabilities_alone():
    assert serving_client.score_text([0.9, 0.35])(0.35) == " 35.0 %"
    assert serving_client.score_text([0.9, -2.0])(-2.0).strip() == "-2.000"
