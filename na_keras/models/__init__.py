"""Functional networks with attention: ResNet and MobileNetV2."""

from na_keras.models.mobilenet_v2 import MobileNetV2, NAMobileNetV2
from na_keras.models.resnet import NAResNet50, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152, in_stages
from na_keras.models.shared import decode_predictions, preprocess_input

# name -> builder, for recipes and command lines. A network joins by a file of its own and a row here, if its builder
# keeps what training, the tables and export/ count on (tests/models/test_models.py holds each row to it):
#     keyword arguments    input_shape, classes, classifier_activation, attention, synchronized_batch_norm, name, and
#                          include_preprocessing, each with a default; a recipe's model_options are any others
#     returns              a functional keras.Model from images (b, h, w, 3) with raw pixels, 0..255 of any dtype, to
#                          (b, classes) float32; include_preprocessing=False takes the normalised images instead
#     layers C2 .. C5      the last feature maps of strides 4, 8, 16 and 32
#     attention            None, a name in na_keras.ATTENTION or a factory; layers named "..._attention"
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
    "in_stages",
    "preprocess_input",
]
