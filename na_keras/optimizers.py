"""SGD with momentum and weight decay as torch.optim.SGD defines them, which the authors trained with.

    m <- momentum * m + (gradient + l2 * w);   w <- w - learning_rate * m

Keras' SGD keeps the learning rate inside the buffer (m <- momentum * m - learning_rate * gradient), so after each
drop of the learning rate the old, larger steps coast on for about 1 / (1 - momentum) steps; and its `weight_decay`
acts on the weight directly, outside the momentum, which at momentum .9 is ten times weaker for the same number.
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
