"""Model Garden's configurations of Table 4's detectors, and the names under which it knows them.

retinanet_att_resnet50_coco, cascade_rcnn_att_resnet50_coco     experiments, for `exp_factory.get_exp_config`
att_resnet                                                      backbone
"""

import dataclasses

from official.modeling import hyperparams
from official.vision.configs import backbones, maskrcnn, retinanet
from official.vision.modeling.backbones import factory

from na_keras.detection.detectors import COCO_CLASSES
from na_keras.detection.model_garden import networks


@dataclasses.dataclass
class AttentionResNet(hyperparams.Config):
    """The backbone: ResNet with attention.

    Attributes:
        model_id: 18, 34, 50, 101 or 152.
        attention: None or a name in attention_layers.ATTENTION.
        frozen_stages: 1: stem and first stage keep their weights, as in mmdetection; 0: none.
        fixed_batch_norm: batch norm keeps its statistics in training, as mmdetection's `norm_eval`.
    """

    model_id: int = 50
    attention: str | None = "na"
    frozen_stages: int = 1
    fixed_batch_norm: bool = True


@dataclasses.dataclass
class Backbone(backbones.Backbone):
    """Model Garden's choice of backbones and ours."""

    att_resnet: AttentionResNet = dataclasses.field(default_factory=AttentionResNet)


def attention_backbone(**options):
    """The configuration of our backbone."""
    return Backbone(type="att_resnet", att_resnet=AttentionResNet(**options))


@factory.register_backbone_builder("att_resnet")
def build_backbone(input_specs, backbone_config, norm_activation_config, l2_regularizer=None):
    """For Model Garden's own detectors, whose pyramid and heads have batch norm."""
    options = backbone_config.get()
    layers = networks.RegularizedLayers(l2_regularizer, options.fixed_batch_norm)
    shape = tuple(input_specs.shape[1:])
    return networks.backbone(shape, options.attention, options.model_id, options.frozen_stages, layers)


def retinanet_model(input_size, classes=COCO_CLASSES, **backbone):
    """RetinaNet. `input_size`: (height, width), multiples of 128; `backbone`: fields of AttentionResNet."""
    return retinanet.RetinaNet(
        num_classes=classes,  # sigmoids: no background
        input_size=[*input_size, 3],
        min_level=3,
        max_level=7,
        anchor=retinanet.Anchor(num_scales=3, aspect_ratios=[0.5, 1.0, 2.0], anchor_size=4.0),
        backbone=attention_backbone(**backbone),
    )


def cascade_rcnn_model(input_size, classes=COCO_CLASSES, **backbone):
    """Cascade R-CNN. `input_size`: (height, width), multiples of 64; `backbone`: fields of AttentionResNet."""
    return maskrcnn.MaskRCNN(
        num_classes=classes + 1,  # a softmax: the background is class 0
        input_size=[*input_size, 3],
        min_level=2,
        max_level=6,
        anchor=maskrcnn.Anchor(num_scales=1, aspect_ratios=[0.5, 1.0, 2.0], anchor_size=8.0),
        backbone=attention_backbone(**backbone),
        include_mask=False,
        mask_head=None,
        mask_sampler=None,
        mask_roi_aligner=None,
        roi_sampler=maskrcnn.ROISampler(foreground_iou_threshold=0.5, cascade_iou_thresholds=[0.6, 0.7]),
        detection_head=maskrcnn.DetectionHead(
            num_convs=0, num_fcs=2, fc_dims=1024, class_agnostic_bbox_pred=True, cascade_class_ensemble=True
        ),
    )
