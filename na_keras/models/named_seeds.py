"""Random initial weights that depend on a layer's name, and on nothing that was built before it.

Keras gives each initializer a seed from Python's generator, in the order of construction: one attention module more,
and everything after it begins otherwise. Here each layer's seeds come from its name and one number, which is drawn from
Python's generator first. So after `keras.utils.set_random_seed(7)` networks with any attention, and without, have the
same convolutions and the same classifier, and whoever compares them compares modules.
"""

import contextlib
import random


class NamedSeeds:
    """Seeds by name. Takes one number from Python's generator when it is made."""

    def __init__(self):
        self.number = random.getrandbits(64)

    @contextlib.contextmanager
    def of(self, name):
        """What is constructed inside draws its seeds by `name`; the generator then goes on as if nothing had been.

        Initializers draw when they are constructed, that is with their layer, and not when it is built.
        """
        state = random.getstate()
        random.seed(f"{self.number} {name}")  # text: seeded by its SHA-512, equal in all processes
        try:
            yield
        finally:
            random.setstate(state)


class NamedSeedLayers:
    """A namespace of layers, `keras.layers` or another implementation of it, whose layers have seeds by name."""

    def __init__(self, layers):
        self.layers, self.seeds = layers, NamedSeeds()

    def __getattr__(self, kind):
        """A function that constructs a layer of this class; it must be given a `name`."""
        construct = getattr(self.layers, kind)

        def constructed(*args, name, **kwargs):
            with self.seeds.of(name):
                return construct(*args, name=name, **kwargs)

        return constructed
