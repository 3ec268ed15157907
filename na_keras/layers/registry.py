"""The names by which networks, recipes and command lines ask for attention layers, and what a name makes."""

from functools import partial

import keras

from na_keras.layers.cbam import CBAM
from na_keras.layers.efficient_channel_attention import EfficientChannelAttention
from na_keras.layers.gather_excite import GatherExcite
from na_keras.layers.global_context import GlobalContext
from na_keras.layers.linear_context_transform import LinearContextTransform
from na_keras.layers.non_local import NonLocal
from na_keras.layers.normalization_attention import NormalizationAttention
from na_keras.layers.selective_kernel import SelectiveKernel
from na_keras.layers.simam import SimAM
from na_keras.layers.spatial_group_enhance import SpatialGroupEnhance
from na_keras.layers.squeeze_excite import SqueezeExcite
from na_keras.layers.style_recalibration import StyleRecalibration

# name -> factory, called once per block as factory(name=...). Names are public: saved recipes hold them. The settings
# are those of ResNet50's rows in the paper's tables, and otherwise of the modules' own papers; MobileNetV2's are in
# na_keras/models/mobilenet_v2.py.
ATTENTION = {
    "na": NormalizationAttention,
    "na_paper": partial(NormalizationAttention, similarity="l1", unbiased=False, epsilon_inside_sqrt=True),
    "na_embedding": partial(NormalizationAttention, embedding_kernel_size=3),  # Table 2
    "na_mean": partial(NormalizationAttention, similarity=None),  # Table 3
    "se": SqueezeExcite,  # Table 1, as are ge, sk and cbam
    "ge": GatherExcite,  # parameter-free over the whole map: INFERRED from Table 1's counts, no code is published
    "sk": SelectiveKernel,  # replaces the bottleneck's 3x3 convolution, called as factory(strides=..., name=...)
    "cbam": CBAM,
    "gc": GlobalContext,  # Table 4
    "sge": SpatialGroupEnhance,
    "lct": LinearContextTransform,
    "srm": StyleRecalibration,
    "eca": EfficientChannelAttention,
    "simam": SimAM,
    "non_local": NonLocal,  # in every block: see its docstring for the memory
}


def property_of(factory, name):
    """A class attribute of the layers that a factory makes, or of the function that it is; False if there is none.

    `replaces_convolution` and `has_batch_norm` (see `FeatureMapLayer`) are asked for before there is a layer.
    """
    return getattr(getattr(factory, "func", factory), name, False)


def get_attention(identifier, settings=(), synchronized=False):
    """Resolves what a network's `attention=` takes into a layer factory.

    Args:
        identifier: None, a name in `ATTENTION`, or a callable that takes `name=` and returns a layer (a layer
            class, `functools.partial` of one, or a function).
        settings: {name: factory} of a network, for the names that mean something else there than in `ATTENTION`.
        synchronized: a name's layers take their batch statistics over all replicas, if they have any. A callable
            is left as it is: say `partial(CBAM, synchronized=True)`.

    Returns:
        None, or the factory.

    Raises:
        ValueError: an unknown name (the message lists the known ones) or something not callable.
    """
    if isinstance(identifier, str) and identifier in ATTENTION:
        factory = {**ATTENTION, **dict(settings)}[identifier]
        return (
            partial(factory, synchronized=True) if synchronized and property_of(factory, "has_batch_norm") else factory
        )
    if identifier is None or callable(identifier) and not isinstance(identifier, keras.layers.Layer):
        return identifier
    raise ValueError(
        f"attention must be None, one of {sorted(ATTENTION)}, or a callable that takes name= and returns a "
        f"layer (called once per block: a class or a function, not a layer). Received: {identifier!r}"
    )
