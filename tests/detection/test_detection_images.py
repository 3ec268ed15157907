"""Images and boxes as a detector's training gets them: mmdetection's sizes, on one canvas for both orientations."""

import numpy as np
import pytest

pytest.importorskip("official", reason="needs the extra detection, in an environment of its own (docs/detection.md)")

import tensorflow as tf  # noqa: E402
from official.vision.ops import preprocess_ops  # noqa: E402

from na_keras.detection import coco, records, schedule  # noqa: E402
from na_keras.detection.model_garden import configurations, images, tasks  # noqa: E402


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((480, 640), (800, 1067)),  # the shorter side decides: 640 * 800 / 480 = 1066.7
        ((640, 480), (1067, 800)),
        ((300, 900), (444, 1333)),  # the longer side decides: 300 * 1333 / 900 = 444.3
        ((900, 300), (1333, 444)),
    ],
)
def test_the_size_is_mmdetections_in_both_orientations(shape, expected):
    assert tuple(images.resized_shape(tf.constant(shape, tf.float32), 800, 1333).numpy()) == expected


def test_canvases_are_multiples_of_the_stride():
    assert (images.canvas_side(1333, 128), images.canvas_side(1333, 64)) == (1408, 1344)


def test_model_gardens_normalisation_makes_the_canvas_around_an_image_zero():
    canvas, shape = images.on_canvas(np.full((30, 60, 3), 200, "uint8"), 60, 120, 128)
    values = preprocess_ops.normalize_image(canvas).numpy()
    assert tuple(shape.numpy()) == (60, 120)
    assert np.abs(values[60:]).max() < 1e-6 and np.abs(values[:, 120:]).max() < 1e-6
    assert values[30, 60] == pytest.approx((200 / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225], 1e-4)


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48)])
@pytest.mark.parametrize("flip", [False, True])
def test_boxes_go_with_a_grey_photograph(height, width, flip, monkeypatch):
    monkeypatch.setattr(tf.random, "uniform", lambda shape: tf.zeros(shape))  # mirrors if asked to
    pixels = np.zeros((height, width, 1), "uint8")
    pixels[12:24, 8:20] = 255  # what the box is around
    box = coco.Box(8, 12, 20, 24, 2)
    data = tf.io.encode_png(pixels).numpy()
    record = records.example(coco.Photograph(5, "a.png", width, height, (box,)), data, [7, 18]).SerializeToString()
    decoded = images.Decoder([7, 18], 96, 128, 128, flip=flip).decode(record)
    assert decoded["groundtruth_classes"].numpy() == [2]
    found = decoded["groundtruth_boxes"].numpy()[0] * 128
    left = width - 20 if flip else 8
    assert found == pytest.approx([24, 2 * left, 48, 2 * (left + 12)], abs=1e-3)
    bright = decoded["image"].numpy()[26:46, 2 * left + 2 : 2 * left + 22]
    assert bright.min() > 0.99
    assert decoded["image"].numpy()[: 2 * height, : 2 * width].mean() == pytest.approx(144 / (height * width), abs=0.01)


def test_a_record_of_an_unknown_category_stops_the_training():
    photograph = coco.Photograph(5, "a.png", 64, 48, (coco.Box(8, 12, 20, 24, 1),))
    record = records.example(photograph, tf.io.encode_png(np.zeros((48, 64, 3), "uint8")).numpy(), [9])
    with pytest.raises(tf.errors.InvalidArgumentError, match="category that is not one of the annotations'"):
        images.Decoder([7, 18], 96, 128, 128).decode(record.SerializeToString())


def test_an_input_that_is_no_multiple_of_the_stride_is_refused():
    config = configurations.detection_task("retinanet", [1, 2, 3], size=96, longer_size=128, batch_size=2)
    config.model.input_size = [160, 160, 3]
    with pytest.raises(ValueError, match="multiple of 128 pixels that holds the longer side, 128, such as 128"):
        tasks.check_canvas(config)


def test_smooth_l1_of_beta_011_is_the_weighted_huber():
    losses = configurations.retinanet_losses(0.0)
    difference = np.array([[0.05, -0.3, 2.0, 0.0]], "float32")
    huber = tf.keras.losses.Huber(losses.huber_loss_delta)(np.zeros((1, 4), "float32"), difference).numpy()
    size = np.abs(difference)
    smooth = np.where(size < 0.11, 0.5 * size**2 / 0.11, size - 0.055).sum()
    assert losses.box_loss_weight * huber == pytest.approx(smooth, rel=1e-5)


@pytest.mark.parametrize("name", ["retinanet", "cascade_rcnn"])
def test_the_papers_schedule_is_registered(name):
    from official.core import exp_factory

    config = exp_factory.get_exp_config(f"{name}_att_resnet50_coco")
    rate, steps = schedule.LEARNING_RATES[name], 118_287 // 16
    rates = config.trainer.optimizer_config.learning_rate.get()
    assert config.trainer.train_steps == 24 * steps
    assert rates.boundaries == [18 * steps - 1, 22 * steps - 1]  # the last steps, from 0, of epochs 18 and 22
    assert rates.values == pytest.approx([rate, rate / 10, rate / 100])
    assert config.trainer.optimizer_config.optimizer.get().global_clipnorm == 35
    assert len(config.task.category_ids) == 80 and config.task.category_ids[11:13] == [13, 14]
    assert config.task.model.input_size[0] == {"retinanet": 1408, "cascade_rcnn": 1344}[name]
