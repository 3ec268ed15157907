"""training/tables.py: the paper's numbers beside ours; accuracies of ours only from finished runs."""

import json

import pytest
from table_networks import DETECTORS, NETWORKS

import tables

COUNTS = {
    (builder.__name__, attention): (parameters, round(gflops * 1e9), round(gmacs * 1e9))
    for builder, attention, parameters, _, _, gflops, gmacs in NETWORKS
}


def write_run(directory, model="ResNet50", attention="na", dataset="imagenet2012", finished=True, **fields):
    directory.mkdir(parents=True)
    recipe = {"model": model, "attention": attention, "dataset": dataset, "size": 224, "epochs": 2, "model_options": {}}
    (directory / "recipe.json").write_text(json.dumps(recipe | fields))
    lines = ["epoch,validation_top1,validation_top5", "1,0.5,0.75", "2,0.751234,0.92"]
    (directory / "history.csv").write_text("\n".join(lines) + "\n")
    if finished:
        (directory / "model.keras").write_bytes(b"")


@pytest.fixture
def quick_counts(monkeypatch):
    """What test_complexity.py counts in the networks, without building them again."""
    monkeypatch.setattr(tables, "count", lambda model, attention: COUNTS[model, attention])
    monkeypatch.setattr(tables, "count_detector", lambda name, attention: DETECTORS[name, attention])


def test_every_row_equals_the_paper_and_accuracies_are_marked_as_its_own(quick_counts, capsys):
    assert tables.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "(paper)" in line]
    assert len(rows) == 11 + 3 + 3
    assert [word for row in rows for word in row if word[0] in "+-" and word != "-"] == ["+0.000", "+0.000"] * 10 + [
        "+0.00",
        "+0.000",
    ] + ["+0.000", "+0.000"] * 6
    detectors = [line.split() for line in lines if line.startswith(("RetinaNet", "Cascade R-CNN"))]
    assert [[word for word in row if word[0] in "+-"] for row in detectors] == [["+0.00", "+0.00"]] * 6
    assert rows[5][:6] == ["NA-ResNet50", "25.557", "25.557", "+0.000", "4.122", "4.122"]
    assert rows[5][-6:] == ["77.3078", "(paper)", "-", "93.6096", "(paper)", "-"]
    assert "no finished ImageNet run given" in lines[-1]


def test_a_difference_would_show():
    assert tables.difference(25.5576, "25.557") == ("25.558", "+0.001")
    assert tables.difference(4.1214, "4.122") == ("4.121", "-0.001")
    assert tables.difference(3.504906, "3.50") == ("3.50", "+0.00")


def test_our_accuracies_come_from_finished_imagenet_runs_alone(quick_counts, tmp_path, capsys):
    write_run(tmp_path / "done")
    write_run(tmp_path / "nested" / "none", attention=None)
    write_run(tmp_path / "unfinished", attention="se", finished=False)
    write_run(tmp_path / "digits", model="MobileNetV2", dataset="digits")
    write_run(tmp_path / "thin", model="MobileNetV2", model_options={"alpha": 0.35})
    write_run(tmp_path / "small", model="MobileNetV2", size=96)
    assert set(tables.finished_runs(tmp_path)) == {("ResNet50", "na"), ("ResNet50", None)}
    tables.main(["--runs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    row = next(line.split() for line in lines if line.startswith("NA-ResNet50"))
    assert row[-6:] == ["77.3078", "(paper)", "75.1234", "93.6096", "(paper)", "92.0000"]
    assert next(line.split() for line in lines if line.startswith("SE-ResNet50"))[-1] == "-"
    assert any(line.startswith("Run done: ResNet50 with attention na, top-1 75.1234 %") for line in lines)


def test_two_runs_of_one_network_are_both_shown(quick_counts, tmp_path, capsys):
    write_run(tmp_path / "first")
    write_run(tmp_path / "second")
    tables.main(["--runs", str(tmp_path), "--markdown"])
    output = capsys.readouterr().out
    assert "| 75.1234 75.1234 |" in output and "| ----" in output


def test_a_row_is_counted_in_the_network_itself():
    assert tables.count("MobileNetV2", "na") == (3_504_906, 320_236_288, 300_774_272)


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match="no folder"):
        tables.main(["--runs", str(tmp_path / "none")])
    write_run(tmp_path / "broken")
    (tmp_path / "broken" / "recipe.json").write_text("{}")
    with pytest.raises(SystemExit, match="cannot read.*broken"):
        tables.main(["--runs", str(tmp_path)])
