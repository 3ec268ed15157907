"""The network as it ships: computing in float32, whatever it was trained in.

A mixed-precision graph does not convert to TFLite's builtin operations, and on a CPU it is slower, not faster.
"""


def with_float32(config):
    """A copy of a Keras configuration in which every dtype and dtype policy of floating type is float32."""
    if isinstance(config, dict):
        config = {key: with_float32(value) for key, value in config.items()}
        if config.get("class_name") == "DTypePolicy":
            config["config"] = {**config["config"], "name": "float32"}
        if config.get("dtype") in ("float16", "bfloat16", "mixed_float16", "mixed_bfloat16"):
            config["dtype"] = "float32"
        return config
    if isinstance(config, list | tuple):
        return type(config)(with_float32(value) for value in config)
    return config


def float32_copy(model):
    """The same network with the same weights, built to compute in float32."""
    copy = type(model).from_config(with_float32(model.get_config()))
    copy.set_weights(model.get_weights())
    return copy
