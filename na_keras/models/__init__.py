"""Functional networks with attention: ResNet and MobileNetV2."""

from na_keras.models.mobilenet_v2 import MobileNetV2, NAMobileNetV2
from na_keras.models.resnet import NAResNet50, ResNet18, ResNet34, ResNet50, ResNet101, ResNet152
from na_keras.models.shared import decode_predictions, preprocess_input

# name -> builder, for recipes and command lines.
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
