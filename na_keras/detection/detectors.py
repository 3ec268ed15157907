"""The two detectors of Table 4 as networks: what is computed before anchors, sampling and suppression.

    RetinaNet        ResNet50 -> P3 .. P7 (P6 of C5) -> classes and boxes on every level
    Cascade R-CNN    ResNet50 -> P2 .. P6 (pooled)   -> proposals on every level; of each region three box heads in
                     turn, trained for overlaps of .5, .6 and .7

They are what Table 4 counts. mmdetection, with which the paper was made, has 80 outputs for COCO's classes, keeps the
stem and the first stage as pretrained (`frozen_stages=1`) and counts 1000 regions an image.
"""

import keras

from na_keras.detection.feature_pyramid import feature_pyramid
from na_keras.detection.heads import REGION_SIZE, box_head, proposal_head, retinanet_head
from na_keras.layers import get_attention
from na_keras.models.resnet import resnet_stages

COCO_CLASSES = 80
CASCADE_STAGES = (1, 2, 3)
PYRAMID_FILTERS = 256
REGIONS = 1000  # per image, as mmdetection counts them
FROZEN = ("conv1_", "conv2_")  # how the names of the stem's and the first stage's layers begin


def retinanet(image_shape, attention=None, classes=COCO_CLASSES, depth=50):
    """RetinaNet as Keras models: [(model, how often it is computed for an image)]."""
    image = keras.Input(image_shape)
    maps = feature_pyramid(resnet_stages(image, depth, get_attention(attention)), (3, 7), PYRAMID_FILTERS)
    return [(keras.Model(image, retinanet_head(maps, classes), name="retinanet"), 1)]


def cascade_rcnn(image_shape, attention=None, classes=COCO_CLASSES, depth=50):
    """Cascade R-CNN as Keras models: [(model, how often it is computed for an image)], proposals and box heads."""
    image = keras.Input(image_shape)
    maps = feature_pyramid(resnet_stages(image, depth, get_attention(attention)), (2, 6), PYRAMID_FILTERS, "pooling")
    proposals = keras.Model(image, proposal_head(maps), name="proposals")
    regions = keras.Input((REGION_SIZE, REGION_SIZE, PYRAMID_FILTERS))
    boxes = [box_head(regions, classes, stage) for stage in CASCADE_STAGES]
    return [(proposals, 1), (keras.Model(regions, boxes, name="box_heads"), REGIONS)]


DETECTORS = {"retinanet": retinanet, "cascade_rcnn": cascade_rcnn}


def freeze_first_stage(model):
    """Keeps the stem and the first stage as they are, in training too."""
    for layer in model.layers:
        if layer.name.startswith(FROZEN):
            layer.trainable = False
