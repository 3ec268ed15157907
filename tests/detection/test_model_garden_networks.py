"""The detectors' parts in tf_keras: the same arrays and the same answers as the library's networks in Keras 3."""

import keras
import numpy as np
import pytest

pytest.importorskip("official", reason="needs the extra detection, in an environment of its own (docs/detection.md)")

from na_keras.detection import DETECTORS  # noqa: E402
from na_keras.detection.model_garden import attention_layers, configurations, detectors, networks  # noqa: E402
from na_keras.layers import get_attention  # noqa: E402


@pytest.mark.parametrize("name", attention_layers.ATTENTION)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_an_attention_layer_equals_the_librarys(name, policy):
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(2, 5, 6, 64)).astype("float32")
    ours = get_attention(name)(name="attention", dtype=policy)
    other = attention_layers.get_attention(name)(name="attention", dtype=policy)
    expected = ours(x)
    other(x)
    random = [np.random.default_rng(1).normal(size=weight.shape) for weight in ours.weights]
    ours.set_weights(random)
    other.set_weights(random)
    assert [w.shape for w in ours.weights] == [tuple(w.shape) for w in other.weights]
    expected, answer = ours(x), other(x)
    assert answer.dtype == expected.dtype
    assert (np.asarray(answer, "float32") == np.asarray(expected, "float32")).all()


def random_weights(model):
    """Batch norm with statistics as after training, everything else small."""
    rng = np.random.default_rng(2)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape) for w in layer.weights])
        elif layer.weights and layer.name.endswith("attention"):
            layer.set_weights([rng.normal(0, 0.1, w.shape) for w in layer.weights])


def transfer(source, target):
    """Weights by the layers' names, all of them."""
    layers = {layer.name: layer for model in target for layer in model.layers if layer.weights}
    for layer in source.layers:
        if layer.weights:
            there = layers.pop(layer.name)
            assert [tuple(w.shape) for w in there.weights] == [tuple(w.shape) for w in layer.weights]
            there.set_weights(layer.get_weights())
    return layers


@pytest.fixture
def image():
    return np.random.default_rng(3).normal(size=(1, 128, 128, 3)).astype("float32")


def trained_numbers(model):
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def assert_maps_equal(here, there):
    """To 1e-4 of the largest value: some 60 layers in float32, of which each may sum up in another order."""
    assert {f"P{level}" for level in here} == set(there)
    for level, values in here.items():
        expected = np.asarray(there[f"P{level}"])
        assert np.abs(values - expected).max() < 1e-4 * np.abs(expected).max(), level


def test_retinanet_is_table_4s_and_answers_as_the_network_in_keras(image):
    (ours, _), *_ = DETECTORS["retinanet"]((128, 128, 3), "na")
    random_weights(ours)
    config = configurations.retinanet_model((128, 128), attention="na", fixed_batch_norm=False)
    model = detectors.retinanet(config, networks.RegularizedLayers())
    assert transfer(ours, [model.backbone, model.decoder, model.head.network]) == {}
    assert trained_numbers(model) == 37_743_374
    classes, boxes = ours(image)
    outputs = model(image, image_shape=np.array([[128.0, 128.0]], "float32"), training=False)
    assert_maps_equal(outputs["cls_outputs"], classes)
    assert_maps_equal(outputs["box_outputs"], boxes)
    assert outputs["detection_boxes"].shape == (1, 100, 4)


def test_cascade_rcnn_is_table_4s_and_answers_as_the_networks_in_keras(image):
    (proposals, _), (box_heads, _) = DETECTORS["cascade_rcnn"]((128, 128, 3), "gc")
    random_weights(proposals)
    config = configurations.cascade_rcnn_model((128, 128), attention="gc", fixed_batch_norm=False)
    model = detectors.cascade_rcnn(config, networks.RegularizedLayers())
    assert transfer(proposals, [model.backbone, model.decoder, model.rpn_head.network]) == {}
    assert transfer(box_heads, [head.network for head in model.detection_head]) == {}
    assert trained_numbers(model) == 71_691_163
    objectness, boxes = proposals(image)
    outputs = model(image, image_shape=np.array([[128.0, 128.0]], "float32"), training=False)
    assert_maps_equal(outputs["rpn_scores"], objectness)
    assert_maps_equal(outputs["rpn_boxes"], boxes)
    regions = np.random.default_rng(4).normal(size=(5, 7, 7, 256)).astype("float32")
    for head, answers in zip(model.detection_head, box_heads(regions), strict=True):
        for here, there in zip(head(regions[None]), answers, strict=True):
            assert np.abs(here[0] - there).max() < 1e-5


def test_the_first_of_retinanets_classes_is_found():
    """Model Garden takes the first class for a background and leaves it out."""
    generator = detectors.WithoutBackground(nms_version="batched", pre_nms_top_k=10, max_num_detections=3)
    scores = np.full((1, 1, 1, 6), -9.0, "float32")  # two anchors, three classes
    scores[..., 0], scores[..., 4] = 3.0, 1.0  # the first anchor's class 1, the second's class 2
    anchors = np.array([[[[0.0, 0.0, 8.0, 8.0, 20.0, 20.0, 30.0, 30.0]]]], "float32")
    shape = np.array([[64.0, 64.0]], "float32")
    boxes = np.zeros((1, 1, 1, 8), "float32")
    found = generator(*({"3": keras.ops.convert_to_tensor(value)} for value in (boxes, scores, anchors)), shape)
    assert found["num_detections"] == [2]
    assert found["detection_classes"][0, :2].numpy().tolist() == [1, 2]
    assert found["detection_scores"][0, :2].numpy() == pytest.approx(1 / (1 + np.exp([-3.0, -1.0])))
