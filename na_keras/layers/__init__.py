"""The attention layers, and the names by which networks, recipes and command lines ask for them."""

from functools import partial

import keras

from na_keras.layers.normalization_attention import NormalizationAttention

# name -> factory, called once per block as factory(name=...). Names are public: saved recipes hold them.
ATTENTION = {
    "na": NormalizationAttention,
    "na_paper": partial(NormalizationAttention, similarity="l1", unbiased=False, epsilon_inside_sqrt=True),
    "na_embedding": partial(NormalizationAttention, embedding_kernel_size=3),  # Table 2
    "na_mean": partial(NormalizationAttention, similarity=None),  # Table 3
}


def get_attention(identifier):
    """Resolves what a network's `attention=` takes into a layer factory.

    Args:
        identifier: None, a name in `ATTENTION`, or a callable that takes `name=` and returns a layer (a layer
            class, `functools.partial` of one, or a function).

    Returns:
        None, or the factory.

    Raises:
        ValueError: an unknown name (the message lists the known ones) or something not callable.
    """
    if isinstance(identifier, str) and identifier in ATTENTION:
        return ATTENTION[identifier]
    if identifier is None or callable(identifier) and not isinstance(identifier, keras.layers.Layer):
        return identifier
    raise ValueError(
        f"attention must be None, one of {sorted(ATTENTION)}, or a callable that takes name= and returns a "
        f"layer (called once per block: a class or a function, not a layer). Received: {identifier!r}"
    )
