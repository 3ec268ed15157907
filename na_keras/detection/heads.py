"""What a detector asks of its maps: RetinaNet's head, the region proposals of R-CNN, and Cascade R-CNN's box heads.

    RetinaNet    on each level, with shared weights: four 3x3 convolutions with ReLU, then classes and boxes of nine
                 anchors a position (Lin et al., "Focal loss for dense object detection", arXiv 1708.02002, section 4)
    proposals    on each level, with shared weights: one 3x3 convolution with ReLU, then objectness and boxes of three
                 anchors a position (Ren et al., "Faster R-CNN", arXiv 1506.01497, section 3.1)
    box head     of each region's 7 x 7 map: two fully connected layers of 1024 with ReLU, then classes, the background
                 among them, and one box for all classes (Cai and Vasconcelos, "Cascade R-CNN", arXiv 1712.00726,
                 section 4)

No batch norm anywhere, as in mmdetection, where the initial weights come from as well: mmdet/models/ with
anchor_heads/retina_head.py, anchor_heads/rpn_head.py and bbox_heads/convfc_bbox_head.py.
"""

import math

from keras import layers as keras_layers

PRIOR = 0.01  # section 4.1 of the focal loss: what a fresh head takes the probability of an object for
REGION_SIZE = 7  # sides of a region's map
UNITS = 1024


def normal(deviation):
    """The configuration of an initialiser, which every namespace reads: normally distributed around 0."""
    return {"class_name": "RandomNormal", "config": {"mean": 0.0, "stddev": deviation}}


def tower(filters):
    """The initialiser of 3x3 convolutions of so many filters: mmdetection's deviation .01 for 256, and for others what
    gives their outputs the same variance. With .01, four convolutions of 64 filters leave 1/256 of it, and learn late.
    """
    return normal(0.01 * math.sqrt(256 / filters))


def on_every_level(maps, layer):
    """{level: layer(map)}: the same layer, so the same weights."""
    return {level: layer(x) for level, x in maps.items()}


def retinanet_head(maps, classes, anchors=9, filters=256, convolutions=4, layers=keras_layers):
    """RetinaNet's head.

    Args:
        maps: {level: tensor (b, h, w, c)}.
        classes: number of classes; there is no background among them.
        anchors: per position.
        filters, convolutions: of the two towers.
        layers: namespace to take layers from.

    Returns:
        ({level: logits (b, h, w, anchors * classes)}, {level: boxes (b, h, w, anchors * 4)}).
    """
    options = {"padding": "same", "kernel_initializer": tower(filters)}
    prior = {"class_name": "Constant", "config": {"value": -math.log((1 - PRIOR) / PRIOR)}}
    answers = []
    for name, outputs, bias in (("class", classes, prior), ("box", 4, "zeros")):
        x = maps
        for order in range(1, convolutions + 1):
            layer = layers.Conv2D(filters, 3, activation="relu", name=f"retinanet_{name}_conv{order}", **options)
            x = on_every_level(x, layer)
        layer = layers.Conv2D(anchors * outputs, 3, bias_initializer=bias, name=f"retinanet_{name}", **options)
        answers.append(on_every_level(x, layer))
    return tuple(answers)


def proposal_head(maps, anchors=3, filters=256, layers=keras_layers):
    """The head of the region proposal network: ({level: logits (b, h, w, anchors)}, {level: (b, h, w, anchors * 4)}).

    Arguments as of `retinanet_head`.
    """
    initial = {"kernel_initializer": tower(filters)}
    x = on_every_level(maps, layers.Conv2D(filters, 3, padding="same", name="rpn_conv", **initial))
    x = on_every_level(x, layers.ReLU(name="rpn_relu"))
    return tuple(
        on_every_level(x, layers.Conv2D(anchors * outputs, 1, name=f"rpn_{name}", **initial))
        for name, outputs in (("objectness", 1), ("box", 4))
    )


def box_head(regions, classes, stage, units=UNITS, layers=keras_layers):
    """One of the cascade's box heads.

    Args:
        regions: tensor (regions, 7, 7, c).
        classes: number of classes, without the background.
        stage: 1, 2 or 3, for the names.
        units: of the two fully connected layers.
        layers: namespace to take layers from.

    Returns:
        (logits (regions, classes + 1), of which the first is the background; boxes (regions, 4)).
    """
    x = layers.Flatten(name=f"box{stage}_flatten")(regions)
    for order in (1, 2):
        x = layers.Dense(units, "relu", name=f"box{stage}_dense{order}")(x)
    return tuple(
        layers.Dense(outputs, kernel_initializer=normal(deviation), name=f"box{stage}_{name}")(x)
        for name, outputs, deviation in (("class", classes + 1, 0.01), ("box", 4, 0.001))
    )
