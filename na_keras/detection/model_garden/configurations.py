"""Model Garden's configurations of Table 4's detectors, and the names under which it knows them.

retinanet_att_resnet50_coco, cascade_rcnn_att_resnet50_coco     experiments, for `exp_factory.get_exp_config`
att_resnet                                                      backbone
"""

import dataclasses

from official.core import config_definitions, exp_factory
from official.modeling import hyperparams, optimization
from official.vision.configs import backbones, maskrcnn, retinanet
from official.vision.modeling.backbones import factory

from na_keras.detection.detectors import COCO_CLASSES
from na_keras.detection.model_garden import images, networks, tasks


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


# Section 5.3 of the paper.
PAPER = {
    "batch_size": 16,  # "with a total of 16 images per mini-batch (that is 2 images per GPU)"
    "epochs": 24,  # "All detection models are trained for 24 epochs"
    "drops": (18, 22),  # "reduced by a factor of 10 at the 18th and 22nd epochs"
    "weight_decay": 1e-4,  # "synchronized SGD with a weight decay of 0.0001
    "momentum": 0.9,  # and a momentum of 0.9"
    "shorter": 800,  # "resized to make the shorter side to be 800 pixels"
}
# "We initialize the learning rate to 0.02 for Cascade R-CNN and 0.01 for RetinaNet"
LEARNING_RATES = {"retinanet": 0.01, "cascade_rcnn": 0.02}
# Where the paper is silent, mmdetection's configs/cascade_rcnn_r50_fpn_1x.py: img_scale=(1333, 800), warmup_iters=500,
# warmup_ratio=1 / 3. Its clipping of gradients at a norm of 35 is left out.
MMDETECTION = {"longer": 1333, "warmup_steps": 500, "warmup_from": 1 / 3}
COCO_TRAINING_IMAGES = 118_287


def retinanet_losses(weight_decay):
    """mmdetection's: focal loss of gamma 2 and alpha .25, smooth L1 of beta .11.

    Smooth L1 is Huber's loss over beta, and tf_keras' Huber takes the mean of a box's four numbers: 4 / .11.
    """
    return tasks.RetinaNetLosses(
        focal_loss_gamma=2.0,
        focal_loss_alpha=0.25,
        huber_loss_delta=0.11,
        box_loss_weight=4 / 0.11,
        l2_weight_decay=weight_decay,
    )


def cascade_rcnn_losses(weight_decay):
    """Model Garden's, which averages over the three heads; mmdetection adds them up with weights 1, .5 and .25.

    The average cannot be told the stages apart: 1.75 gives all three together mmdetection's weight.
    """
    return maskrcnn.Losses(frcnn_class_weight=1.75, frcnn_box_weight=1.75, l2_weight_decay=weight_decay)


def retinanet_task(resize, classes, batch_size, weight_decay, records="", flip=True, **backbone):
    """RetinaNet's task. `records`: pattern of the training records; `backbone`: fields of AttentionResNet."""
    side = images.canvas_side(resize.longer, 2**7)
    parser = retinanet.Parser(aug_rand_hflip=flip, match_threshold=0.5, unmatched_threshold=0.4)
    data = retinanet.DataConfig(
        input_path=records, is_training=True, global_batch_size=batch_size, dtype="float32", parser=parser
    )
    model = retinanet_model((side, side), classes, **backbone)
    model.detection_generator.nms_version, model.detection_generator.pre_nms_top_k = "batched", 1000
    return tasks.RetinaNetTask(
        model=model, resize=resize, losses=retinanet_losses(weight_decay), train_data=data, use_coco_metrics=False
    )


def cascade_rcnn_task(resize, classes, batch_size, weight_decay, records="", flip=True, **backbone):
    """Cascade R-CNN's task; arguments as of `retinanet_task`."""
    side = images.canvas_side(resize.longer, 2**6)
    parser = maskrcnn.Parser(aug_rand_hflip=flip)
    data = maskrcnn.DataConfig(
        input_path=records, is_training=True, global_batch_size=batch_size, dtype="float32", parser=parser
    )
    model = cascade_rcnn_model((side, side), classes, **backbone)
    model.roi_generator.use_batched_nms = True
    return tasks.CascadeRCNNTask(
        model=model, resize=resize, losses=cascade_rcnn_losses(weight_decay), train_data=data, use_coco_metrics=False
    )


TASKS = {"retinanet": retinanet_task, "cascade_rcnn": cascade_rcnn_task}


def trainer(steps_per_epoch, epochs, drops, learning_rate, momentum=0.9, warmup_steps=500, warmup_from=1 / 3):
    """Model Garden's configuration of a schedule: SGD, the rate divided by 10 at the epochs `drops`."""
    values = [learning_rate / 10**count for count in range(len(drops) + 1)]
    warmup = {"warmup_steps": warmup_steps, "warmup_learning_rate": learning_rate * warmup_from}
    schedule = {"type": "stepwise", "stepwise": {"boundaries": [e * steps_per_epoch for e in drops], "values": values}}
    if not drops:
        schedule = {"type": "constant", "constant": {"learning_rate": learning_rate}}
    return config_definitions.TrainerConfig(
        train_steps=epochs * steps_per_epoch,
        steps_per_loop=steps_per_epoch,
        summary_interval=steps_per_epoch,
        checkpoint_interval=steps_per_epoch,
        optimizer_config=optimization.OptimizationConfig(
            {
                "optimizer": {"type": "sgd", "sgd": {"momentum": momentum}},
                "learning_rate": schedule,
                "warmup": {"type": "linear", "linear": warmup},
            }
        ),
    )


def paper_experiment(detector):
    """The paper's training on COCO of "retinanet" or "cascade_rcnn", with NA."""
    resize = tasks.Resize(shorter=PAPER["shorter"], longer=MMDETECTION["longer"])
    task = TASKS[detector](resize, COCO_CLASSES, PAPER["batch_size"], PAPER["weight_decay"])
    warmup = {name: MMDETECTION[name] for name in ("warmup_steps", "warmup_from")}
    schedule = {name: PAPER[name] for name in ("epochs", "drops", "momentum")}
    steps = COCO_TRAINING_IMAGES // PAPER["batch_size"]
    return config_definitions.ExperimentConfig(
        task=task, trainer=trainer(steps, learning_rate=LEARNING_RATES[detector], **schedule, **warmup)
    )


@exp_factory.register_config_factory("retinanet_att_resnet50_coco")
def retinanet_experiment():
    """Table 4's RetinaNet."""
    return paper_experiment("retinanet")


@exp_factory.register_config_factory("cascade_rcnn_att_resnet50_coco")
def cascade_rcnn_experiment():
    """Table 4's Cascade R-CNN."""
    return paper_experiment("cascade_rcnn")
