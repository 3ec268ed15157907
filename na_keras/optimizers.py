"""Optimizers whose weight decay is that of the programs whose numbers we quote.

TorchSGD: SGD with momentum as torch.optim.SGD defines it, which the authors trained with.

    m <- momentum * m + (gradient + weight_decay * w);   w <- w - learning_rate * m

Keras' SGD keeps the learning rate inside the buffer (m <- momentum * m - learning_rate * gradient), so after each
drop of the learning rate the old, larger steps coast on for about 1 / (1 - momentum) steps; and its `weight_decay`
acts on the weight directly, outside the momentum, which at momentum .9 is ten times weaker for the same number.

TimmLamb: LAMB (You et al., arXiv 1904.00962, algorithm 2) with the decay inside the update, where the trust ratio
scales it too, as timm's Lamb has it.

    u <- adam(gradient) + weight_decay * w;   w <- w - learning_rate * (|w| / |u|) * u

Keras' Lamb decays outside of the trust ratio, and gives one to vectors that are not decayed; timm does not.

Private members of Keras' optimizers are used here and nowhere else: there is no public way to ask whether a variable
is excluded from the decay (`_use_weight_decay`), where its slots are (`_get_variable_index`, Lamb's `_momentums` and
`_velocities`), or to keep Keras' own decay away (`_apply_weight_decay`).
"""

import keras


def check_weight_decay(weight_decay, earlier, name):
    """The weight decay as a float, from the argument and from its name in files of version 0.1.0.

    Args:
        weight_decay: number, or None for none, which is Keras' default.
        earlier: what a saved optimizer has under the earlier name, or None.
        name: the earlier name, "l2" or "decay".

    Raises:
        ValueError: a negative number; or both, which in version 0.1.0 were two kinds of decay at once.
    """
    if earlier is not None and weight_decay:
        raise ValueError(
            f"weight_decay= is the only weight decay; {name}= is its name in files of version 0.1.0, where "
            f"weight_decay was Keras' decay beside it. Received: weight_decay={weight_decay}, {name}={earlier}. Give "
            "weight_decay= alone; load a model that was saved with both with compile=False."
        )
    given, value = ("weight_decay", weight_decay or 0.0) if earlier is None else (name, earlier)
    if not value >= 0:
        raise ValueError(f"weight_decay must not be negative. Received: {given}={value}")
    return float(value)


@keras.saving.register_keras_serializable(package="na_keras")
class TorchSGD(keras.optimizers.SGD):
    """SGD whose updates equal torch.optim.SGD(lr, momentum, weight_decay=weight_decay, nesterov=nesterov).

    Source: the definition in torch.optim.SGD's documentation, without dampening.

    Args:
        learning_rate: float or keras.optimizers.schedules.LearningRateSchedule.
        momentum: at least 0 and below 1; 0 is PyTorch's default and means plain gradient descent.
        weight_decay: weight_decay * weight is added to the gradient before the momentum, as in PyTorch; not Keras'
            decay of the weight itself. Variables that are named to `exclude_from_weight_decay()` are left out.
        nesterov: as in PyTorch; needs a momentum above 0.
        l2: the name of `weight_decay` in files of version 0.1.0, for loading those.
        **kwargs: of keras.optimizers.Optimizer, for example `global_clipnorm`.

    Raises:
        ValueError: a momentum outside [0, 1); `nesterov` without momentum; a negative weight decay.
    """

    def __init__(self, learning_rate=0.1, momentum=0.9, weight_decay=0.0, nesterov=False, *, l2=None, **kwargs):
        weight_decay = check_weight_decay(weight_decay, l2, "l2")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be at least 0 and below 1. Received: momentum={momentum}")
        if nesterov and momentum == 0:
            raise ValueError("nesterov=True needs a momentum above 0, as in PyTorch. Received: momentum=0")
        super().__init__(
            learning_rate, momentum=float(momentum), nesterov=nesterov, weight_decay=weight_decay, **kwargs
        )

    def update_step(self, gradient, variable, learning_rate):
        """One step on one variable."""
        learning_rate, gradient = (keras.ops.cast(value, variable.dtype) for value in (learning_rate, gradient))
        if self.weight_decay and self._use_weight_decay(variable):
            gradient = gradient + self.weight_decay * variable
        step = gradient
        if self.momentum:  # Keras makes no buffers without
            momentum = self.momentums[self._get_variable_index(variable)]
            self.assign(momentum, momentum * self.momentum + gradient)
            step = gradient + self.momentum * momentum if self.nesterov else momentum
        self.assign_sub(variable, learning_rate * step)

    def _apply_weight_decay(self, variables):
        """Keras' own decay, which is another: none."""


@keras.saving.register_keras_serializable(package="na_keras")
class TimmLamb(keras.optimizers.Lamb):
    """LAMB whose updates equal timm.optim.Lamb(lr, betas, eps, weight_decay) without its gradient clipping.

    Source: timm/optim/lamb.py; You et al., arXiv 1904.00962, algorithm 2. Variables that are named to
    `exclude_from_weight_decay()` are not decayed and take plain Adam steps: their trust ratio is 1.

    Args:
        learning_rate: float or keras.optimizers.schedules.LearningRateSchedule.
        weight_decay: weight_decay * weight is added to each step, inside the trust ratio; not Keras' decay of the
            weight itself.
        epsilon: added to the root of the second moment.
        decay: the name of `weight_decay` in files of version 0.1.0, for loading those.
        **kwargs: of keras.optimizers.Lamb.

    Raises:
        ValueError: a negative weight decay.
    """

    def __init__(self, learning_rate=1e-3, weight_decay=0.0, epsilon=1e-6, *, decay=None, **kwargs):
        weight_decay = check_weight_decay(weight_decay, decay, "decay")
        super().__init__(learning_rate, epsilon=epsilon, weight_decay=weight_decay, **kwargs)

    def update_step(self, gradient, variable, learning_rate):
        """One step on one variable."""
        ops = keras.ops
        learning_rate, gradient = (ops.cast(value, variable.dtype) for value in (learning_rate, gradient))
        index = self._get_variable_index(variable)
        mean, square = self._momentums[index], self._velocities[index]
        self.assign_add(mean, (1 - self.beta_1) * (gradient - mean))
        self.assign_add(square, (1 - self.beta_2) * (ops.square(gradient) - square))
        finished = ops.cast(self.iterations + 1, variable.dtype)
        mean = mean / (1 - ops.power(ops.cast(self.beta_1, variable.dtype), finished))
        square = square / (1 - ops.power(ops.cast(self.beta_2, variable.dtype), finished))
        step = mean / (ops.sqrt(square) + self.epsilon)
        if self.weight_decay and self._use_weight_decay(variable):
            step = step + self.weight_decay * variable
            weight_norm, step_norm = (ops.sqrt(ops.sum(ops.square(value))) for value in (variable, step))
            both = (weight_norm > 0) & (step_norm > 0)
            step = step * ops.where(both, weight_norm / ops.where(both, step_norm, 1.0), 1.0)
        self.assign_sub(variable, learning_rate * step)

    def _apply_weight_decay(self, variables):
        """Keras' own decay, which is another: none."""
