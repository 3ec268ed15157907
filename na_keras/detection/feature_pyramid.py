"""The feature pyramid (Lin et al., arXiv 1612.03144) without batch norm, as mmdetection's FPN has it.

    lateral_l = 1x1 convolution of C_l
    merged_l  = lateral_l + merged_(l+1) enlarged twofold by repetition            (from the top down)
    P_l       = 3x3 convolution of merged_l

Above the backbone's last level there are further ones, each of half the size:

    "convolution"    RetinaNet: P6 = 3x3 convolution with stride 2 of C5, P7 of P6
    "pooling"        R-CNN: P6 = every other position of P5

Padding is symmetric. Source: mmdetection, mmdet/models/necks/fpn.py with `add_extra_convs` and `extra_convs_on_inputs`,
which was the default when the paper was written: its parameter counts say that P6 is made of C5.
"""

from keras import layers as keras_layers

EXTRA_LEVELS = ("convolution", "pooling")


def enlarge_twofold(x, name, layers):
    """(b, h, w, c) -> (b, 2 h, 2 w, c), each position four times."""
    return layers.UpSampling2D(2, interpolation="nearest", name=name)(x)


def feature_pyramid(features, levels, filters=256, extra="convolution", layers=keras_layers):
    """The pyramid's maps, all with as many channels.

    Args:
        features: {"C2": tensor (b, h, w, c), ..., "C5": tensor}, as `resnet_stages` returns them; level l has stride
            2**l. Sides of levels that are merged must be twice those of the next: image sides that are multiples of 32.
        levels: (lowest, highest).
        filters: channels of every level.
        extra: how levels above C5 are made, see above.
        layers: namespace to take layers from.

    Returns:
        {"P3": tensor, ...}, from the lowest level to the highest.

    Raises:
        ValueError: an unknown `extra`.
    """
    if extra not in EXTRA_LEVELS:
        raise ValueError(f"extra must be one of {EXTRA_LEVELS}. Received: {extra!r}")
    lowest, highest = levels
    top = min(highest, 5)

    def convolution(size, stride, name):
        options = {"kernel_initializer": "glorot_uniform", "name": name}  # mmdetection's xavier_init
        return layers.Conv2D(filters, size, stride, padding="valid" if stride > 1 else "same", **options)

    merged = {
        level: convolution(1, 1, f"fpn_lateral{level}")(features[f"C{level}"]) for level in range(lowest, top + 1)
    }
    for level in range(top - 1, lowest - 1, -1):
        enlarged = enlarge_twofold(merged[level + 1], f"fpn_up{level}", layers)
        merged[level] = layers.Add(name=f"fpn_add{level}")([merged[level], enlarged])
    maps = {f"P{level}": convolution(3, 1, f"fpn_output{level}")(x) for level, x in merged.items()}
    x = features[f"C{top}"] if extra == "convolution" else maps[f"P{top}"]
    for level in range(top + 1, highest + 1):
        if extra == "convolution":
            x = layers.ZeroPadding2D(1, name=f"fpn_pad{level}")(x)
            x = convolution(3, 2, f"fpn_output{level}")(x)
        else:
            x = layers.MaxPooling2D(1, 2, name=f"fpn_pool{level}")(x)
        maps[f"P{level}"] = x
    return maps
