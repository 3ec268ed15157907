"""na_keras/detection: the networks of Table 4, without Model Garden."""

import keras
import pytest
from table_networks import DETECTORS as COUNTS

import tables
from na_keras.detection.feature_pyramid import feature_pyramid
from na_keras.detection.heads import proposal_head, retinanet_head


@pytest.mark.parametrize(("detector", "attention"), COUNTS)
def test_counts_of_table_4_are_the_papers_to_every_digit(detector, attention):
    counts = tables.count_detector(detector, attention)
    assert counts == COUNTS[detector, attention]
    (row,) = [row for row in tables.TABLE_4 if row[2:4] == (detector, attention)]
    parameters, gmac = row[-2:]
    assert tables.difference(counts[0] / 1e6, parameters) == (parameters, "+0.00")
    assert tables.difference(counts[1] / 1e9, gmac) == (gmac, "+0.00")


@pytest.fixture
def features():
    """Of an image of 64 x 128 pixels, with few channels."""
    return {f"C{level}": keras.Input((64 >> level, 128 >> level, 2**level), name=f"C{level}") for level in range(2, 6)}


def test_the_pyramids_levels_have_half_the_size_of_the_one_below(features):
    maps = feature_pyramid(features, (3, 7), filters=8)
    sides = {"P3": (8, 16), "P4": (4, 8), "P5": (2, 4), "P6": (1, 2), "P7": (1, 1)}
    assert {level: tensor.shape[1:] for level, tensor in maps.items()} == {
        level: (*side, 8) for level, side in sides.items()
    }


def test_the_last_level_of_a_pooled_pyramid_is_every_other_position(features):
    maps = feature_pyramid(features, (2, 6), filters=8, extra="pooling")
    model = keras.Model(features, [maps["P5"], maps["P6"]])
    keras.utils.set_random_seed(0)
    values = {level: keras.random.normal((1, *tensor.shape[1:])) for level, tensor in features.items()}
    below, last = (keras.ops.convert_to_numpy(x) for x in model(values))
    assert (last == below[:, ::2, ::2]).all()


def test_an_unknown_kind_of_extra_levels_is_refused(features):
    with pytest.raises(ValueError, match=r"extra must be one of \('convolution', 'pooling'\). Received: 'pool'"):
        feature_pyramid(features, (3, 7), extra="pool")


def test_a_fresh_retinanet_takes_every_class_for_unlikely(features):
    """Section 4.1 of the focal loss: the bias makes the probability .01, whatever the image."""
    maps = feature_pyramid(features, (3, 7), filters=8)
    classes, _ = retinanet_head(maps, 3, filters=8)
    model = keras.Model(features, classes)
    values = {level: keras.ops.zeros((1, *tensor.shape[1:])) for level, tensor in features.items()}
    answers = model(values)
    assert set(answers) == {"P3", "P4", "P5", "P6", "P7"}
    assert answers["P3"].shape == (1, 8, 16, 27)
    for level in answers.values():
        assert keras.ops.convert_to_numpy(keras.ops.sigmoid(level)) == pytest.approx(0.01, rel=1e-5)


@pytest.mark.parametrize("filters", [16, 256])
def test_towers_of_any_width_begin_with_the_variance_of_256_filters(filters):
    """mmdetection's deviation of .01 is for 256; of fewer, four convolutions would leave next to nothing."""
    maps = {"P3": keras.Input((4, 4, filters), name="P3")}
    classes, _ = retinanet_head(maps, 3, filters=filters)
    scores, _ = proposal_head(maps, filters=filters)
    model = keras.Model(maps, [classes, scores])
    for name in ("retinanet_class_conv1", "retinanet_class_conv4", "rpn_conv"):
        kernel = keras.ops.convert_to_numpy(model.get_layer(name).kernel)
        # Inputs of one position times variance; 2304 numbers and more: the estimate is off by 3 % at one deviation.
        assert 9 * filters * kernel.var() == pytest.approx(9 * 256 * 0.01**2, rel=0.15)
