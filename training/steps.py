"""One step, compiled: the loss, its gradient on every replica, the update, and the sums that statistics come from.

The loss is the sum of the examples' losses over the GLOBAL batch size, so that gradients added up over replicas are
those of one device on the whole batch.
"""

import keras
import numpy as np
import tensorflow as tf

# What a step and an evaluation add up, over examples.
SUMS = ("loss", "top1", "top5", "examples")
NO_SUMS = np.zeros(len(SUMS), np.float64)


def example_sums(losses, labels, probabilities, weights):
    """The numbers of `SUMS` over a batch: float32 (4,)."""
    # Not tf.math.in_top_k, which counts ties as hits: a collapsed network would have 100 %.
    best = tf.math.top_k(probabilities, min(5, probabilities.shape[-1])).indices
    hits = tf.cast(best == tf.cast(labels, tf.int32)[:, None], tf.float32)  # (examples, 5)
    values = tf.stack([losses, hits[:, 0], tf.reduce_sum(hits, axis=1), tf.ones_like(losses)])
    return tf.reduce_sum(values * weights, axis=1)


def example_losses(labels, probabilities, label_smoothing=0.0):
    """Cross-entropy of each example. Keras keeps the softmax's input with its output and computes from that."""
    targets = tf.one_hot(labels, probabilities.shape[-1])
    return keras.losses.categorical_crossentropy(targets, probabilities, label_smoothing=label_smoothing)


def repeated(strategy, replica_step):
    """The compiled function of the loop: several batches, each dealt to all replicas, in one call.

    run(iterator, count, sums) returns (sums, failed): `sums` plus those of `count` batches, and the first batch of the
    call (0, 1, ...) whose sums were not finite, or -1.

    The running sums (float64) go in and come out, one batch added after the other, so that they do not depend on how
    the batches were grouped into calls.
    """

    @tf.function
    def run(iterator, count, sums):
        failed = -1
        for index in tf.range(count):
            batch = strategy.reduce("SUM", strategy.run(replica_step, args=next(iterator)), axis=None)
            sums += tf.cast(batch, tf.float64)
            failed = tf.where((failed < 0) & ~tf.reduce_all(tf.math.is_finite(batch)), index, failed)
        return sums, failed

    return run


def clipped(gradients, clip_norm):
    """Gradients whose sum over all replicas has at most the norm `clip_norm`, on every replica alike.

    Clipping each replica's own share, as optimizers' `global_clipnorm` does, is another and wrong thing. The result is
    divided by the replicas, because the optimizer adds them up.
    """
    context = tf.distribute.get_replica_context()
    total = context.all_reduce("SUM", gradients)
    total, _ = tf.clip_by_global_norm(total, clip_norm)
    return [gradient / context.num_replicas_in_sync for gradient in total]


def make_train_steps(strategy, model, optimizer, recipe):
    """`repeated` optimizer steps on batches of (images, labels)."""
    weights = [variable.value for variable in model.trainable_variables]

    def gradients_of(images, labels):
        with tf.GradientTape() as tape:
            probabilities = model(images, training=True)
            losses = example_losses(labels, probabilities, recipe.label_smoothing)
            loss = tf.reduce_sum(losses) / recipe.batch_size
            if model.losses:  # regularizers: once per step, however many replicas and slices add up
                loss += tf.add_n(model.losses) / (strategy.num_replicas_in_sync * recipe.accumulate)
        gradients = tape.gradient(loss, weights, unconnected_gradients="zero")
        return gradients, example_sums(losses, labels, probabilities, tf.ones_like(losses))

    def replica_step(images, labels):
        slices = zip(tf.split(images, recipe.accumulate), tf.split(labels, recipe.accumulate), strict=True)
        gradients, sums = gradients_of(*next(slices))
        for part in slices:
            more, more_sums = gradients_of(*part)
            gradients, sums = [a + b for a, b in zip(gradients, more, strict=True)], sums + more_sums
        if recipe.clip_norm is not None:
            gradients = clipped(gradients, recipe.clip_norm)
        optimizer.apply(gradients, model.trainable_variables)  # adds the gradients of all replicas up
        return sums

    return repeated(strategy, replica_step)


def make_evaluate_steps(strategy, model):
    """`repeated` evaluation of batches of (images, labels, weights)."""

    def replica_step(images, labels, weights):
        probabilities = model(images, training=False)
        return example_sums(example_losses(labels, probabilities), labels, probabilities, weights)

    return repeated(strategy, replica_step)


def means(sums):
    """{"loss": ..., "top1": ..., "top5": ...} per example."""
    values = np.asarray(sums, np.float64)
    return {name: float(value / values[-1]) for name, value in zip(SUMS[:-1], values[:-1], strict=True)}
