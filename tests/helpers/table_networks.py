"""The networks of the paper's Tables 1 to 4 and their counts."""

import contextlib
import functools
from unittest import mock

import keras

from na_keras import MobileNetV2, ResNet50


@contextlib.contextmanager
def weights_not_drawn():
    """Initial weights are zeros, for who counts them: to draw them takes half of the time that a network takes."""

    def zeros(self, shape, dtype=None, **options):
        return keras.ops.zeros(shape, dtype)

    with contextlib.ExitStack() as stack:
        for name in ("VarianceScaling", "RandomUniform", "RandomNormal"):
            stack.enter_context(mock.patch.object(getattr(keras.initializers, name), "__call__", zeros))
        yield


@functools.lru_cache(maxsize=3)  # the last three: 100 MB each
def network(builder, attention):
    with weights_not_drawn():
        return builder(attention=attention)


# Printed parameters (millions) and GFLOPs; more digits where they are known: the counter's total for the reference
# programs, and their convolutions' and fully connected layers' multiply-accumulates alone.
NETWORKS = [
    (ResNet50, None, 25_557_032, "25.557", "4.122", 4.12192, 4.08918),
    (ResNet50, "se", 28_088_024, "28.088", "4.130", 4.12996, 4.09170),
    (ResNet50, "ge", 25_557_032, "25.557", "4.127", 4.12744, 4.08918),
    (ResNet50, "sk", 26_154_496, "26.154", "4.187", 4.18686, 4.14722),
    (ResNet50, "cbam", 28_089_624, "28.090", "4.139", 4.13938, 4.09557),
    (ResNet50, "na", 25_557_064, "25.557", "4.122", 4.12192, 4.08918),
    (MobileNetV2, None, 3_504_872, "3.505", "0.320", 0.32024, 0.30077),
    (MobileNetV2, "se", 3_563_492, "3.563", "0.321", 0.32087, 0.30083),
    (MobileNetV2, "ge", 3_554_504, "3.555", "0.322", 0.32238, 0.30253),
    (MobileNetV2, "cbam", 3_565_192, "3.565", "0.324", 0.32377, 0.30312),
    (MobileNetV2, "na", 3_504_906, "3.505", "0.320", 0.32024, 0.30077),  # "3.50M" in the paper
    (ResNet50, "na_embedding", 25_557_704, "25.558", "4.123", 4.12252, 4.08968),  # Table 2
    (ResNet50, "na_mean", 25_557_064, "25.557", "4.122", 4.12192, 4.08918),  # Table 3
    (ResNet50, "gc", 28_105_032, "28.105", "4.130", 4.12999, 4.09722),  # in no table: Table 4's backbone
    (ResNet50, "sge", 25_559_080, "25.559", "4.127", 4.12744, 4.08918),  # in no table
]

# Table 4's: parameters that are trained, without stem and first stage; the paper counter's operations for an image of
# 1280 x 800, as its program counts them, and the multiply-accumulates among them.
DETECTORS = {
    ("retinanet", None): (37_743_348, 239_316_500_520, 238_536_058_880),
    ("retinanet", "se"): (40_248_948, 239_431_656_408, 238_538_573_824),
    ("retinanet", "na"): (37_743_374, 239_316_500_520, 238_536_058_880),
    ("cascade_rcnn", None): (69_169_422, 234_706_994_100, 233_968_112_640),
    ("cascade_rcnn", "gc"): (71_691_163, 234_822_449_036, 234_083_267_584),
    ("cascade_rcnn", "na"): (69_169_448, 234_706_994_100, 233_968_112_640),
}
