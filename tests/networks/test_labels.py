"""Files of class names, as any editor writes them."""

import pytest

from na_keras.model_files import read_labels


@pytest.mark.parametrize("content", [b"cat\ndog\n", b"\xef\xbb\xbfcat\r\ndog\r\n", b"cat\ndog"])
def test_class_names_are_read_as_any_editor_writes_them(content, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content)
    assert read_labels(tmp_path / "labels.txt") == ["cat", "dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"cat\n\ndog\n", "Line 2 of 3 is empty"), (b"cat\n \n", "Line 2 of 2"), (b"\xff\xfe", "labels.txt is not UTF-8")],
)
def test_empty_and_undecodable_class_names_are_refused_with_the_line(content, message, tmp_path):
    (tmp_path / "labels.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_labels(tmp_path / "labels.txt")
