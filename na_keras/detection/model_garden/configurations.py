"""Model Garden's configurations of Table 4's detectors, and the names under which it knows them.

retinanet_att_resnet50_coco, cascade_rcnn_att_resnet50_coco     experiments, for `exp_factory.get_exp_config`
att_resnet                                                      backbone
"""

import dataclasses

from official.core import config_definitions, exp_factory
from official.modeling import hyperparams, optimization
from official.vision.configs import backbones, decoders, maskrcnn, retinanet
from official.vision.modeling.backbones import factory

from na_keras.detection import coco
from na_keras.detection.detectors import COCO_CLASSES, PYRAMID_FILTERS
from na_keras.detection.heads import UNITS
from na_keras.detection.model_garden import images, networks, tasks
from na_keras.detection.schedule import COCO_TRAINING_IMAGES, LEARNING_RATES, MMDETECTION, PAPER


@dataclasses.dataclass
class AttentionResNet(hyperparams.Config):
    """The backbone: ResNet with attention.

    Attributes:
        model_id: 18, 34, 50, 101 or 152.
        attention: None or a name in attention_layers.ATTENTION.
        attention_stages: numbers of the stages that have it, of 2 to 5.
        frozen_stages: 1: stem and first stage keep their weights, as in mmdetection; 0: none.
        fixed_batch_norm: batch norm keeps its statistics in training, as mmdetection's `norm_eval`.
    """

    model_id: int = 50
    attention: str | None = "na"
    attention_stages: tuple[int, ...] = (2, 3, 4, 5)
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
    return networks.backbone(tuple(input_specs.shape[1:]), options, layers)


def retinanet_model(
    input_size, classes=COCO_CLASSES, *, filters=PYRAMID_FILTERS, coarsest_level=7, anchor_size=4.0, **backbone
):
    """RetinaNet.

    Args:
        input_size: (height, width), multiples of 2**coarsest_level.
        classes: how many, without a background.
        filters: of the pyramid and the head.
        coarsest_level: of the pyramid, which begins at level 3.
        anchor_size: side of a level's smallest anchors in strides of the level: 4 is 32 pixels at level 3.
        **backbone: fields of AttentionResNet.
    """
    return retinanet.RetinaNet(
        num_classes=classes,  # sigmoids: no background
        input_size=[*input_size, 3],
        min_level=3,
        max_level=coarsest_level,
        anchor=retinanet.Anchor(num_scales=3, aspect_ratios=[0.5, 1.0, 2.0], anchor_size=anchor_size),
        backbone=attention_backbone(**backbone),
        decoder=decoders.Decoder(type="fpn", fpn=decoders.FPN(num_filters=filters)),
        head=retinanet.RetinaNetHead(num_filters=filters),
        detection_generator=retinanet.DetectionGenerator(nms_version="batched", pre_nms_top_k=1000),
    )


def cascade_rcnn_model(
    input_size,
    classes=COCO_CLASSES,
    *,
    filters=PYRAMID_FILTERS,
    coarsest_level=6,
    anchor_size=8.0,
    units=UNITS,
    regions=512,
    **backbone,
):
    """Cascade R-CNN.

    Args:
        input_size: (height, width), multiples of 2**coarsest_level.
        classes: how many, without the background.
        filters: of the pyramid and the proposals' head.
        coarsest_level: of the pyramid, which begins at level 2.
        anchor_size: side of a level's anchors in strides of the level: 8 is 32 pixels at level 2.
        units: of the box heads' fully connected layers.
        regions: of an image that the box heads are trained on.
        **backbone: fields of AttentionResNet.
    """
    return maskrcnn.MaskRCNN(
        num_classes=classes + 1,  # a softmax: the background is class 0
        input_size=[*input_size, 3],
        min_level=2,
        max_level=coarsest_level,
        anchor=maskrcnn.Anchor(num_scales=1, aspect_ratios=[0.5, 1.0, 2.0], anchor_size=anchor_size),
        backbone=attention_backbone(**backbone),
        decoder=decoders.Decoder(type="fpn", fpn=decoders.FPN(num_filters=filters)),
        include_mask=False,
        mask_head=None,
        mask_sampler=None,
        mask_roi_aligner=None,
        rpn_head=maskrcnn.RPNHead(num_filters=filters),
        roi_generator=maskrcnn.ROIGenerator(use_batched_nms=True),
        roi_sampler=maskrcnn.ROISampler(
            num_sampled_rois=regions, foreground_iou_threshold=0.5, cascade_iou_thresholds=[0.6, 0.7]
        ),
        detection_head=maskrcnn.DetectionHead(
            num_convs=0, num_fcs=2, fc_dims=units, class_agnostic_bbox_pred=True, cascade_class_ensemble=True
        ),
    )


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
    """Model Garden's numbers, of which the weight decay alone has an effect: see losses.py."""
    return maskrcnn.Losses(l2_weight_decay=weight_decay)


def retinanet_data(**options):
    """RetinaNet's training data; `options` of DataConfig."""
    parser = retinanet.Parser(match_threshold=0.5, unmatched_threshold=0.4)
    return retinanet.DataConfig(is_training=True, dtype="float32", parser=parser, **options)


def cascade_rcnn_data(**options):
    """Cascade R-CNN's training data; `options` of DataConfig."""
    return maskrcnn.DataConfig(is_training=True, dtype="float32", parser=maskrcnn.Parser(), **options)


# Of each detector: task, network, losses and data; the pyramid's coarsest level in the paper.
PARTS = {
    "retinanet": (tasks.RetinaNetTask, retinanet_model, retinanet_losses, retinanet_data, 7),
    "cascade_rcnn": (tasks.CascadeRCNNTask, cascade_rcnn_model, cascade_rcnn_losses, cascade_rcnn_data, 6),
}


def detection_task(
    detector, category_ids, *, size, longer_size, batch_size, weight_decay=0.0, records="", flip=True, **network
):
    """The task of a detector on some data.

    Args:
        detector: "retinanet" or "cascade_rcnn".
        category_ids: of the records' categories, ascending; in the network they are the classes 1, 2, 3 ...
        size: pixels of the images' shorter side.
        longer_size: the most pixels that their longer side has.
        batch_size: images a step, all replicas together.
        weight_decay: of kernels, as PyTorch counts it.
        records: pattern, or list, of the training records.
        flip: mirror every other image.
        **network: of `retinanet_model` or `cascade_rcnn_model`.

    Returns:
        tasks.RetinaNetTask or tasks.CascadeRCNNTask.
    """
    task, model, losses, data, coarsest_level = PARTS[detector]
    network = {"coarsest_level": coarsest_level} | network
    side = images.canvas_side(longer_size, 2 ** network["coarsest_level"])
    read = data(input_path=records, global_batch_size=batch_size)
    read.parser.aug_rand_hflip = flip
    return task(
        model=model((side, side), len(category_ids), **network),
        resize=tasks.Resize(shorter=size, longer=longer_size),
        category_ids=list(category_ids),
        losses=losses(weight_decay),
        train_data=read,
        use_coco_metrics=False,
    )


def trainer(
    steps_per_epoch, epochs, drop_epochs, learning_rate, momentum=0.9, warmup_steps=0, warmup_factor=1.0, clip_norm=None
):
    """Model Garden's configuration of a schedule.

    Args:
        steps_per_epoch, epochs: how long.
        drop_epochs: after each of them the learning rate is divided by 10.
        learning_rate: the highest.
        momentum: of SGD.
        warmup_steps, warmup_factor: at the start the rate rises to the highest in so many steps, from this share of it.
        clip_norm: largest norm of all gradients together, None for any.
    """
    values = [learning_rate / 10**count for count in range(len(drop_epochs) + 1)]
    schedule = {"type": "constant", "constant": {"learning_rate": learning_rate}}
    if drop_epochs:
        # TensorFlow's boundary is the last step, counted from 0, of the rate before.
        boundaries = [epoch * steps_per_epoch - 1 for epoch in drop_epochs]
        schedule = {"type": "stepwise", "stepwise": {"boundaries": boundaries, "values": values}}
    options = {"learning_rate": schedule, "optimizer": {"type": "sgd", "sgd": {"momentum": momentum}}}
    options["optimizer"]["sgd"]["global_clipnorm"] = clip_norm
    if warmup_steps:
        linear = {"warmup_steps": warmup_steps, "warmup_learning_rate": learning_rate * warmup_factor}
        options["warmup"] = {"type": "linear", "linear": linear}
    return config_definitions.TrainerConfig(
        train_steps=epochs * steps_per_epoch,
        steps_per_loop=steps_per_epoch,
        summary_interval=steps_per_epoch,
        checkpoint_interval=steps_per_epoch,
        optimizer_config=optimization.OptimizationConfig(options),
    )


def paper_experiment(detector):
    """The paper's training on COCO of "retinanet" or "cascade_rcnn", with NA."""
    numbers = PAPER | MMDETECTION
    task = detection_task(
        detector,
        coco.COCO_CATEGORY_IDS,
        **{name: numbers[name] for name in ("size", "longer_size", "batch_size", "weight_decay")},
    )
    names = "epochs", "drop_epochs", "momentum", "warmup_steps", "warmup_factor", "clip_norm"
    schedule = {name: numbers[name] for name in names}
    steps = COCO_TRAINING_IMAGES // PAPER["batch_size"]
    return config_definitions.ExperimentConfig(
        task=task, trainer=trainer(steps, learning_rate=LEARNING_RATES[detector], **schedule)
    )


@exp_factory.register_config_factory("retinanet_att_resnet50_coco")
def retinanet_experiment():
    """Table 4's RetinaNet."""
    return paper_experiment("retinanet")


@exp_factory.register_config_factory("cascade_rcnn_att_resnet50_coco")
def cascade_rcnn_experiment():
    """Table 4's Cascade R-CNN."""
    return paper_experiment("cascade_rcnn")
