"""The attention layers, and the names by which networks, recipes and command lines ask for them."""

from na_keras.layers.cbam import CBAM
from na_keras.layers.efficient_channel_attention import EfficientChannelAttention
from na_keras.layers.gather_excite import GatherExcite
from na_keras.layers.global_context import GlobalContext
from na_keras.layers.linear_context_transform import LinearContextTransform
from na_keras.layers.non_local import NonLocal
from na_keras.layers.normalization_attention import NormalizationAttention
from na_keras.layers.registry import ATTENTION, get_attention, property_of
from na_keras.layers.selective_kernel import SelectiveKernel
from na_keras.layers.simam import SimAM
from na_keras.layers.spatial_group_enhance import SpatialGroupEnhance
from na_keras.layers.squeeze_excite import SqueezeExcite
from na_keras.layers.style_recalibration import StyleRecalibration

__all__ = [
    "ATTENTION",
    "CBAM",
    "EfficientChannelAttention",
    "GatherExcite",
    "GlobalContext",
    "LinearContextTransform",
    "NonLocal",
    "NormalizationAttention",
    "SelectiveKernel",
    "SimAM",
    "SpatialGroupEnhance",
    "SqueezeExcite",
    "StyleRecalibration",
    "get_attention",
    "property_of",
]
