"""Settings that must precede the first use of a backend: seeds, and two logical CPU devices for replicas."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import pytest

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf

    # The second device rehearses a second replica; the default device stays the first.
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

if keras.backend.backend() == "jax":
    import jax
    import numpy as np

    def drawn_by_numpy(draw, by_numpy):
        """JAX compiles its generator for each shape of a weight, .2 s a time; what it draws is not under test here."""

        def random(key, shape, dtype, **limits):
            if isinstance(key, jax.core.Tracer):
                return draw(key, shape=shape, dtype=dtype, **limits)
            return jax.numpy.asarray(by_numpy(np.random.default_rng(np.asarray(key)), shape, **limits).astype(dtype))

        return random

    jax.random.normal = drawn_by_numpy(jax.random.normal, lambda generator, shape: generator.normal(size=shape))
    jax.random.uniform = drawn_by_numpy(
        jax.random.uniform, lambda generator, shape, minval, maxval: generator.uniform(minval, maxval, shape)
    )


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(1)


@pytest.fixture(scope="session")
def two_replicas():
    """The strategy of both CPU devices; one for all tests, because two would mix up their keys."""
    from engine import strategies

    return strategies.make_strategy("mirrored")


@pytest.fixture(scope="session")
def one_device():
    """What small_training.weights_after gives after 20 steps on one device."""
    import small_training

    return small_training.weights_after(tf.distribute.get_strategy(), 20, 1)
