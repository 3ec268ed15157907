"""na_keras.ratio_bars: which bars stand together, where they end, and what is beside them."""

import pytest

from na_keras import ratio_bars
from na_keras.ratio_bars import Bar


def group(name, count):
    return [Bar(name, f"module {index}", 1.1, 1.0, 1.2) for index in range(count)]


def test_a_part_has_whole_groups_and_at_most_ten_bars_where_a_group_has_no_more():
    sizes = {"a": 4, "b": 5, "c": 2, "d": 12, "e": 1}
    parts = ratio_bars.parts_of([bar for name, count in sizes.items() for bar in group(name, count)])
    assert [[bar.group for bar in part] for part in parts] == [["a"] * 4 + ["b"] * 5, ["c"] * 2, ["d"] * 12, ["e"]]
    assert ratio_bars.parts_of([]) == [[]]


@pytest.fixture
def axes():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    return figure.subplots()


def test_a_bar_reaches_from_one_to_its_ratio_and_its_group_is_named_once(axes):
    bars = [Bar("layer", "se again", 0.98, 0.9, 1.01), Bar("layer", "na", 1.1, 1.05, 1.2, {"goal": 1.15})]
    bars += [Bar("step", "na", 1.3, 1.3, 1.3, {"SE and margin": 1.2})]
    legend = ratio_bars.draw_part(axes, bars, {"se again": "0.75", "na": "C1"})
    ends = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert ends == [(1, pytest.approx(end)) for end in (0.98, 1.1, 1.3)]
    spreads = [tuple(segment[:, 0]) for lines in axes.collections for segment in lines.get_segments()]
    assert spreads == [pytest.approx(spread) for spread in ((0.9, 1.01), (1.05, 1.2), (1.3, 1.3))]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["layer", "", "step"]
    assert list(legend) == ["se again", "na", "goal", "SE and margin"]
    marks = {name: legend[name].get_xydata().tolist() for name in ("goal", "SE and margin")}
    assert marks == {"goal": [[1.15, 1]], "SE and margin": [[1.2, 2]]}


def test_nothing_measured_is_a_picture_too(tmp_path):
    pytest.importorskip("matplotlib")
    ratio_bars.draw([], "time", "a machine; a day", tmp_path / "bars.png")
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")
