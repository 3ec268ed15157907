"""TorchSGD and TimmLamb against their rules in float64, on whichever backend Keras runs."""

import keras
import numpy as np
import pytest

from na_keras import TimmLamb, TorchSGD


def gradient_at(weight, step):
    """A gradient that is a fixed function of weight and step, far from constant."""
    return np.sin(3 * weight + step) + 0.1 * weight


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("decay", [0.0, 1e-2])
def test_updates_equal_torch_across_a_drop_of_the_learning_rate(nesterov, decay):
    start = np.linspace(-1, 1, 7)
    variable = keras.Variable(start.astype("float32"), name="kernel")
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([29], [0.1, 0.01])  # drops after 30 steps
    optimizer = TorchSGD(schedule, momentum=0.9, l2=decay, nesterov=nesterov)
    optimizer.build([variable])
    weight, momentum = start.copy(), 0.0
    for step in range(60):
        gradient = gradient_at(np.array(keras.ops.convert_to_numpy(variable)), step)
        optimizer.apply([keras.ops.convert_to_tensor(gradient.astype("float32"))])
        g = gradient_at(weight, step) + decay * weight  # torch.optim.SGD's documentation, line by line
        momentum = 0.9 * momentum + g
        weight = weight - (0.1 if step < 30 else 0.01) * (g + 0.9 * momentum if nesterov else momentum)
    # float32 against float64 over 60 chaotic steps; Keras' own SGD is off by more than 0.1 here after the drop.
    np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), weight, atol=2e-3)


def test_excluded_variables_do_not_decay():
    kernel, bias = keras.Variable([1.0], name="kernel"), keras.Variable([1.0], name="bias")
    optimizer = TorchSGD(0.1, l2=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build([kernel, bias])
    optimizer.apply([keras.ops.zeros((1,)), keras.ops.zeros((1,))])
    assert keras.ops.convert_to_numpy(kernel) == pytest.approx(0.95)
    assert keras.ops.convert_to_numpy(bias) == 1.0


def test_config_round_trip():
    optimizer = TorchSGD(0.2, momentum=0.8, l2=1e-4, nesterov=True, global_clipnorm=1.0)
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert isinstance(copy, TorchSGD) and copy.get_config() == optimizer.get_config()
    assert copy.l2 == 1e-4 and copy.nesterov


@pytest.mark.parametrize("arguments", [{"momentum": 0.0}, {"momentum": 1.0}, {"l2": -1.0}])
def test_bad_arguments_are_refused(arguments):
    (name, value), *_ = arguments.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value}"):
        TorchSGD(**arguments)


def timm_lamb(weight, gradients, rates, decay, betas=(0.9, 0.999), epsilon=1e-6):
    """timm's update in float64: decay inside the step, trust ratio for decayed weights only."""
    weight = np.array(weight, np.float64)
    mean, square = np.zeros_like(weight), np.zeros_like(weight)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        mean = betas[0] * mean + (1 - betas[0]) * gradient
        square = betas[1] * square + (1 - betas[1]) * gradient**2
        update = (mean / (1 - betas[0] ** step)) / (np.sqrt(square / (1 - betas[1] ** step)) + epsilon)
        if decay:
            update = update + decay * weight
            norms = np.linalg.norm(weight), np.linalg.norm(update)
            update = update * (norms[0] / norms[1] if min(norms) > 0 else 1.0)
        weight = weight - rate * update
    return weight


@pytest.mark.parametrize("start", [1.0, 0.0])
def test_lamb_equals_timms_across_a_change_of_the_rate(start):
    generator = np.random.default_rng(2)
    gradients = generator.normal(size=(40, 5, 3)).astype("float32")
    initial = (start * generator.normal(size=(5, 3))).astype("float32")
    schedule = keras.optimizers.schedules.PiecewiseConstantDecay([19], [0.1, 0.01])
    decayed, spared = (keras.Variable(initial, name=name) for name in ("kernel", "bias"))
    optimizer = TimmLamb(schedule, decay=0.02)
    optimizer.exclude_from_weight_decay(var_list=[spared])
    optimizer.build([decayed, spared])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)] * 2, [decayed, spared])
    rates = [0.1] * 20 + [0.01] * 20
    # float32 rounding over 40 steps of size .1 |w|.
    for variable, decay in ((decayed, 0.02), (spared, 0.0)):
        expected = timm_lamb(initial, gradients.astype(np.float64), rates, decay)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, atol=2e-5)


def test_lamb_round_trip_and_bad_arguments():
    optimizer = TimmLamb.from_config(TimmLamb(0.3, decay=0.02, beta_2=0.9).get_config())
    assert (optimizer.decay, optimizer.beta_2, optimizer.epsilon) == (0.02, 0.9, 1e-6)
    with pytest.raises(ValueError, match="decay must not be negative. Received: decay=-1"):
        TimmLamb(decay=-1)
