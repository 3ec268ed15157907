"""Networks that the tests of PyTorch weights share."""

import pytest
from small_networks import randomize, thin

from na_keras import to_torch_state_dict


@pytest.fixture(scope="session")
def network():
    return randomize(thin(attention="se"))


@pytest.fixture(scope="session")
def state(network):
    return to_torch_state_dict(network)


@pytest.fixture(scope="session")
def unloaded():
    """For what cannot be loaded."""
    return thin(attention="se")


@pytest.fixture(scope="session")
def built():
    """For `fresh`, which is as good as new where a test loads all of it."""
    return thin(attention="se")


@pytest.fixture
def fresh(built):
    return randomize(built, seed=2)
