"""RetinaNet and Cascade R-CNN as Model Garden's models around the library's networks, by its configurations.

What the configurations say of heads, batch norm in heads and the decoder does not hold here: the networks are Table 4's
(na_keras/detection). Their numbers of filters, anchors, classes and thresholds do.
"""

import tf_keras
from official.vision.modeling import maskrcnn_model, retinanet_model
from official.vision.modeling.layers import detection_generator, roi_aligner, roi_generator, roi_sampler

from na_keras.detection.model_garden import networks


class WithoutBackground(detection_generator.MultilevelDetectionGenerator):
    """Model Garden's suppression for logits that have no background class; it leaves out the first class as one."""

    def __call__(self, raw_boxes, raw_scores, anchor_boxes, image_shape, raw_attributes=None):
        """Arguments as of Model Garden's; `raw_scores`: {level: logits (b, h, w, anchors * classes)}."""
        padded = {}
        for level, scores in raw_scores.items():
            _, height, width, numbers = scores.shape
            anchors = raw_boxes[level].shape[-1] // 4
            each = tf_keras.backend.reshape(scores, (-1, height, width, anchors, numbers // anchors))
            with_background = tf_keras.backend.concatenate([each[..., :1], each])
            padded[level] = tf_keras.backend.reshape(with_background, (-1, height, width, numbers + anchors))
        return super().__call__(raw_boxes, padded, anchor_boxes, image_shape, raw_attributes)


def anchors_per_position(config):
    """Of a model's configuration."""
    return len(config.anchor.aspect_ratios) * config.anchor.num_scales


def anchor_options(config):
    """What both of Model Garden's models are told of levels and anchors."""
    return {
        "min_level": config.min_level,
        "max_level": config.max_level,
        "num_scales": config.anchor.num_scales,
        "aspect_ratios": config.anchor.aspect_ratios,
        "anchor_size": config.anchor.anchor_size,
    }


def make_backbone(config, layers):
    """The `att_resnet` of a model's configuration."""
    return networks.backbone(tuple(config.input_size), config.backbone.get(), layers)


def fields(config, *names, **others):
    """{name: value} of some fields of a configuration."""
    return {name: getattr(config, name) for name in names} | others


def retinanet(config, layers):
    """A RetinaNetModel.

    Args:
        config: official.vision.configs.retinanet.RetinaNet with the backbone `att_resnet`; `num_classes` without a
            background.
        layers: networks.RegularizedLayers.
    """
    backbone = make_backbone(config, layers)
    filters, levels = config.decoder.get().num_filters, (config.min_level, config.max_level)
    pyramid = networks.pyramid(backbone.output_specs, levels, filters, "convolution", layers)
    head = networks.RetinaNetHead(
        pyramid.output_specs,
        config.num_classes,
        anchors=anchors_per_position(config),
        filters=config.head.num_filters,
        convolutions=config.head.num_convs,
        layers=layers,
    )
    found = config.detection_generator
    suppression = fields(found, "pre_nms_top_k", "pre_nms_score_threshold", "nms_iou_threshold", "max_num_detections")
    post = found.tflite_post_processing.as_dict() | {"input_image_size": tuple(config.input_size[:2])}
    generator = WithoutBackground(
        **suppression,
        **fields(found, "apply_nms", "nms_version", "use_cpu_nms", "soft_nms_sigma", "box_coder_weights"),
        tflite_post_processing_config=post,
    )
    return retinanet_model.RetinaNetModel(backbone, pyramid, head, generator, **anchor_options(config))


def samplers(config):
    """One ROISampler for each head of the cascade."""
    names = "mix_gt_boxes", "num_sampled_rois", "foreground_fraction", "foreground_iou_threshold"
    first = fields(config, *names, "background_iou_high_threshold", "background_iou_low_threshold")
    made = [roi_sampler.ROISampler(**first)]
    for threshold in config.cascade_iou_thresholds or ():
        limits = {"foreground_iou_threshold": threshold, "background_iou_high_threshold": threshold}
        later = first | limits | {"mix_gt_boxes": False, "background_iou_low_threshold": 0.0, "skip_subsampling": True}
        made.append(roi_sampler.ROISampler(**later))
    return made


def cascade_rcnn(config, layers):
    """A MaskRCNNModel without masks, with a box head for each threshold.

    Args:
        config: official.vision.configs.maskrcnn.MaskRCNN with the backbone `att_resnet`; the first of `num_classes` is
            the background.
        layers: networks.RegularizedLayers.
    """
    backbone = make_backbone(config, layers)
    filters, levels = config.decoder.get().num_filters, (config.min_level, config.max_level)
    pyramid = networks.pyramid(backbone.output_specs, levels, filters, "pooling", layers)
    anchors = {"anchors": anchors_per_position(config), "filters": config.rpn_head.num_filters}
    cascade = samplers(config.roi_sampler)
    units = config.detection_head.fc_dims
    heads = [
        networks.BoxHead(filters, config.num_classes - 1, stage, units=units, layers=layers)
        for stage in range(1, len(cascade) + 1)
    ]
    regions, aligner, found = config.roi_generator, config.roi_aligner, config.detection_generator
    suppression = fields(found, "pre_nms_top_k", "pre_nms_score_threshold", "nms_iou_threshold", "max_num_detections")
    model = maskrcnn_model.MaskRCNNModel(
        backbone=backbone,
        decoder=pyramid,
        rpn_head=networks.ProposalHead(pyramid.output_specs, layers=layers, **anchors),
        detection_head=heads,
        roi_generator=roi_generator.MultilevelROIGenerator(**regions.as_dict()),
        roi_sampler=cascade,
        roi_aligner=roi_aligner.MultilevelROIAligner(**fields(aligner, "crop_size", "sample_offset")),
        detection_generator=detection_generator.DetectionGenerator(
            **suppression, **fields(found, "apply_nms", "nms_version", "use_cpu_nms", "soft_nms_sigma")
        ),
        class_agnostic_bbox_pred=True,
        cascade_class_ensemble=config.detection_head.cascade_class_ensemble,
        **anchor_options(config),
    )
    model(tf_keras.Input(tuple(config.input_size)), image_shape=tf_keras.Input([2]), training=False)
    return model
