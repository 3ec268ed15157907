"""One step, compiled: the loss, its gradient on every replica, the update, and the sums that statistics come from.

The loss is the sum of the examples' losses over the GLOBAL batch size, so that gradients added up over replicas are
those of one device on the whole batch.

What runs on a replica has no control flow of tensors: AutoGraph, which would rewrite it for a second, leaves it alone.
"""

import keras
import numpy as np
import tensorflow as tf

from engine import freezing, multiclass, optimization

NO_SUMS = np.zeros(4, np.float64)  # as many as each task has

LOSSES = {
    "cross_entropy": keras.losses.categorical_crossentropy,
    "binary_cross_entropy": keras.losses.binary_crossentropy,  # the mean over the classes
}


def example_sums(losses, targets, outputs, sample_weights, task=multiclass):
    """The numbers of the task's `SUMS` over a batch, float32 (4,): sample weights, float32 (examples,), are 1, or 0 for
    an example that does not count. The other arguments are those of `example_values` of the task.
    """
    return tf.reduce_sum(task.example_values(losses, targets, outputs) * sample_weights, axis=1)


def example_losses(
    targets, outputs, loss="cross_entropy", *, label_smoothing=0.0, target_threshold=None, from_logits=True
):
    """The loss of each example: float32 (examples,).

    Args:
        targets: labels (examples,), or shares (examples, classes), of multi-label images 0 and 1.
        outputs: logits or probabilities (examples, classes).
        loss: a key of LOSSES.
        label_smoothing, target_threshold: as in recipes.Recipe.
        from_logits: what the outputs are.

    Targets are smoothed first, label_smoothing / classes for a class that is not there under either loss, and compared
    with the threshold afterwards, as in timm (timm/loss/binary_cross_entropy.py). Keras' own smoothing gives such a
    class half of label_smoothing under binary cross-entropy, however many there are.
    """
    classes = outputs.shape[-1]
    if targets.shape.rank == 1:
        targets = tf.one_hot(targets, classes)
    if label_smoothing:
        targets = targets * (1.0 - label_smoothing) + label_smoothing / classes
    if target_threshold is not None:
        targets = tf.cast(targets > target_threshold, targets.dtype)
    # Of the outputs of a softmax or sigmoid layer Keras keeps the logits and computes from them.
    return LOSSES[loss](targets, outputs, from_logits=from_logits)


def recipe_losses(recipe, targets, logits):
    """`example_losses` as a recipe's training has them."""
    # Shares mean something to a loss that compares a distribution; only questions of yes and no have a threshold.
    threshold = recipe.target_threshold if recipe.loss == "binary_cross_entropy" else None
    options = {"label_smoothing": recipe.label_smoothing, "target_threshold": threshold}
    return example_losses(targets, logits, recipe.loss, **options)


def class_weights_of(targets, class_weights):
    """The weight of each example's class; of shares, of all its classes by their shares: float32 (examples,).

    Args:
        targets: labels (examples,), or shares (examples, classes).
        class_weights: float32 (classes,).
    """
    if targets.shape.rank == 1:
        return tf.gather(class_weights, targets)
    return tf.linalg.matvec(targets, class_weights)


def repeated(strategy, step):
    """The compiled function of the loop: several batches, each dealt to all replicas, in one call.

    Args:
        strategy: tf.distribute.Strategy.
        step: function of a batch as the strategy deals it, called in cross-replica context; returns (sums of the batch,
            float32; whether the run can go on, scalar boolean).

    Returns:
        run(iterator, count, sums, stop), which returns a dictionary of
            sums: those that were given plus those of `count` batches, float64. The running sums go in and come out, one
                batch added after the other, so that they do not depend on how the batches were grouped into calls.
            failed: the first batch of the call (0, 1, ...) after which the run cannot go on, or whose sums were not
                finite; -1 if there is none.
            waited: seconds during which the steps before were done and the next batch was not there yet.
            stop: on how many replicas of all machines `stop`, 1 or 0, was set: machines stop together.
    """

    @tf.function
    def run(iterator, count, sums, stop):
        failed, waited = -1, tf.constant(0.0, tf.float64)
        votes = strategy.reduce("SUM", strategy.run(tf.identity, args=(stop,)), axis=None)
        for index in tf.range(count):
            with tf.device("CPU:0"), tf.control_dependencies([sums]):
                idle = tf.timestamp()
            batch = next(iterator)
            arrived = [part for value in batch for part in strategy.experimental_local_results(value)]
            with tf.device("CPU:0"), tf.control_dependencies([idle, *arrived]):
                waited += tf.timestamp() - idle
            added, can_continue = step(batch)
            with tf.device("CPU:0"):  # copying the sums there waits for the device that computes them
                sums += tf.cast(added, tf.float64)
                can_continue &= tf.reduce_all(tf.math.is_finite(added))
                failed = tf.where((failed < 0) & ~can_continue, index, failed)
        return {"sums": sums, "failed": failed, "waited": waited, "stop": votes}

    return run


class TrainStep:
    """One optimizer step on a batch of (images, targets, sample weights), on all replicas.

    What is trained is what is trainable when it is made: where that changes, another one must be made.

    Args:
        strategy: tf.distribute.Strategy, in whose scope all that follows was made.
        model: keras.Model whose outputs are logits.
        optimizer: built for the model's trainable variables, or more.
        recipe: Recipe.
        loss_scale: None, or optimization.LossScale for a float16 network.
        averaged: None, or another such model, whose variables follow as the moving average of the recipe's decay.
        class_weights: None, or float32 (classes,), which the losses of a class's examples are multiplied by.
        task: the module multiclass or multilabel: which sums are added up.
        xla: compile the network's forward and backward pass with XLA.
    """

    def __init__(
        self,
        strategy,
        model,
        optimizer,
        recipe,
        *,
        loss_scale=None,
        averaged=None,
        class_weights=None,
        task=multiclass,
        xla=False,
    ):
        self.strategy, self.model, self.optimizer, self.recipe, self.task = strategy, model, optimizer, recipe, task
        self.loss_scale, self.averaged, self.class_weights = loss_scale, averaged, class_weights
        self.variables = list(model.trainable_variables)
        self.trainable = [variable.value for variable in self.variables]
        if averaged is not None:
            still = freezing.unchanging(model)
            pairs = zip(averaged.variables, model.variables, strict=True)
            self.averaging = [(own.value, other.value) for own, other in pairs if id(other) not in still]
        # The update stays outside of XLA: it reaches over to the other replicas' devices.
        self.gradients = tf.function(self.gradients_of, jit_compile=True) if xla else self.gradients_of

    def gradients_of(self, images, targets, sample_weights, scale):
        """Gradients of a slice of a replica's batch, times `scale`, and the slice's sums."""
        recipe = self.recipe
        # Nothing else is watched: the gradient ends where what is frozen begins.
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(self.trainable)
            logits = self.model(images, training=True)
            losses = recipe_losses(recipe, targets, logits)
            if self.class_weights is not None:
                losses *= class_weights_of(targets, self.class_weights)
            loss = tf.reduce_sum(losses * sample_weights) / recipe.batch_size
            if self.model.losses:  # regularizers: once per step, however many replicas and slices add up
                loss += tf.add_n(self.model.losses) / (self.strategy.num_replicas_in_sync * recipe.accumulate)
            loss *= scale
        gradients = tape.gradient(loss, self.trainable, unconnected_gradients="zero")
        return gradients, example_sums(losses, targets, logits, sample_weights, self.task)

    def accumulated(self, batch, scale):
        """Gradients and sums of a replica's batch, worked through in slices."""
        slices = zip(*(tf.split(value, self.recipe.accumulate) for value in batch), strict=True)
        gradients, sums = self.gradients(*next(slices), scale)
        for part in slices:
            more, more_sums = self.gradients(*part, scale)
            gradients, sums = [a + b for a, b in zip(gradients, more, strict=True)], sums + more_sums
        return gradients, sums

    def reduced(self, gradients, scale):
        """Gradients summed over all replicas, on every replica alike, clipped; and whether they are finite.

        Clipping each replica's own share, as optimizers' `global_clipnorm` does, is another and wrong thing; and a
        replica that looked at its own share alone would not see another's overflow.
        """
        total = tf.distribute.get_replica_context().all_reduce("SUM", gradients)
        total = [gradient / scale for gradient in total]
        norm = tf.linalg.global_norm(total)
        if self.recipe.clip_norm is not None:
            total, _ = tf.clip_by_global_norm(total, self.recipe.clip_norm, norm)
        return total, tf.math.is_finite(norm)

    def apply_reduced(self, gradients):
        """The update, from gradients that are summed already: the optimizer adds them up over the replicas again."""
        replicas = self.strategy.num_replicas_in_sync
        self.optimizer.apply([gradient / replicas for gradient in gradients], self.variables)

    @tf.autograph.experimental.do_not_convert
    def plain_step(self, *batch):
        """On each replica: gradient and update."""
        gradients, sums = self.accumulated(batch, 1.0)
        if self.recipe.clip_norm is None:
            self.optimizer.apply(gradients, self.variables)
        else:
            self.apply_reduced(self.reduced(gradients, 1.0)[0])
        return sums

    @tf.autograph.experimental.do_not_convert
    def scaled_gradients(self, *batch):
        """On each replica: the gradient of the scaled loss, scaled back, before it is known to be finite."""
        scale = tf.identity(self.loss_scale.value)
        gradients, sums = self.accumulated(batch, scale)
        return *self.reduced(gradients, scale), sums

    def scaled_step(self, batch):
        """An update where the gradient is finite; the sums of each replica, and whether the run can go on."""
        gradients, finite, sums = self.strategy.run(self.scaled_gradients, args=batch)
        finite = self.strategy.experimental_local_results(finite)[0]  # the same on all
        if finite:
            self.strategy.run(self.apply_reduced, args=(gradients,))
        else:  # the step counts, for the schedule and the order of the data, but changes nothing
            self.optimizer.iterations.assign_add(1)
        return sums, self.loss_scale.update(finite)

    def __call__(self, batch):
        """What `repeated` takes: in cross-replica context, (sums of the batch, whether the run can go on)."""
        if self.loss_scale is None:
            sums, can_continue = self.strategy.run(self.plain_step, args=batch), tf.constant(True)
        else:
            sums, can_continue = self.scaled_step(batch)
        if self.averaged is not None:
            pairs = zip(*self.averaging, strict=True)
            iterations = self.optimizer.iterations.value
            optimization.update_averages(self.strategy, *pairs, iterations, self.recipe.ema_decay)
        return self.strategy.reduce("SUM", sums, axis=None), can_continue


def make_train_steps(strategy, model, optimizer, recipe, **options):
    """`repeated` steps; arguments as of TrainStep."""
    return repeated(strategy, TrainStep(strategy, model, optimizer, recipe, **options))


def make_evaluate_steps(strategy, predict, from_logits=True, task=multiclass):
    """The compiled function that evaluates batches of (images, labels, sample weights), each dealt to all replicas.

    Args:
        strategy: tf.distribute.Strategy.
        predict: function of images (examples, height, width, 3) that returns logits or probabilities.
        from_logits: which of them.
        task: the module multiclass or multilabel: which loss, and what is kept of each example.

    Returns:
        run(iterator, count), which returns the weight of every example of `count` batches and, whatever that is, the
        numbers of the task's `record`: float32 (count, replicas, examples of a replica, 1 + numbers), the same on all
        machines.
    """
    replicas = tf.range(strategy.num_replicas_in_sync)[:, None, None]

    @tf.autograph.experimental.do_not_convert
    def replica_step(images, labels, sample_weights):
        outputs = predict(images)
        losses = example_losses(labels, outputs, task.LOSS, from_logits=from_logits)
        own = tf.concat([sample_weights[:, None], task.record(losses, labels, outputs, from_logits)], axis=1)
        # Each replica's in its place among zeros: their sum is all of them.
        return tf.where(replicas == tf.distribute.get_replica_context().replica_id_in_sync_group, own, 0.0)

    @tf.function
    def run(iterator, count):
        records = tf.TensorArray(tf.float32, count)
        for index in tf.range(count):
            values = strategy.run(replica_step, args=next(iterator))
            records = records.write(index, strategy.reduce("SUM", values, axis=None))
        return records.stack()

    return run


def means(sums, classes, task=multiclass):
    """{name: mean of a step's sums per example}, of the task's `statistics`; NaN without any example."""
    values = np.asarray(sums, np.float64)
    with np.errstate(invalid="ignore"):
        return {name: float(value / values[-1]) for name, value in zip(task.statistics(classes), values, strict=False)}
