"""Initial weights as PyTorch's reference programs draw them; layers and networks both take theirs from here.

Configurations and not objects: any implementation of Keras' layers takes them, tf_keras too, and each layer makes an
initializer with a seed of its own.
"""

# torch.nn.init.kaiming_normal_(mode="fan_out"), which the reference code gives every convolution: normal with variance
# 2 / (k * k * outputs).
KAIMING_NORMAL = {
    "class_name": "VarianceScaling",
    "config": {"scale": 2.0, "mode": "fan_out", "distribution": "untruncated_normal"},
}
# The same by the number of inputs. For depthwise convolutions: PyTorch counts 9 * channels as such a kernel's fan-out;
# in Keras that number is its fan-in.
KAIMING_NORMAL_FAN_IN = {
    "class_name": "VarianceScaling",
    "config": {"scale": 2.0, "mode": "fan_in", "distribution": "untruncated_normal"},
}


def torch_linear(features):
    """torch.nn.Linear's default for weight and bias: uniform within 1 / sqrt(input features)."""
    limit = features**-0.5
    return {"class_name": "RandomUniform", "config": {"minval": -limit, "maxval": limit}}
