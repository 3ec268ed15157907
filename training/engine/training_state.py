"""What a run consists of on the devices, and the network that a recipe asks for."""

import keras
import tensorflow as tf

from engine import optimization, steps
from engine.freezing import Freezing, set_batch_norm_momentum
from na_keras import networks
from na_keras.networks.classifiers import find_classifier
from na_keras.pretrained import Notes, refresh
from run_files.data_record import Epochs


def make_model(recipe, classes, sync_bn, size, precision="float32", activation=None, **start):
    """The recipe's network, freshly initialised from its seed; without an activation its outputs are logits.

    Args:
        recipe: Recipe.
        classes: number of classes.
        sync_bn: batch statistics over all replicas.
        size: pixels of the images' sides, None for any.
        precision: of the activations.
        activation: "softmax", "sigmoid", or None.
        **start: `weights` to start from and `notes`, of networks.build. Without weights the network is the
            same, for variables that are about to be read from elsewhere.

    Returns:
        keras.Model that takes pixels 0..255.

    Raises:
        ValueError, TypeError: the network does not take the recipe's attention, sizes, weights or model_options.
    """
    keras.utils.set_random_seed(recipe.seed)
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(precision if precision == "float32" else f"mixed_{precision}")
    try:
        options = {"size": size, "classes": classes, "activation": activation, "synchronized": sync_bn}
        return networks.build(recipe.network, **options, **start)
    finally:
        keras.config.set_dtype_policy(before)


def copy_weights(source, target):
    """Gives a network the weights of another one of the same recipe."""
    target.set_weights(source.get_weights())
    refresh(target)


class TrainingState:
    """Network, moving average, optimizer, loss scale, and the sums of the unfinished epoch: everything that a
    checkpoint holds.

    Attributes:
        model, optimizer, schedule: of the recipe.
        epochs: Epochs, which the schedule follows.
        averaged: None, or the network that holds the weights' moving average.
        loss_scale: None, or optimization.LossScale of a float16 network.
        partial_sums: tf.Variable, the sums of the unfinished epoch (SUMS of the task).
        precision: of the activations.
        freezing: Freezing, which part of the model is trained when.
        notes: Notes, sentences that say what of a network that starts from trained weights is fresh, and what of any
            network is frozen.
        checkpoint: tf.train.Checkpoint of all of it.
    """

    def __init__(self, recipe, strategy, classes, steps_per_epoch, precision="float32", sync_bn=False, weights=None):
        """Builds all of it in the strategy's scope; `weights` as of networks.build. Raises what make_model and
        Freezing raise.
        """
        self.precision, self.notes = precision, Notes()
        self.epochs = Epochs(steps_per_epoch)
        self.schedule = optimization.Shifted(optimization.make_schedule(recipe, steps_per_epoch), self.epochs)
        size = recipe.size if recipe.resolved_evaluation_size == recipe.size else None
        with strategy.scope():
            self.model = make_model(recipe, classes, sync_bn, size, precision, weights=weights, notes=self.notes)
            set_batch_norm_momentum(self.model, recipe.batch_norm_momentum)
            self.freezing = self.make_freezing(recipe)
            self.notes += self.freezing.lines()
            self.optimizer = optimization.make_optimizers(recipe, self.schedule, self.freezing.groups())
            average = recipe.ema_decay is not None
            self.averaged = make_model(recipe, classes, sync_bn, size, precision) if average else None
            if average and recipe.network.starts_trained:
                copy_weights(self.model, self.averaged)
            self.loss_scale = optimization.LossScale() if precision == "float16" else None
        self.partial_sums = tf.Variable(steps.NO_SUMS)
        optional = {
            "averaged": self.averaged and [variable.value for variable in self.averaged.variables],
            "loss_scale": self.loss_scale and self.loss_scale.variables,
        }
        self.checkpoint = tf.train.Checkpoint(
            model=[variable.value for variable in self.model.variables],
            optimizer=[variable.value for variable in self.optimizer.variables],
            partial_sums=self.partial_sums,
            **{name: value for name, value in optional.items() if value is not None},
        )

    def make_freezing(self, recipe):
        """The `Freezing` of the model; the trunk is all but the classifier and fresh attention modules."""
        head = []
        if recipe.freeze_trunk or recipe.trunk_learning_rate != 1:
            head = [find_classifier(self.model, recipe.model).head, *self.notes.modules]
        return Freezing(recipe, self.model, head)

    @property
    def evaluated_model(self):
        """The network that is evaluated and saved."""
        return self.averaged or self.model

    @property
    def step(self):
        """Steps finished."""
        return int(self.optimizer.iterations.numpy())
