"""Attention modules for convolutional networks, as Keras 3 layers and functional networks.

    from na_keras import NormalizationAttention, NAResNet50

    na_keras.layers         the modules, and the names by which `attention=` asks for them
    na_keras.models         ResNet and MobileNetV2 with a module in each block
    na_keras.optimizers     SGD as PyTorch's, LAMB as timm's
    na_keras.graph          modules put into a trained network, Grad-CAM, counts of parameters and operations
    na_keras.torch_weights  weights from PyTorch, and back
    na_keras.pretrained     trained weights to start from: files, downloads
    na_keras.networks       networks by name or file, for programs
    na_keras.data           sources, pixels and batches (TensorFlow)
    na_keras.deploy         deploy form, SavedModel, TFLite and ONNX files (TensorFlow)

Importing this package needs keras and numpy only, and registers every layer and optimizer: a saved model loads with it
alone. What is built on TensorFlow (`na_keras.data`, `na_keras.preprocessing`, `na_keras.deploy`) is imported by name.
"""

from na_keras.graph.complexity import count_macs, count_parameters, paper_flops
from na_keras.graph.grad_cam import grad_cam
from na_keras.graph.insertion import insert_attention
from na_keras.layers import (
    ATTENTION,
    CBAM,
    EfficientChannelAttention,
    GatherExcite,
    GlobalContext,
    LinearContextTransform,
    NonLocal,
    NormalizationAttention,
    SelectiveKernel,
    SimAM,
    SpatialGroupEnhance,
    SqueezeExcite,
    StyleRecalibration,
    get_attention,
)
from na_keras.models import (
    MobileNetV2,
    NAMobileNetV2,
    NAResNet50,
    ResNet18,
    ResNet34,
    ResNet50,
    ResNet101,
    ResNet152,
    decode_predictions,
    preprocess_input,
)
from na_keras.optimizers import TimmLamb, TorchSGD
from na_keras.torch_weights import load_torch_weights, to_torch_state_dict

__version__ = "0.2.0"

__all__ = [
    "ATTENTION",
    "CBAM",
    "EfficientChannelAttention",
    "GatherExcite",
    "GlobalContext",
    "LinearContextTransform",
    "MobileNetV2",
    "NAMobileNetV2",
    "NAResNet50",
    "NonLocal",
    "NormalizationAttention",
    "ResNet101",
    "ResNet152",
    "ResNet18",
    "ResNet34",
    "ResNet50",
    "SelectiveKernel",
    "SimAM",
    "SpatialGroupEnhance",
    "SqueezeExcite",
    "StyleRecalibration",
    "TimmLamb",
    "TorchSGD",
    "count_macs",
    "count_parameters",
    "decode_predictions",
    "get_attention",
    "grad_cam",
    "insert_attention",
    "load_torch_weights",
    "paper_flops",
    "preprocess_input",
    "to_torch_state_dict",
]
