"""mmdetection's losses of Cascade R-CNN (configs/cascade_rcnn_r50_fpn_1x.py), of what Model Garden's model answers.

Model Garden's own differ: they average over the heads instead of weighting them 1, 1/2 and 1/4, divide the boxes'
losses by the positive samples instead of all samples, and the proposals' scores by the number of regions that the box
heads are trained on, which has nothing to do with them (official/vision/tasks/maskrcnn.py, `_build_rpn_losses`).
"""

import tensorflow as tf

STAGE_WEIGHTS = (1.0, 0.5, 0.25)
PROPOSAL_BETA, REGION_BETA = 1 / 9, 1.0  # of smooth L1


def smooth_l1(difference, beta):
    """Smooth L1 of each number."""
    size = tf.abs(difference)
    return tf.where(size < beta, 0.5 * size**2 / beta, size - 0.5 * beta)


def proposal_losses(scores, boxes, score_targets, box_targets):
    """The proposals' two losses: binary cross-entropy, and smooth L1 of positive anchors; both over all sampled ones.

    Args:
        scores: {level: logits (b, h, w, a)}.
        boxes: {level: (b, h, w, 4 * a)}.
        score_targets: {level: (b, h, w, a)}: 1, 0, or -1 for anchors that are not sampled.
        box_targets: {level: (b, h, w, 4 * a)}.

    Returns:
        (scalar, scalar), float32.
    """
    flat = lambda maps, numbers: tf.concat([tf.reshape(maps[level], (-1, *numbers)) for level in scores], axis=0)  # noqa: E731
    targets, logits = flat(score_targets, ()), flat(scores, ())
    sampled = tf.cast(targets >= 0, tf.float32)
    positive = tf.cast(targets > 0, tf.float32)
    count = tf.maximum(tf.reduce_sum(sampled), 1.0)
    entropies = tf.nn.sigmoid_cross_entropy_with_logits(positive, logits) * sampled
    distances = smooth_l1(flat(boxes, (4,)) - flat(box_targets, (4,)), PROPOSAL_BETA) * positive[:, None]
    return tf.reduce_sum(entropies) / count, tf.reduce_sum(distances) / count


def region_losses(logits, boxes, classes, box_targets):
    """A box head's two losses: cross-entropy, and smooth L1 of regions with an object; both over all regions.

    Args:
        logits: (b, n, classes + 1), the background first.
        boxes: (b, n, 4).
        classes: (b, n), 0 the background.
        box_targets: (b, n, 4).

    Returns:
        (scalar, scalar), float32.
    """
    classes = tf.cast(classes, tf.int32)
    entropies = tf.nn.sparse_softmax_cross_entropy_with_logits(classes, logits)
    distances = smooth_l1(boxes - box_targets, REGION_BETA) * tf.cast(classes > 0, tf.float32)[..., None]
    return tf.reduce_mean(entropies), tf.reduce_sum(distances) / tf.cast(tf.size(classes), tf.float32)


def cascade_rcnn_losses(outputs, labels):
    """The four losses by the names that Model Garden's metrics have; those of the heads are weighted sums.

    Args:
        outputs: of Model Garden's model in training.
        labels: of its parser.
    """
    proposals = proposal_losses(
        outputs["rpn_scores"], outputs["rpn_boxes"], labels["rpn_score_targets"], labels["rpn_box_targets"]
    )
    names = "class_outputs", "box_outputs", "class_targets", "box_targets"
    stages = [
        region_losses(*(outputs[f"{name}_{stage}" if stage else name] for name in names))
        for stage in range(len(STAGE_WEIGHTS))
    ]
    heads = [
        tf.add_n([weight * loss for weight, loss in zip(STAGE_WEIGHTS, losses, strict=True)])
        for losses in zip(*stages, strict=True)
    ]
    values = dict(
        zip(("rpn_score_loss", "rpn_box_loss", "frcnn_cls_loss", "frcnn_box_loss"), (*proposals, *heads), strict=True)
    )
    return {name: tf.cast(value, tf.float32) for name, value in values.items()}
