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
    optimizer = TorchSGD(schedule, momentum=0.9, weight_decay=decay, nesterov=nesterov)
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
    optimizer = TorchSGD(0.1, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    optimizer.build([kernel, bias])
    optimizer.apply([keras.ops.zeros((1,)), keras.ops.zeros((1,))])
    assert keras.ops.convert_to_numpy(kernel) == pytest.approx(0.95)
    assert keras.ops.convert_to_numpy(bias) == 1.0


def torch_sgd(steps, rate, momentum, decay, weight=1.0):
    """torch.optim.SGD's documentation in float64, on a gradient of zero."""
    buffer = 0.0
    for _ in range(steps):
        gradient = decay * weight
        buffer = momentum * buffer + gradient
        weight = weight - rate * buffer
    return weight


def weight_after(optimizer, steps):
    """A weight of 1 after so many steps with a gradient of zero: what the decay alone does."""
    variable = keras.Variable([1.0], name="kernel")
    optimizer.build([variable])
    for _ in range(steps):
        optimizer.apply([keras.ops.zeros((1,))])
    return float(keras.ops.convert_to_numpy(variable)[0])


def test_weight_decay_of_torch_sgd_is_pytorchs():
    """Keras' own decay of this number, beside the momentum, leaves (1 - .1 * .02)**50 = .9047."""
    expected = torch_sgd(50, 0.1, 0.9, 0.02)
    assert round(expected, 4) == 0.3819
    assert weight_after(TorchSGD(0.1, momentum=0.9, weight_decay=0.02), 50) == pytest.approx(expected, rel=1e-5)


def test_weight_decay_of_timm_lamb_is_timms():
    """The step is the decay alone, and the trust ratio makes it as long as the weight: w <- (1 - rate) w."""
    assert weight_after(TimmLamb(0.1, weight_decay=0.02), 10) == pytest.approx(0.9**10, rel=1e-5)


def test_momentum_of_zero_is_plain_gradient_descent():
    expected = torch_sgd(50, 0.1, 0.0, 0.02)
    for momentum in (0, 0.0):
        assert weight_after(TorchSGD(0.1, momentum=momentum, weight_decay=0.02), 50) == pytest.approx(expected, 1e-5)


@pytest.mark.parametrize(
    ("optimizer", "attributes"),
    [
        (
            TorchSGD(0.2, momentum=0.8, weight_decay=1e-4, nesterov=True, global_clipnorm=1.0),
            {"weight_decay": 1e-4, "nesterov": True, "momentum": 0.8, "global_clipnorm": 1.0},
        ),
        (TimmLamb(0.3, weight_decay=0.02, beta_2=0.9), {"weight_decay": 0.02, "beta_2": 0.9, "epsilon": 1e-6}),
    ],
    ids=["sgd", "lamb"],
)
def test_config_round_trip(optimizer, attributes):
    copy = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(optimizer))
    assert type(copy) is type(optimizer) and copy.get_config() == optimizer.get_config()
    assert {name: getattr(copy, name) for name in attributes} == attributes


OF_ANY = {"clipnorm": None, "global_clipnorm": None, "clipvalue": None, "use_ema": False, "ema_momentum": 0.99}
OF_ANY |= {"ema_overwrite_frequency": None, "loss_scale_factor": None, "gradient_accumulation_steps": None}
# As version 0.1.0 wrote them: the decay under another name, and Keras' own beside it.
SAVED = {
    "l2": {"name": "torch_sgd", "learning_rate": 0.2, "weight_decay": None, "momentum": 0.9, "nesterov": True},
    "decay": {"name": "timm_lamb", "learning_rate": 0.2, "weight_decay": None, "beta_1": 0.9, "beta_2": 0.99},
}


@pytest.mark.parametrize(("kind", "earlier"), [(TorchSGD, "l2"), (TimmLamb, "decay")])
def test_optimizers_saved_under_the_earlier_names_load(kind, earlier):
    optimizer = kind.from_config({**OF_ANY, **SAVED[earlier], earlier: 1e-4})
    assert optimizer.weight_decay == 1e-4 and earlier not in optimizer.get_config()
    assert kind.from_config({**OF_ANY, **SAVED[earlier], earlier: 0.0}).weight_decay == 0.0
    with pytest.raises(ValueError, match=f"Received: weight_decay=0.02, {earlier}=0.1.*compile=False"):
        kind.from_config({**OF_ANY, **SAVED[earlier], "weight_decay": 0.02, earlier: 0.1})


@pytest.mark.parametrize(
    ("kind", "arguments", "received"),
    [
        (TorchSGD, {"momentum": 1.0}, "momentum=1.0"),
        (TorchSGD, {"momentum": -0.1}, "momentum=-0.1"),
        (TorchSGD, {"momentum": 0, "nesterov": True}, "momentum=0"),
        (TorchSGD, {"weight_decay": -1.0}, "weight_decay=-1.0"),
        (TorchSGD, {"l2": -1.0}, "l2=-1.0"),
        (TimmLamb, {"weight_decay": -1}, "weight_decay=-1"),
        (TimmLamb, {"decay": -1}, "decay=-1"),
    ],
)
def test_bad_arguments_are_refused(kind, arguments, received):
    with pytest.raises(ValueError, match=f"Received: {received}"):
        kind(**arguments)


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
    decayed, excluded = (keras.Variable(initial, name=name) for name in ("kernel", "bias"))
    optimizer = TimmLamb(schedule, weight_decay=0.02)
    optimizer.exclude_from_weight_decay(var_list=[excluded])
    optimizer.build([decayed, excluded])
    for gradient in gradients:
        optimizer.apply([keras.ops.convert_to_tensor(gradient)] * 2, [decayed, excluded])
    rates = [0.1] * 20 + [0.01] * 20
    # float32 rounding over 40 steps of size .1 |w|.
    for variable, decay in ((decayed, 0.02), (excluded, 0.0)):
        expected = timm_lamb(initial, gradients.astype(np.float64), rates, decay)
        np.testing.assert_allclose(keras.ops.convert_to_numpy(variable), expected, atol=2e-5)
