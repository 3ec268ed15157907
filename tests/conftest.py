"""Settings that must precede the first use of a backend: seeds, and two logical CPU devices for replicas; and what
makes every test quicker.
"""

import gc
import os
import pathlib

import pytest

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Compiled code need not be fast, it runs once or twice: LLVM's work is left out. XLA's own rewriting, which can change
# numbers, stays. JAX reads the variable too.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
QUICK_START = str(pathlib.Path(__file__).parent / "helpers" / "quick_start")
if QUICK_START not in os.environ.get("PYTHONPATH", ""):
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (QUICK_START, os.environ.get("PYTHONPATH"))))


def pytest_configure(config):
    """Prepares the backend; but not in the process that hands the tests to workers (-n) and runs none."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        {"tensorflow": prepare_tensorflow, "jax": prepare_jax}.get(name_of_backend(), lambda: None)()


def name_of_backend():
    import keras

    return keras.backend.backend()


def prepare_tensorflow():
    """The second device rehearses a second replica; the default device stays the first."""
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def prepare_jax():
    """JAX compiles its generator for each shape of a weight, .2 s a time; what it draws is not under test here."""
    import jax
    import numpy as np

    def drawn_by_numpy(draw, by_numpy):
        def random(key, shape, dtype, **limits):
            if isinstance(key, jax.core.Tracer):
                return draw(key, shape=shape, dtype=dtype, **limits)
            return jax.numpy.asarray(by_numpy(np.random.default_rng(np.asarray(key)), shape, **limits).astype(dtype))

        return random

    jax.random.normal = drawn_by_numpy(jax.random.normal, lambda generator, shape: generator.normal(size=shape))
    jax.random.uniform = drawn_by_numpy(
        jax.random.uniform, lambda generator, shape, minval, maxval: generator.uniform(minval, maxval, shape)
    )


def pytest_collection_finish():
    """Garbage is looked for less often, and never among what was imported: a tenth of the time otherwise."""
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(autouse=True)
def seeded():
    import keras

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
    import tensorflow as tf

    return small_training.weights_after(tf.distribute.get_strategy(), 20, 1)
