"""The wheel: built, installed elsewhere, imported from outside the checkout, and a network converted with it."""

import subprocess
import sys
import zipfile

import pytest
from programs import ROOT

import na_keras

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy of the files as they are now: setuptools writes build/ and *.egg-info beside its input."""
    folder = tmp_path_factory.mktemp("wheel")
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines():
        if (ROOT / name).is_file() and not name.startswith(("tests/", "docs/")):
            (folder / "checkout" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "checkout" / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([*PIP, "wheel", *options, str(folder / "checkout")], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel


def test_the_wheel_holds_the_library_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"na_keras", f"na_keras-{na_keras.__version__}.dist-info"}
    ours = {str(path.relative_to(ROOT)) for path in (ROOT / "na_keras").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours


def test_what_it_installs_elsewhere_builds_and_converts_a_network(wheel, tmp_path):
    site = tmp_path / "site"
    subprocess.run([*PIP, "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)], check=True)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import numpy, na_keras, na_keras.preprocessing, na_keras.data\n"
        "from na_keras.deploy import convert_tflite\n"
        "model = na_keras.NAMobileNetV2(alpha=0.35, input_shape=(32, 32, 3), classes=2)\n"
        "flatbuffer = convert_tflite(model, kind='float32')\n"
        "from ai_edge_litert.interpreter import Interpreter\n"
        "interpreter = Interpreter(model_content=flatbuffer)\n"
        "interpreter.allocate_tensors()\n"
        "(entry,), (end,) = interpreter.get_input_details(), interpreter.get_output_details()\n"
        "images = numpy.random.default_rng(0).uniform(0, 255, (1, 32, 32, 3)).astype('float32')\n"
        "interpreter.set_tensor(entry['index'], images)\n"
        "interpreter.invoke()\n"
        "difference = numpy.abs(interpreter.get_tensor(end['index']) - model.predict(images, verbose=0)).max()\n"
        "print(na_keras.__file__, na_keras.__version__, difference)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    file, version, difference = result.stdout.split()[-3:]
    assert (file, version) == (str(site / "na_keras" / "__init__.py"), na_keras.__version__)
    assert float(difference) < 1e-5  # probabilities, float32 in two programs
