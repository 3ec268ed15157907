"""The wheel: built, installed elsewhere, imported from outside the checkout."""

import subprocess
import sys
import zipfile

from programs import ROOT

import na_keras


def test_the_wheel_holds_the_library_alone_and_works_elsewhere(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    # From a copy: setuptools writes build/ and *.egg-info beside its input.
    checkout = tmp_path / "checkout"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], check=True)
    tracked = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
    for name in tracked:  # with today's uncommitted changes
        if (ROOT / name).is_file():
            (checkout / name).parent.mkdir(parents=True, exist_ok=True)
            (checkout / name).write_bytes((ROOT / name).read_bytes())
    options = ["--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(tmp_path)]
    subprocess.run([*pip, "wheel", *options, str(checkout)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert tops == {"na_keras", f"na_keras-{na_keras.__version__}.dist-info"}
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--quiet", "--target", str(site), str(wheel)], check=True)
    program = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import na_keras, na_keras.preprocessing, na_keras.data\n"
        "model = na_keras.NAMobileNetV2(alpha=0.35, input_shape=(32, 32, 3), classes=2)\n"
        "print(na_keras.__file__, na_keras.__version__, model.output_shape)"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout.split()[:2] == [str(site / "na_keras" / "__init__.py"), na_keras.__version__]
