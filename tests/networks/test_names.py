"""The grammar of --model and --attention, and what is refused before anything is built."""

import keras
import pytest

from na_keras.layers import SimAM
from na_keras.models import MODELS, ResNet50
from na_keras.networks import Network, import_modules, network_name, resolve_attention


def test_names_of_this_library_and_of_keras_applications_in_any_case():
    assert network_name("resnet50") == ("ours", "ResNet50", ResNet50)
    name = network_name("keras.applications.resnet50")
    assert name == ("applications", "keras.applications.ResNet50", keras.applications.ResNet50)
    assert {network_name(name.upper()).text for name in MODELS} == set(MODELS)


def test_an_existing_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "keras.applications.h5").write_bytes(b"")
    assert network_name("keras.applications.h5").kind == "file"
    (tmp_path / "ResNet50").mkdir()
    with pytest.raises(ValueError, match="ResNet50 is a path here, .*Received: a folder"):
        network_name("ResNet50")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "ResNet51",
            r"one of \[.*\], keras.applications.NAME, or the path .*'ResNet51'. Did you mean .*ResNet5",
        ),
        ("EfficientNetB0", "Did you mean keras.applications.EfficientNetB0"),
        ("keras.applications.EfficientNetBO", "Did you mean EfficientNetB"),
        ("keras.applications.imagenet_utils", "must be a builder of keras.applications"),
        ("missing.keras", "there is no file missing.keras"),
    ],
)
def test_an_unknown_name_is_refused_on_one_line_with_near_ones(text, message):
    with pytest.raises(ValueError, match=message) as error:
        network_name(text)
    assert "\n" not in str(error.value)


def test_attention_of_ones_own_is_found_beside_the_user(tmp_path, monkeypatch):
    (tmp_path / "modules_of_mine.py").write_text("from na_keras import SimAM as Mine\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", __import__("sys").path.copy())
    assert resolve_attention("modules_of_mine:Mine") is SimAM
    assert resolve_attention("na") == "na" and resolve_attention(None) is None
    with pytest.raises(ValueError, match="there is no class Yours in modules_of_mine"):
        resolve_attention("modules_of_mine:Yours")
    for text in ("nan", "a.b", "a:b:c"):
        with pytest.raises(ValueError, match="attention must be one of .*or package.module:Class"):
            resolve_attention(text)
    with pytest.raises(ValueError, match="no_such_module cannot be imported: ModuleNotFoundError"):
        import_modules(["no_such_module"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model": "ResNet50", "where": "bn$"}, "--where and --preserve are about attention"),
        ({"model": "ResNet50", "where": "bn$", "attention": "na"}, "--where is not for networks of this library"),
        ({"model": "ResNet50", "preserve": True, "attention": "na"}, "there are none: give --weights"),
        ({"model": "ResNet50", "pixels": "tf"}, "ResNet50 takes raw pixels"),
        ({"model": "ResNet50", "weights": "imagenet"}, "take torchvision-v1"),
        ({"model": "keras.applications.VGG16", "options": {"classes": 3}}, "classes is decided by the program"),
    ],
)
def test_what_would_have_no_effect_is_refused_with_what_to_do(fields, message):
    with pytest.raises(ValueError, match=message):
        Network(**fields)
