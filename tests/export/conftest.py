"""One run and one verified export of it, for all tests of this folder that only read them."""

import pytest
from small_run import make_run

import export_model
from consumers import verification


@pytest.fixture(scope="session")
def model_file(tmp_path_factory):
    """model.keras in its run directory. To be left as it is."""
    return make_run(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="session")
def exported(model_file, tmp_path_factory):
    """The base folder of an export with one version, verified by every consumer. To be left as it is."""
    output = tmp_path_factory.mktemp("export") / "model"
    export_model.main(["--model", str(model_file), "--output", str(output), "--top", "3"])
    return output


@pytest.fixture
def c_api_alone(monkeypatch):
    """Verification asks one consumer about the SavedModel: for exports that are about something else."""
    monkeypatch.setattr(verification, "CONSUMERS", {"c_api": verification.CONSUMERS["c_api"]})
