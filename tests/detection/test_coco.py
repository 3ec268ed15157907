"""Annotations in COCO's format: what is taken, what is counted as odd, what is refused by name."""

import json
import re

import pytest

from na_keras.detection import coco

IMAGE = {"id": 7, "file_name": "a.jpg", "width": 64, "height": 48}
SPARSE = [{"id": 90, "name": "brush"}, {"id": 1, "name": "person"}, {"id": 18, "name": "dog"}]


def box(bbox=(10, 10, 20, 20), category=18, image=7, **others):
    return {"id": 1, "image_id": image, "category_id": category, "bbox": list(bbox), **others}


@pytest.fixture
def write(tmp_path):
    def write(annotations, images=(IMAGE,), categories=SPARSE, name="instances_train.json"):
        content = {"images": list(images), "annotations": list(annotations), "categories": list(categories)}
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


def boxes_of(path):
    (photograph,) = coco.read_annotations(path).photographs
    return [(found.left, found.top, found.right, found.bottom) for found in photograph.boxes]


def test_sparse_ids_become_classes_from_one_on_in_their_order(write):
    annotations = coco.read_annotations(write([box(category=category) for category in (90, 18, 1)]))
    assert annotations.class_names == ("person", "dog", "brush")
    assert [found.label for found in annotations.photographs[0].boxes] == [3, 2, 1]


def test_boxes_over_the_edge_are_cut_and_counted(write):
    path = write([box((-5, 40, 30, 20)), box((60, 0, 4.004, 10)), box((100, 10, 20, 20)), box((10, 10, 0.5, 20))])
    assert boxes_of(path) == [(0, 40, 25, 48), (60, 0, 64, 10)]
    assert coco.read_annotations(path).odd == {"outside": 1, "degenerate": 2, "crowd": 0, "empty": 0}


def test_crowds_and_images_without_boxes_are_kept_and_counted(write):
    path = write([box(iscrowd=1)], images=[IMAGE, {**IMAGE, "id": 8, "file_name": "b.jpg"}])
    annotations = coco.read_annotations(path)
    assert [len(photograph.boxes) for photograph in annotations.photographs] == [1, 0]
    assert annotations.photographs[0].boxes[0].crowd
    assert any("1 images have no boxes" in line for line in annotations.summary)


REFUSED = {
    "an unknown category": (
        dict(annotations=[box(category=5)]),
        'values of category_id that are not in "categories": 5',
    ),
    "an unknown image": (dict(annotations=[box(image=9)]), 'values of image_id that are not in "images": 9'),
    "an image twice": (dict(annotations=[], images=[IMAGE, IMAGE]), 'more than once in "images": 7'),
    "a name twice": (
        dict(annotations=[], categories=[{"id": 1, "name": "dog"}, {"id": 2, "name": "dog"}]),
        "category names that are there more than once: dog",
    ),
    "a negative side": (dict(annotations=[box((1, 1, -2, 3))]), "1 of image 7: [1, 1, -2, 3]"),
    "three numbers": (dict(annotations=[box((1, 1, 2))]), "1 of image 7: [1, 1, 2]"),
    "an id in letters": (dict(annotations=[], images=[{**IMAGE, "id": "a"}]), "no whole numbers: 'a'"),
    "no size": (dict(annotations=[], images=[{"id": 7, "file_name": "a.jpg"}]), "['height', 'width'] of 7"),
    "no images": (dict(annotations=[], images=[]), "names no images"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_fault_is_refused_by_name(fault, write):
    content, message = REFUSED[fault]
    with pytest.raises(ValueError, match=re.escape(message)):
        coco.read_annotations(write(**content))


@pytest.mark.parametrize("text", ["[]", "{", '{"images": {}}', "\xff"])
def test_a_file_of_another_format_is_refused(text, tmp_path):
    (tmp_path / "a.json").write_text(text, "latin-1")
    with pytest.raises(ValueError, match="a.json"):
        coco.read_annotations(tmp_path / "a.json")


def test_splits_with_other_categories_are_refused(write):
    training = coco.read_annotations(write([box()]))
    other = [{"id": 1, "name": "person"}, {"id": 18, "name": "cat"}, {"id": 90, "name": "brush"}]
    validation = coco.read_annotations(write([box()], categories=other, name="instances_val.json"))
    with pytest.raises(ValueError, match=re.escape("(18, 'cat'); (18, 'dog')")):
        coco.check_same_categories(training, validation)
    coco.check_same_categories(training, training)


def test_a_split_is_found_where_cocos_archives_put_it(write, tmp_path):
    (tmp_path / "annotations").mkdir()
    path = write([box()], name="annotations/instances_train2017.json")
    with pytest.raises(FileNotFoundError, match="in a folder named train2017, train"):
        coco.find_split(tmp_path, "train")
    (tmp_path / "train2017").mkdir()
    assert coco.find_split(tmp_path, "train") == (path, tmp_path / "train2017")
    with pytest.raises(FileNotFoundError, match="instances_val"):
        coco.find_split(tmp_path, "val")
    with pytest.raises(FileNotFoundError, match="1 of the 1 images .* a.jpg. Are these the annotations of another"):
        coco.check_files(coco.read_annotations(path), tmp_path / "train2017")
