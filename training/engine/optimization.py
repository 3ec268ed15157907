"""What moves the weights, from a recipe: learning-rate schedule, optimizer, the scale of a half-precision loss, and the
moving average of the weights.

Why not Keras' own LossScaleOptimizer and `use_ema`: in a loop like ours an optimizer gets each replica's share of the
gradient and adds the shares up inside. LossScaleOptimizer looks before that, at the first replica's share or at each
one's own, so that an overflow on another replica reaches every weight, or some replicas skip a step that others take.
Here one decision is taken, from the gradient summed over all replicas and before any variable changes
(steps.TrainStep.scaled_step); and a step that is skipped counts, for the schedule and the order of the data. Keras'
moving average has one decay from the first step on and leaves the batch norms' statistics out; ours begins low and
averages them too, as timm's and tf.train.ExponentialMovingAverage's users expect.
"""

import dataclasses
import re

import keras
import tensorflow as tf

from na_keras import TimmLamb, TorchSGD

AVERAGE_WARMUP = 10.0  # of tf.train.ExponentialMovingAverage: the first averages follow the weights closely


class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule times a factor that rises from 0 to 1 during the first steps.

    Args:
        schedule: what follows, and goes on as if there had been no warm-up.
        steps: of the rise, at least 1.
    """

    def __init__(self, schedule, steps):
        self.schedule, self.steps = schedule, steps

    def __call__(self, step):
        """The learning rate after `step` steps."""
        return tf.minimum(tf.cast(step, tf.float32) / self.steps, 1.0) * self.schedule(step)


class Shifted(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule of the epochs' steps as a schedule of the run's; see data_record.Epochs.

    Attributes:
        schedule: function of the steps that the epochs so far hold.
        epochs: Epochs, whose shift is read when a step is traced.
    """

    def __init__(self, schedule, epochs):
        self.schedule, self.epochs = schedule, epochs

    def __call__(self, step):
        """The learning rate after `step` steps of the run."""
        return self.schedule(step + self.epochs.shift if self.epochs.shift else step)


class Scaled(keras.optimizers.schedules.LearningRateSchedule):
    """Another schedule times a factor."""

    def __init__(self, schedule, factor):
        self.schedule, self.factor = schedule, factor

    def __call__(self, step):
        """The learning rate after `step` steps."""
        return self.factor * self.schedule(step)


def make_schedule(recipe, steps_per_epoch):
    """Learning rate as a function of the number of finished steps."""
    warmup, total = recipe.warmup_epochs * steps_per_epoch, recipe.epochs * steps_per_epoch
    if recipe.schedule == "step":
        # The last one lies beyond the end: Keras wants at least one.
        drops = range(recipe.decay_epochs, recipe.epochs + recipe.decay_epochs, recipe.decay_epochs)
        # Keras keeps the old value up to and including a boundary.
        boundaries = [epoch * steps_per_epoch - 1 for epoch in drops]
        rates = [recipe.learning_rate * recipe.decay_factor**k for k in range(len(boundaries) + 1)]
        schedule = keras.optimizers.schedules.PiecewiseConstantDecay(boundaries, rates)
        return WarmUp(schedule, warmup) if warmup else schedule
    return keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else recipe.learning_rate,
        decay_steps=max(1, total - warmup),
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
        alpha=recipe.min_learning_rate / recipe.learning_rate if recipe.min_learning_rate else 0.0,
    )


def check_found(flag, patterns, variables):
    """Raises ValueError on a pattern of a flag that is found in no variable's path."""
    paths = [variable.path for variable in variables]
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            some = ", ".join(paths[:: max(1, len(paths) // 6)][:6])
            raise ValueError(
                f"{flag}: {pattern!r} is found in none of the {len(paths)} variables' paths, such as {some}"
            )


def make_optimizer(recipe, schedule, variables):
    """The recipe's optimizer, built for the variables; those that `no_weight_decay` finds are not decayed.

    TorchSGD decays as torch.optim.SGD and TimmLamb as timm's Lamb. Keras' AdamW and RMSprop take learning rate * decay
    * weight away beside the step: PyTorch's AdamW does so too, its RMSprop adds decay * weight to the gradient.
    """
    decay = {"weight_decay": recipe.weight_decay}
    if recipe.optimizer == "lamb":
        optimizer = TimmLamb(schedule, **decay)
    elif recipe.optimizer == "adamw":
        optimizer = keras.optimizers.AdamW(schedule, **decay)
    elif recipe.optimizer == "rmsprop":
        optimizer = keras.optimizers.RMSprop(schedule, momentum=recipe.momentum, **decay)
    else:
        optimizer = TorchSGD(schedule, recipe.momentum, **decay)
    not_decayed = [v for v in variables if any(re.search(pattern, v.path) for pattern in recipe.no_weight_decay)]
    optimizer.exclude_from_weight_decay(var_list=not_decayed)
    optimizer.build(variables)
    return optimizer


@dataclasses.dataclass(frozen=True)
class Group:
    """Variables with a learning rate of their own.

    Attributes:
        variables: of the model.
        factor: of the schedule.
        late: trained from a later epoch on only.
    """

    variables: list
    factor: float = 1.0
    late: bool = False


class GroupedOptimizer:
    """An optimizer for each group of variables, used as one. Scaling a group's gradient instead would not scale its
    steps: Adam, LAMB and RMSprop divide by the gradient's size, and weights decay by the learning rate.

    The first one counts the run's steps, which all learning rates follow. One of a group that is trained later counts
    its own, because Adam and LAMB correct their averages for how young these are.

    Args:
        recipe, schedule: as of make_optimizer.
        groups: Groups, of which the first is trained from the start.
    """

    def __init__(self, recipe, schedule, groups):
        first, *others = groups
        self.first = make_optimizer(recipe, Scaled(schedule, first.factor), first.variables)
        self.others = []
        for group in others:
            scaled = Scaled(schedule, group.factor)
            rate = lambda scaled=scaled: scaled(self.first.iterations)  # noqa: E731
            self.others.append((make_optimizer(recipe, rate, group.variables), group.late))
        self.owner = {id(variable): index for index, group in enumerate(groups) for variable in group.variables}

    @property
    def iterations(self):
        """Steps of the run."""
        return self.first.iterations

    @property
    def variables(self):
        """What a checkpoint must hold."""
        return [v for optimizer in (self.first, *(other for other, _ in self.others)) for v in optimizer.variables]

    def apply(self, gradients, variables):
        """One step, as of a Keras optimizer; groups of which no variable is given are left as they are."""
        parts = [[] for _ in range(1 + len(self.others))]
        for gradient, variable in zip(gradients, variables, strict=True):
            parts[self.owner[id(variable)]].append((gradient, variable))
        for (optimizer, late), part in zip(self.others, parts[1:], strict=True):
            if part:
                if not late:  # steps that overflow count for the first one only
                    optimizer.iterations.assign(self.first.iterations)
                optimizer.apply(*zip(*part, strict=True))
        # Last: it moves the step that the others' learning rates follow.
        self.first.apply(*zip(*parts[0], strict=True))


def make_optimizers(recipe, schedule, groups):
    """The recipe's optimizer for groups of variables: Keras' own of a single one, which older checkpoints are of."""
    if len(groups) == 1 and groups[0].factor == 1:
        return make_optimizer(recipe, schedule, groups[0].variables)
    return GroupedOptimizer(recipe, schedule, groups)


class LossScale:
    """The factor that keeps small gradients of a float16 network from vanishing, adjusted as the run goes.

    Starts at 2**15, doubles after 2000 steps without an overflow, halves with each one, never below 1 (Micikevicius et
    al., arXiv 1710.03740). A step whose gradient overflows on any replica changes no weight on any.
    """

    START, PATIENCE = 2.0**15, 2000

    def __init__(self):
        """Call within the strategy's scope."""
        self.value = tf.Variable(self.START, trainable=False)
        self.finite_steps = tf.Variable(0, trainable=False)
        self.overflows = tf.Variable(0, trainable=False)

    @property
    def variables(self):
        """What a checkpoint must hold."""
        return [self.value, self.finite_steps, self.overflows]

    def update(self, finite):
        """Takes note of one step, in cross-replica context.

        Args:
            finite: scalar boolean tensor, whether the gradient was.

        Returns:
            Scalar boolean tensor, whether the run can go on: false if even the smallest scale overflows.
        """
        count = tf.where(finite, self.finite_steps + 1, 0)
        grown = count == self.PATIENCE
        value = self.value * tf.where(finite, tf.where(grown, 2.0, 1.0), 0.5)
        can_continue = finite | (value >= 1.0)
        self.value.assign(tf.maximum(value, 1.0))
        self.finite_steps.assign(tf.where(grown, 0, count))
        self.overflows.assign_add(tf.cast(~finite, tf.int32))
        return can_continue


def update_averages(strategy, averages, variables, steps, decay):
    """Moves each average a little towards its variable, on every replica, in cross-replica context.

    Args:
        averages, variables: lists of tf.Variable, in the same order; integers (dropout's seeds) are left.
        steps: integer tensor, steps finished; the decay starts low, min(decay, (1 + steps) / (10 + steps)).
        decay: float below 1.
    """
    steps = tf.cast(steps, tf.float32)
    decay = tf.minimum(decay, (1.0 + steps) / (AVERAGE_WARMUP + steps))
    for average, variable in zip(averages, variables, strict=True):
        if average.dtype.is_floating:
            move = lambda own, other, keep: own.assign(keep * own + (1.0 - keep) * other)  # noqa: E731
            strategy.extended.update(average, move, args=(variable, decay), group=False)
