"""Optimizers whose weight decay is that of the programs whose numbers we quote.

TorchSGD: SGD with momentum as torch.optim.SGD defines it, which the authors trained with.

    m <- momentum * m + (gradient + l2 * w);   w <- w - learning_rate * m

Keras' SGD keeps the learning rate inside the buffer (m <- momentum * m - learning_rate * gradient), so after each
drop of the learning rate the old, larger steps coast on for about 1 / (1 - momentum) steps; and its `weight_decay`
acts on the weight directly, outside the momentum, which at momentum .9 is ten times weaker for the same number.

TimmLamb: LAMB (You et al., arXiv 1904.00962, algorithm 2) with the decay inside the update, where the trust ratio
scales it too, as timm's Lamb has it.

    u <- adam(gradient) + decay * w;   w <- w - learning_rate * (|w| / |u|) * u

Keras' Lamb decays outside of the trust ratio, and gives one to vectors that are not decayed; timm does not.
"""

import keras


@keras.saving.register_keras_serializable(package="na_keras")
class TorchSGD(keras.optimizers.SGD):
    """SGD whose updates equal torch.optim.SGD(lr, momentum, weight_decay=l2, nesterov).

    Args:
        learning_rate: float or keras.optimizers.schedules.LearningRateSchedule.
        momentum: in (0, 1).
        l2: PyTorch's `weight_decay`: l2 * weight is added to the gradient. Variables named in
            `exclude_from_weight_decay()` are left out.
        nesterov: as in PyTorch.
        **kwargs: of keras.optimizers.Optimizer, for example `global_clipnorm`.

    Raises:
        ValueError: a momentum outside (0, 1), a negative l2.
    """

    def __init__(self, learning_rate=0.1, momentum=0.9, l2=0.0, nesterov=False, **kwargs):
        if not 0 < momentum < 1:
            raise ValueError(f"momentum must be between 0 and 1. Received: momentum={momentum}")
        if l2 < 0:
            raise ValueError(f"l2 must not be negative. Received: l2={l2}")
        super().__init__(learning_rate, momentum=momentum, nesterov=nesterov, **kwargs)
        self.l2 = l2

    def update_step(self, gradient, variable, learning_rate):
        """One step on one variable."""
        learning_rate, gradient = (keras.ops.cast(value, variable.dtype) for value in (learning_rate, gradient))
        if self.l2 and self._use_weight_decay(variable):
            gradient = gradient + self.l2 * variable
        momentum = self.momentums[self._get_variable_index(variable)]
        self.assign(momentum, momentum * self.momentum + gradient)
        step = gradient + self.momentum * momentum if self.nesterov else momentum
        self.assign_sub(variable, learning_rate * step)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {**super().get_config(), "l2": self.l2}


@keras.saving.register_keras_serializable(package="na_keras")
class TimmLamb(keras.optimizers.Lamb):
    """LAMB whose updates equal timm.optim.Lamb(lr, betas, eps, weight_decay=decay) without its gradient clipping.

    Variables named in `exclude_from_weight_decay()` are not decayed and take plain Adam steps: their trust ratio is 1.

    Args:
        learning_rate: float or keras.optimizers.schedules.LearningRateSchedule.
        decay: the weight times this is added to each step.
        **kwargs: of keras.optimizers.Lamb.

    Raises:
        ValueError: a negative decay.
    """

    def __init__(self, learning_rate=1e-3, decay=0.0, epsilon=1e-6, **kwargs):
        if decay < 0:
            raise ValueError(f"decay must not be negative. Received: decay={decay}")
        super().__init__(learning_rate, epsilon=epsilon, **kwargs)
        self.decay = decay

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
        if self.decay and self._use_weight_decay(variable):
            step = step + self.decay * variable
            weight_norm, step_norm = (ops.sqrt(ops.sum(ops.square(value))) for value in (variable, step))
            both = (weight_norm > 0) & (step_norm > 0)
            step = step * ops.where(both, weight_norm / ops.where(both, step_norm, 1.0), 1.0)
        self.assign_sub(variable, learning_rate * step)

    def get_config(self):
        """All constructor arguments as plain values."""
        return {**super().get_config(), "decay": self.decay}
