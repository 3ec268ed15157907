"""Functional networks with attention: ResNet and MobileNetV2."""

from na_keras.models.mobilenet_v2 import MobileNetV2, NAMobileNetV2
from na_keras.models.resnet import NAResNet50, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from na_keras.models.shared import decode_predictions, preprocess_input

# name -> builder, for recipes and command lines: a row makes a network a `--model`. What training, the benchmark and
# the tables expect of a builder (tests/models/test_builder_protocol.py holds every row to it):
#
#   builder(input_shape=(height, width, 3), classes=, classifier_activation=, attention=, synchronized_batch_norm=,
#           name=)
#   further arguments have defaults; recipes give them as `model_options`
#   returns a functional keras.Model: raw RGB images (batch, height, width, 3), 0..255, float or uint8, are normalised
#   inside; (batch, classes) float32 come out, logits where classifier_activation=None; layers "C2" .. "C5" pass the
#   feature maps of strides 4, 8, 16 and 32; the classifier is called "predictions"; height and width may be None
MODELS = {
    "MobileNetV2": MobileNetV2,
    "ResNet18": ResNet18,
    "ResNet34": ResNet34,
    "ResNet50": ResNet50,
    "ResNet101": ResNet101,
    "ResNet152": ResNet152,
}

__all__ = [
    "MODELS",
    "MobileNetV2",
    "NAMobileNetV2",
    "NAResNet50",
    "ResNet101",
    "ResNet152",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "decode_predictions",
    "preprocess_input",
]
