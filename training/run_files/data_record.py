"""What the data of a run is: data.json in its directory. A resumed run goes on with the same data, or with other data
that somebody accepted.

    class_names    in the order of the labels
    multi_label    true, where an image has any number of them; not there otherwise
    splits         training and validation: number of images, and what the source says of itself (Source.details)
    shift          see Epochs
    changes        what was accepted, when, and after how many steps of the run
"""

import dataclasses
import datetime
import hashlib
import json

from run_files import run_directory

SPLITS = ("training", "validation")
SHOWN = 5  # of each kind of difference, for a message
DIGESTS = {  # of a split's details, and what differs where one does
    "sha256_of_names_and_sizes": "names or sizes",
    "sha256_of_names_sizes_and_labels": "names, sizes or labels",
}


def describe_split(source):
    """A split as it is stored."""
    return json.loads(json.dumps({"images": source.count, **source.details()}))


def describe(sources):
    """The data as it is stored. `sources`: (training, validation)."""
    splits = {name: describe_split(source) for name, source in zip(SPLITS, sources, strict=True)}
    kind = {"multi_label": True} if sources[0].multi_label else {}
    return json.loads(json.dumps({"class_names": sources[0].class_names, **kind, "splits": splits}))


def is_multi_label(record):
    """Whether images of the data of a record have any number of classes; without a record they have not."""
    return bool((record or {}).get("multi_label"))


def class_differences(before, now):
    """Lines: which class names came, went, or stand elsewhere."""
    lines = []
    for what, names in (("gone", [n for n in before if n not in now]), ("new", [n for n in now if n not in before])):
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            lines.append(f"classes that are {what}: {', '.join(names[:SHOWN])}{more}")
    if not lines and before != now:
        lines.append("the classes are in another order")
    return lines


def split_differences(split, before, now):
    """Lines: numbers of images, and whatever else differs between two descriptions of a split."""
    lines = []
    for key in sorted({*before, *now} - {"images_per_class", *DIGESTS}):
        if before.get(key) != now.get(key):
            lines.append(f"{split} {key}: {before.get(key)} there, {now.get(key)} now")
    counts, counts_now = before.get("images_per_class", {}), now.get("images_per_class", {})
    if not (counts and counts_now):  # those that were counted for class weights are counted once
        counts = counts_now = {}
    differing = [name for name in {**counts, **counts_now} if counts.get(name, 0) != counts_now.get(name, 0)]
    for name in differing[:SHOWN]:
        lines.append(f"{split} images of {name}: {counts.get(name, 0)} there, {counts_now.get(name, 0)} now")
    if len(differing) > SHOWN:
        lines.append(f"{split} images of {len(differing) - SHOWN} more classes")
    for digest, what in DIGESTS.items():
        if not lines and before.get(digest) != now.get(digest):
            lines.append(f"{split}: as many images, but some files have other {what}")
    return lines


def differences(before, now):
    """Lines that say how two descriptions differ; a key that one of them lacks is no difference but for class names."""
    lines = class_differences(before["class_names"], now["class_names"])
    for split, description in before.get("splits", {}).items():
        lines += split_differences(split, description, now["splits"][split])
    return lines


def read(directory):
    """The record of the run in `directory`; of a run of before there were records, what labels.txt says, or None."""
    if (directory / run_directory.DATA).exists():
        return json.loads((directory / run_directory.DATA).read_text("utf-8"))
    if (directory / run_directory.LABELS).exists():
        return {"class_names": (directory / run_directory.LABELS).read_text("utf-8").splitlines()}
    return None


def changes_of_split(directory, split, source):
    """Lines that say how a source differs from what the run in `directory` has recorded of its split of that name; none
    without a record.
    """
    before = (read(directory) or {}).get("splits", {}).get(split)
    return split_differences(split, before, describe_split(source)) if before else []


@dataclasses.dataclass
class Epochs:
    """Counts epochs, from 0, in the finished steps of a run; their length may have changed with the data.

    Attributes:
        steps: of one epoch of the data as it is now.
        shift: epoch e begins after e * steps - shift steps of the run. 0, unless other data was accepted on the way;
            then such that the epoch that begins with the new data has the number that follows.
    """

    steps: int
    shift: int = 0

    def position(self, step):
        """(epoch, its finished steps) after `step` steps."""
        return divmod(step + self.shift, self.steps)

    def first_step(self, epoch):
        """Steps of the run before that epoch."""
        return epoch * self.steps - self.shift


@dataclasses.dataclass
class DataRecord:
    """The data of a run as it is now, and what of it was not so before.

    Attributes:
        data: see `describe`.
        before: the stored record, None of a run that begins or has none.
        accepted: the differences between both, which somebody accepted now.
    """

    data: dict
    before: dict | None = None
    accepted: tuple[str, ...] = ()

    @property
    def shift(self):
        """Of the stored record."""
        return (self.before or {}).get("shift", 0)

    @property
    def fingerprint(self):
        """A whole number below 2**40 that is the same for the same data."""
        return int(hashlib.sha256(json.dumps(self.data).encode()).hexdigest()[:10], 16)

    @property
    def missing(self):
        """Whether nothing is stored yet of the data's splits."""
        return "splits" not in (self.before or {})

    def accept(self, epochs, step, batch_size):
        """Shifts `epochs`, where the accepted data is other data to train on, so that the epoch in which the run stands
        begins with it.

        Args:
            epochs: Epochs of the data as it is now; changed.
            step: finished steps of the run.
            batch_size: of the recipe.

        Returns:
            Steps of that epoch that were done with the old data, and are done again with the new.
        """
        now = self.data["splits"]["training"]
        before = self.before.get("splits", {"training": {"images": now["images"]}})["training"]
        if before == now:
            return 0
        epoch, done = Epochs(before["images"] // batch_size, self.shift).position(step)
        epochs.shift = epoch * epochs.steps - step
        return done

    def write(self, directory, shift, step):
        """Stores the record, and with it what was accepted after `step` steps."""
        changes = list((self.before or {}).get("changes", []))
        if self.accepted:
            time = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            changes.append({"accepted": time, "step": step, "differences": list(self.accepted)})
        record = {**self.data, "shift": shift, "changes": changes}
        run_directory.write_text(directory / run_directory.DATA, json.dumps(record, indent=2) + "\n")


def check(directory, sources, resumed, accept):
    """Compares the data with what the run in `directory` was trained on so far; writes nothing.

    Args:
        directory: pathlib.Path.
        sources: (training, validation).
        resumed: whether the directory holds a run.
        accept: whether other data is accepted.

    Returns:
        DataRecord.

    Raises:
        ValueError: other data, not accepted; another number of classes than the network has, or another kind of labels.
    """
    now = describe(sources)
    before = read(directory) if resumed else None
    if before is None:
        return DataRecord(now)
    if is_multi_label(before) != is_multi_label(now):
        there, here = (
            "a column for each class" if is_multi_label(record) else "one class an image" for record in (before, now)
        )
        raise ValueError(
            f"{directory} holds a run of data with {there}; it is kept. The data now has {here}: start another run, "
            "with another --run-dir."
        )
    found = differences(before, now)
    if not found:
        return DataRecord(now, before)
    text = f"{directory} holds a run of other data; it is kept. Differences:\n" + "\n".join(
        f"  {line}" for line in found
    )
    if len(before["class_names"]) != len(now["class_names"]):
        raise ValueError(
            f"{text}\nIts network has {len(before['class_names'])} classes, the data {len(now['class_names'])}: start "
            "another run, with another --run-dir."
        )
    if not accept:
        raise ValueError(
            f"{text}\nResume with the data it was started with; or go on with this data by --accept-data-change, which "
            "is recorded in the run; or choose another --run-dir."
        )
    return DataRecord(now, before, tuple(found))
