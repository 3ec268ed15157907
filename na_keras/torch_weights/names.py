"""What the weights of this library's networks are called in PyTorch, and how they lie there.

Sources: torchvision for ResNet (models/resnet.py) and MobileNetV2 (models/mobilenetv2.py); 13952522076/NANet for `na`;
implus/PytorchInsight, classification/models/imagenet, for `se`, `cbam`, `sge` and SK; BangguWu/ECANet, models, for
`eca`; xvjiarui/GCNet for what is inside `gc`. The embeddings in `na` are `conv1`, of the key, and `conv2`, of the
query, as in NANet's models/resnet/resnet_na5.py (each a Sequential of convolution, ReLU, convolution); files of version
0.1.0 have `key` and `query`. Names of our own, where we know of no published ones: `ge` (with `gather`, a Sequential of
convolutions and batch norms in turn). In MobileNetV2 every module is called as in ResNet, beside `conv`, as NANet's is.

A batch norm's `num_batches_tracked` has no counterpart in Keras, and no effect.
"""

import re
from collections import namedtuple

import keras

from na_keras import layers as attention_layers

# layout: (Keras' shape -> the same numbers with PyTorch's rank, PyTorch's order of those axes)
LAYOUTS = {
    "vector": (lambda shape: shape, (0,)),
    "linear": (lambda shape: shape, (1, 0)),  # (inputs, outputs) -> (outputs, inputs)
    "convolution": (lambda shape: shape, (3, 2, 0, 1)),  # (k, k, in / groups, out) -> (out, in / groups, k, k)
    "depthwise": (lambda shape: shape, (2, 3, 0, 1)),  # (k, k, channels, 1) -> (channels, 1, k, k)
    "pointwise": (lambda shape: (1, 1, *shape), (3, 2, 0, 1)),  # (inputs, outputs) -> (outputs, inputs, 1, 1)
    "map": (lambda shape: (1, *shape, 1, 1), (0, 1, 2, 3)),  # (c,) -> (1, c, 1, 1)
    "image": (lambda shape: (*shape, 1, 1), (0, 1, 2)),  # (c,) -> (c, 1, 1)
    "sequence": (lambda shape: shape, (2, 1, 0)),  # (k, in, out) -> (out, in, k)
}


def pair(ours, theirs, layout="linear"):
    """Kernel and bias of a layer within an attention layer."""
    return {f"{ours}/kernel": (f"{theirs}.weight", layout), f"{ours}/bias": (f"{theirs}.bias", "vector")}


def batch_norm(ours, theirs):
    """Of a batch norm within an attention layer; or one by itself, with no names."""
    ours, theirs = (f"{ours}/", f"{theirs}.") if ours else ("", "")
    names = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}
    return {f"{ours}{name}": (f"{theirs}{torch_name}", "vector") for name, torch_name in names.items()}


# class -> {weight's path within the layer: (PyTorch's name within the module, layout, other names that are read)}
PLAIN_WEIGHTS = {
    keras.layers.Conv2D: {"kernel": ("weight", "convolution"), "bias": ("bias", "vector")},
    keras.layers.DepthwiseConv2D: {"kernel": ("weight", "depthwise"), "bias": ("bias", "vector")},
    keras.layers.Dense: {"kernel": ("weight", "linear"), "bias": ("bias", "vector")},
    keras.layers.BatchNormalization: batch_norm("", ""),
}
# class -> (what a block may call the module; the first is what we write; "" for no module of its own, weights as above)
ATTENTION_WEIGHTS = {
    attention_layers.NormalizationAttention: (
        ("na",),
        {
            **{"gamma": ("weight2", "vector"), "beta": ("bias2", "vector")},
            **{
                f"{role}_{order}_{ours}": (
                    f"{module}.{2 * order - 2}.{theirs}",
                    layout,
                    f"{role}.{2 * order - 2}.{theirs}",  # in files of version 0.1.0
                )
                for role, module in (("key", "conv1"), ("query", "conv2"))
                for order in (1, 2)
                for ours, theirs, layout in (("kernel", "weight", "convolution"), ("bias", "bias", "vector"))
            },
        },
    ),
    attention_layers.SqueezeExcite: (("se",), {**pair("squeeze", "fc.0"), **pair("excite", "fc.2")}),
    attention_layers.EfficientChannelAttention: (("eca",), {"kernel": ("conv.weight", "sequence")}),
    attention_layers.CBAM: (
        ("cbam",),
        {
            **pair("squeeze", "ChannelGate.mlp.1"),
            **pair("excite", "ChannelGate.mlp.3"),
            "spatial_conv/kernel": ("SpatialGate.spatial.conv.weight", "convolution"),
            **batch_norm("spatial_bn", "SpatialGate.spatial.bn"),
        },
    ),
    attention_layers.GatherExcite: (
        ("ge",),
        {
            key: value
            for order in range(1, 9)  # extents up to 256
            for key, value in {
                f"gather_{order}_depthwise/kernel": (f"gather.{2 * order - 2}.weight", "depthwise"),
                **batch_norm(f"gather_{order}_bn", f"gather.{2 * order - 1}"),
            }.items()
        },
    ),
    attention_layers.GlobalContext: (
        ("gc", "context_block"),  # the second: mmdetection's, into which GCNet went
        {
            "mask_kernel": ("conv_mask.weight", "map"),
            "mask_bias": ("conv_mask.bias", "vector"),
            **pair("squeeze", "channel_add_conv.0", "pointwise"),
            "norm/gamma": ("channel_add_conv.1.weight", "image"),
            "norm/beta": ("channel_add_conv.1.bias", "image"),
            **pair("excite", "channel_add_conv.3", "pointwise"),
        },
    ),
    attention_layers.SpatialGroupEnhance: (("sge",), {"gamma": ("weight", "map"), "beta": ("bias", "map")}),
    attention_layers.SelectiveKernel: (
        ("",),
        {
            "branch_1_conv/kernel": ("conv2.weight", "convolution"),
            **batch_norm("branch_1_bn", "bn2"),
            "branch_2_conv/kernel": ("conv2g.weight", "convolution"),
            **batch_norm("branch_2_bn", "bn2g"),
            "squeeze/kernel": ("conv_fc1.weight", "pointwise"),
            **batch_norm("squeeze_bn", "bn_fc1"),
            "excite/kernel": ("conv_fc2.weight", "pointwise"),
        },
    ),
}

TRUNK_OF_ATTENTION = ("conv2.", "bn2.")  # SK's first branch is the convolution of a network without attention

# Our layer's name, as a regular expression -> PyTorch's module; a lambda takes the numbers in our name. A bottleneck's
# or basic block's number counts from 1 here and from 0 there, ResNet's stages from conv2 and layer1, MobileNetV2's
# blocks from 0 here (expanded_conv) and, with the stem before them, from 1 there.
RESNET = {
    r"conv1_conv": lambda: "conv1",
    r"conv1_bn": lambda: "bn1",
    r"conv(\d)_block(\d+)_0_conv": lambda stage, block: f"layer{stage - 1}.{block - 1}.downsample.0",
    r"conv(\d)_block(\d+)_0_bn": lambda stage, block: f"layer{stage - 1}.{block - 1}.downsample.1",
    r"conv(\d)_block(\d+)_(\d)_conv": lambda stage, block, order: f"layer{stage - 1}.{block - 1}.conv{order}",
    r"conv(\d)_block(\d+)_(\d)_bn": lambda stage, block, order: f"layer{stage - 1}.{block - 1}.bn{order}",
    r"conv(\d)_block(\d+)_attention": lambda stage, block: f"layer{stage - 1}.{block - 1}",
    r"predictions": lambda: "fc",
}
MOBILENET_V2 = {
    r"Conv1": lambda: "features.0.0",
    r"bn_Conv1": lambda: "features.0.1",
    r"expanded_conv_depthwise": lambda: "features.1.conv.0.0",
    r"expanded_conv_depthwise_BN": lambda: "features.1.conv.0.1",
    r"expanded_conv_project": lambda: "features.1.conv.1",
    r"expanded_conv_project_BN": lambda: "features.1.conv.2",
    r"expanded_conv_attention": lambda: "features.1",
    r"block_(\d+)_expand": lambda block: f"features.{block + 1}.conv.0.0",
    r"block_(\d+)_expand_BN": lambda block: f"features.{block + 1}.conv.0.1",
    r"block_(\d+)_depthwise": lambda block: f"features.{block + 1}.conv.1.0",
    r"block_(\d+)_depthwise_BN": lambda block: f"features.{block + 1}.conv.1.1",
    r"block_(\d+)_project": lambda block: f"features.{block + 1}.conv.2",
    r"block_(\d+)_project_BN": lambda block: f"features.{block + 1}.conv.3",
    r"block_(\d+)_attention": lambda block: f"features.{block + 1}",
    r"Conv_1": lambda: "features.18.0",
    r"Conv_1_bn": lambda: "features.18.1",
    r"predictions": lambda: "classifier.1",
}
FAMILIES = {"conv1_conv": RESNET, "Conv1": MOBILENET_V2}  # by a layer that each has

# What timm calls the layers of MobileNetV2 (mobilenetv2_100) -> torchvision's name, within a block and outside
TIMM_REPEATS = (1, 2, 3, 4, 3, 3, 1)  # blocks of a stage: timm's blocks.STAGE.INDEX
TIMM_FIRST_BLOCK = {"conv_dw": "conv.0.0", "bn1": "conv.0.1", "conv_pw": "conv.1", "bn2": "conv.2"}
TIMM_BLOCK = {"conv_pw": "conv.0.0", "bn1": "conv.0.1", "conv_dw": "conv.1.0", "bn2": "conv.1.1"}
TIMM_BLOCK |= {"conv_pwl": "conv.2", "bn3": "conv.3"}
TIMM_ENDS = {"conv_stem": "features.0.0", "bn1": "features.0.1", "conv_head": "features.18.0", "bn2": "features.18.1"}
TIMM_ENDS |= {"classifier": "classifier.1"}

# layer: its name; variable: Keras'; names: what PyTorch may call it, the first is what we write; layout: in LAYOUTS;
# of_attention: whether a network without attention has no such weight
NamedWeight = namedtuple("NamedWeight", "layer variable names layout of_attention")


def torchvision_name(name):
    """The name in torchvision's MobileNetV2 of a weight in timm's; any other name as it is."""
    module, _, weight = name.rpartition(".")
    if module in TIMM_ENDS:
        return f"{TIMM_ENDS[module]}.{weight}"
    if match := re.fullmatch(r"blocks\.([0-6])\.(\d)\.(\w+)", module):
        stage, index = int(match[1]), int(match[2])
        table = TIMM_BLOCK if stage else TIMM_FIRST_BLOCK
        if match[3] in table and index < TIMM_REPEATS[stage]:
            return f"features.{1 + sum(TIMM_REPEATS[:stage]) + index}.{table[match[3]]}.{weight}"
    return name


def without_timm_names(state):
    """A state dict of timm's resnet50, seresnet50 or mobilenetv2_100 under torchvision's and PytorchInsight's names.

    timm calls every module `se`: squeeze-and-excitation has 1x1 convolutions, `se.fc1` and `se.fc2`, in the place of
    linear layers, and ECA `se.conv`.
    """
    if "conv_stem.weight" in state:
        state = {torchvision_name(name): value for name, value in state.items()}
    renamed = {}
    for name, value in state.items():
        match = re.fullmatch(r"(.*\.se)\.fc([12])\.(weight|bias)", name)
        if match and match[3] == "weight" and tuple(value.shape[2:]) == (1, 1):
            value = value[:, :, 0, 0]
        eca = re.sub(r"\.se\.conv\.weight$", ".eca.conv.weight", name)
        renamed[f"{match[1]}.fc.{2 * int(match[2]) - 2}.{match[3]}" if match else eca] = value
    return renamed


def torch_shape(shape, layout):
    """PyTorch's shape of a weight with this shape in Keras."""
    expand, axes = LAYOUTS[layout]
    return tuple(expand(tuple(shape))[axis] for axis in axes)


def to_torch(array, layout):
    """Keras' array as PyTorch has it."""
    expand, axes = LAYOUTS[layout]
    return array.reshape(expand(array.shape)).transpose(axes)


def to_keras(array, shape, layout):
    """PyTorch's array as Keras has it; `shape` is the one in Keras."""
    _, axes = LAYOUTS[layout]
    return array.transpose([axes.index(axis) for axis in range(len(axes))]).reshape(shape)


def layer_weights(layer, module):
    """The `NamedWeight`s of a layer, which is or stands in PyTorch's `module`.

    Raises:
        ValueError: a layer, or a weight in it, for which we know no name in PyTorch.
    """
    prefixes, known = (f"{module}.",), PLAIN_WEIGHTS.get(type(layer), {})
    if type(layer) in ATTENTION_WEIGHTS:
        aliases, known = ATTENTION_WEIGHTS[type(layer)]
        prefixes = tuple(f"{module}.{alias}." if alias else f"{module}." for alias in aliases)
    for variable in layer.weights:
        path = variable.path.rpartition(f"{layer.name}/")[2]
        if path not in known:
            raise ValueError(
                f"No PyTorch name is known for {path!r} in the layer {layer.name!r}, a {type(layer).__name__}. Known "
                f"attention layers: {', '.join(sorted(kind.__name__ for kind in ATTENTION_WEIGHTS))}"
            )
        name, layout, *others = known[path]
        names = tuple(prefix + name for name in (name, *others) for prefix in prefixes)
        of_attention = type(layer) in ATTENTION_WEIGHTS and not (
            prefixes == (f"{module}.",) and name.startswith(TRUNK_OF_ATTENTION)
        )
        yield NamedWeight(layer.name, variable, names, layout, of_attention)


def named_weights(model):
    """All weights of a network of this library with their names in PyTorch.

    Args:
        model: from a builder of this library, with or without the top.

    Returns:
        (list of `NamedWeight`, PyTorch's name of the classifier: "fc" or "classifier.1").

    Raises:
        ValueError: another model, or a layer with weights for which we know no name in PyTorch.
    """
    names = {layer.name for layer in getattr(model, "layers", ())}
    family = next((table for layer, table in FAMILIES.items() if layer in names), None)
    if family is None:
        raise ValueError(
            "Expected a ResNet or MobileNetV2 built by this library; of a model around one, give the inner one. "
            f"Received: {getattr(model, 'name', model)!r}"
        )
    result = []
    for layer in model.layers:
        if not layer.weights:
            continue
        for pattern, module in family.items():
            if match := re.fullmatch(pattern, layer.name):
                result += layer_weights(layer, module(*map(int, match.groups())))
                break
        else:
            raise ValueError(f"No PyTorch name is known for the layer {layer.name!r}, a {type(layer).__name__}.")
    return result, family["predictions"]()
