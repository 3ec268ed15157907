"""What becomes of a version with findings: what failed is named, gates are accepted, other files published."""

import json
import math
import pathlib
import types
import urllib.request

import keras
import pytest

import export_model
import serving_client
from consumers.gates import Finding
from latency import report
from na_keras import NormalizationAttention, deploy
from versions import manifest, tflite_folder, writer

INT8 = "model_int8.tflite: differs by 7e-01"
FINDINGS = [
    Finding(INT8, "reduced-precision", "model_int8.tflite"),
    Finding("model_dynamic.tflite: answers are not finite", None, "model_dynamic.tflite"),
]
SPREAD = Finding("answers are alike", "equal-answers")


def judge(folder, found, accept=(), keep_going=False, failed=()):
    """The manifest's entries and checks after writer.judge, on a folder with three files."""
    (folder / "tflite").mkdir(exist_ok=True)
    names = [f"model_{kind}.tflite" for kind in ("float32", "int8", "dynamic")]
    for name in (*names, "model_int8.tensors.csv"):
        (folder / "tflite" / name).touch()
    entries = {"tflite": dict.fromkeys(names, {}), "failed": dict(failed)}
    checks = {key: dict.fromkeys(names, 0) for key in ("largest_difference", "reduced_precision", "consumers")}
    plan = types.SimpleNamespace(accept=accept, keep_going=keep_going)
    writer.judge(folder, plan, entries, checks, found)
    return entries, checks


def test_all_that_failed_is_named_at_once_with_what_may_be_done(tmp_path):
    with pytest.raises(RuntimeError) as error:
        judge(tmp_path, FINDINGS, failed={"model.onnx": "no such operation"})
    text = str(error.value)
    for sentence in ("failed verification", *FINDINGS, "model.onnx: no such operation", "--keep-going"):
        assert sentence in text
    assert "--accept reduced-precision." in text


def test_with_keep_going_what_passed_stays_and_what_failed_is_recorded(tmp_path):
    entries, checks = judge(tmp_path, FINDINGS, keep_going=True, failed={"model.onnx": "no such operation"})
    assert [path.name for path in (tmp_path / "tflite").iterdir()] == ["model_float32.tflite"]
    assert set(entries["failed"]) == {"model_int8.tflite", "model_dynamic.tflite", "model.onnx"}
    assert set(entries["tflite"]) == set(checks["reduced_precision"]) == {"model_float32.tflite"}


def test_an_accepted_gate_is_recorded_and_what_has_none_is_refused_all_the_same(tmp_path):
    _, checks = judge(tmp_path, [FINDINGS[0], SPREAD], accept=("reduced-precision", "equal-answers"))
    assert checks["accepted"] == [
        {"gate": "reduced-precision", "artifact": "model_int8.tflite", "finding": INT8},
        {"gate": "equal-answers", "artifact": None, "finding": "answers are alike"},
    ]
    with pytest.raises(RuntimeError, match="not finite"):
        judge(tmp_path, FINDINGS, accept=("reduced-precision",))


def test_what_concerns_the_whole_version_is_not_left_out(tmp_path):
    with pytest.raises(RuntimeError, match="--accept equal-answers"):
        judge(tmp_path, [SPREAD], keep_going=True)


def test_one_kind_that_does_not_convert_does_not_lose_the_others(model_file, tmp_path, monkeypatch, capsys):
    def convert(model, kind="float32", *arguments, **options):
        if kind == "dynamic":
            raise RuntimeError("no such kernel")
        return genuine(model, kind, *arguments, **options)

    genuine = deploy.convert_tflite
    monkeypatch.setattr(deploy, "convert_tflite", convert)
    empty = {"tolerance": 0, **{key: {} for key in ("largest_difference", "reduced_precision", "consumers", "skipped")}}
    monkeypatch.setattr(writer, "check_artifacts", lambda version, reference: (empty, []))
    monkeypatch.setattr(writer.warmup, "replay", lambda folder: [])
    arguments = ["--model", str(model_file), "--output", str(tmp_path / "out"), "--tflite", "dynamic", "float32"]
    with pytest.raises(SystemExit, match="(?s)nothing was published. Not all.*model_dynamic.tflite: no such kernel"):
        export_model.main(arguments)
    export_model.main([*arguments, "--keep-going"])
    assert "left out: model_dynamic.tflite: no such kernel" in capsys.readouterr().err
    version = tmp_path / "out" / "1"
    assert [path.name for path in (version / "tflite").iterdir()] == ["model_float32.tflite"]
    assert json.loads((version / "manifest.json").read_text())["failed"] == {"model_dynamic.tflite": "no such kernel"}


def test_attention_in_a_nested_backbone_is_seen():
    def nested(*options):
        image = keras.Input((8, 8, 3))
        inner = keras.Model(image, NormalizationAttention(*options)(image))
        outer = keras.Input((8, 8, 3))
        return keras.Model(outer, inner(outer))

    assert export_model.unsuitable_kinds(("float32", "int8_float_gate"), nested()) == {}
    assert set(export_model.unsuitable_kinds(("float32", "int8", "int16x8"), nested("l1"))) == {"int8", "int16x8"}


def test_a_manifest_is_strict_json(tmp_path, monkeypatch):
    monkeypatch.setattr(manifest, "signatures", lambda folder: {})
    monkeypatch.setattr(manifest, "fingerprint", lambda folder: {})
    manifest.write_manifest(tmp_path, checks={"a": [math.nan, 1.5], "b": (math.inf,)})

    def refuse(constant):
        raise AssertionError(constant)

    content = json.loads((tmp_path / "manifest.json").read_text(), parse_constant=refuse)
    assert content["checks"] == {"a": [None, 1.5], "b": [None]}


def test_a_constant_gate_does_not_hide_the_others():
    gates = [types.SimpleNamespace(is_gate=True, correlation=c, sqnr=9.0) for c in (0.9, math.nan, 0.5)]
    assert tflite_folder.summarise_gates(gates)["correlation"] == {"lowest": 0.5, "median": 0.9}


@pytest.mark.parametrize(
    ("host", "direct"), [("localhost:8501", True), ("127.0.0.2:1", True), ("[::1]:1", True), ("models:1", False)]
)
def test_requests_to_this_machine_go_through_no_proxy(host, direct, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    asked = []

    def http_open(self, request):
        asked.append(request.host)
        return types.SimpleNamespace(code=200, msg="", info=dict)

    monkeypatch.setattr(urllib.request, "_opener", None)  # which urlopen keeps with the proxies of its first call
    monkeypatch.setattr(urllib.request.HTTPHandler, "http_open", http_open)
    serving_client.open_url(urllib.request.Request(f"http://{host}"), 1)
    assert asked == [host if direct else "127.0.0.1:9"]


def test_the_benchmark_names_the_sizes_that_it_measured():
    rows = [report.Row("given", "tflite", 1, "a", 1.0, side=side) for side in (96, 32, 96, None)]
    assert report.image_sizes(rows, 224) == [32, 96] and report.image_sizes(rows[-1:], 224) == [224]
    assert "images 32 x 32, 96 x 96;" in report.circumstances(1, 1, [32, 96])


def test_sample_images_are_what_verification_asks_about(model_file, tmp_path):
    import tensorflow as tf

    for value in (3, 200):
        data = tf.io.encode_png(tf.fill((60, 60, 3), tf.cast(value, tf.uint8))).numpy()
        pathlib.Path(tmp_path, f"{value}.png").write_bytes(data)
    arguments = ["--model", str(model_file), "--output", str(tmp_path / "out"), "--sample-images", str(tmp_path)]
    plan, _ = export_model.make_plan(export_model.parse_arguments(arguments))
    assert plan.kinds == ("float32",) and plan.reference["origin"] == "sample images"
    assert sorted({image.mean() for image in plan.reference["images"]}) == [3, 200]
