"""Checkpoints that are whole or not there, whenever the process is killed.

    checkpoints/step-00000440/state.index, state.data-...   a complete checkpoint
    checkpoints/incoming/...                                being written; renamed to step-... when it is complete
    checkpoints/step-00000440.old/...                       set aside while another of the same step takes its name

Nothing is deleted before what replaces it is complete. Whatever is in `incoming` was begun after everything else, so
if it turns out to be complete (killed between the writing and the renaming) it is the newest state there is.

TensorFlow's files carry checksums, so a checkpoint that a disk has cut or changed is noticed when it is read; the one
before it is used then, and the user is told.
"""

import pathlib
import re
import shutil
import sys

import tensorflow as tf

KEEP = 2  # the newest, and the one before in case that is damaged
INCOMING, ASIDE = "incoming", ".old"
UNREADABLE = tf.errors.OpError, IndexError  # the reader's Python side turns a short read into IndexError


class CheckpointError(RuntimeError):
    """There are checkpoints, but none can be read."""


def newest_first(folder):
    """The folders of the complete checkpoints under their final names."""
    found = [path for path in pathlib.Path(folder).glob("step-*") if re.fullmatch(r"step-\d+", path.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(path):
    """The number in the name of a checkpoint's folder."""
    return int(path.name.removeprefix("step-").removesuffix(ASIDE))


def set_aside(folder):
    """The folders that an interrupted `save` left under their second name, newest first."""
    return sorted(pathlib.Path(folder).glob(f"step-*{ASIDE}"), key=step_of, reverse=True)


def is_complete(path):
    """Whether every tensor of a checkpoint's folder can be read; their checksums are compared."""
    try:
        reader = tf.train.load_checkpoint(str(path / "state"))
        for name in reader.get_variable_to_shape_map():
            reader.get_tensor(name)
    except (*UNREADABLE, ValueError):  # ValueError: no such files
        return False
    return True


def put(source, target):
    """Gives the complete checkpoint in `source` the name `target`; one that has it is deleted afterwards."""
    aside = target.with_name(target.name + ASIDE)
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    source.rename(target)
    shutil.rmtree(aside, ignore_errors=True)


def save(checkpoint, folder, step):
    """Writes the state as the checkpoint of `step`, then deletes all but the newest ones.

    A checkpoint of the same step is replaced. Killed at any moment, `restore` finds the old state or the new one.
    """
    folder.mkdir(exist_ok=True)
    incoming, target = folder / INCOMING, folder / f"step-{step:08d}"
    if incoming.exists():  # of a run that was killed while saving
        if not is_complete(incoming):
            shutil.rmtree(incoming)
        elif target.exists():
            put(incoming, target)
        else:  # of this step or an earlier one, and the newest state until this save is done
            aside = target.with_name(target.name + ASIDE)
            shutil.rmtree(aside, ignore_errors=True)
            incoming.rename(aside)
    checkpoint.write(str(incoming / "state"))
    put(incoming, target)
    for old in (*newest_first(folder)[KEEP:], *set_aside(folder)):
        shutil.rmtree(old)


def read(checkpoint, path, partial=False):
    """Reads one checkpoint.

    Args:
        checkpoint: tf.train.Checkpoint of what to fill.
        path: of the checkpoint's folder.
        partial: leave what else is there, instead of insisting that nothing is left.

    Raises:
        CheckpointError: it is damaged.
    """
    try:
        status = checkpoint.read(str(path / "state"))
        status.expect_partial()
        (status.assert_existing_objects_matched if partial else status.assert_consumed)()
    except UNREADABLE as error:
        raise CheckpointError(f"the checkpoint {path} is damaged and not used: {error}") from error


def restore(checkpoint, folder, partial=False):
    """Restores the newest readable checkpoint; `partial` as in `read`. Changes nothing in the folder.

    Returns:
        Its folder, or None if no checkpoint was ever complete.

    Raises:
        CheckpointError: there are checkpoints, but none can be read. Starting over would throw a run away silently.
    """
    incoming = pathlib.Path(folder) / INCOMING
    # Newest first; of one step the one that was set aside is the older.
    named = sorted([*newest_first(folder), *set_aside(folder)], key=lambda path: (step_of(path), path.suffix != ASIDE))
    for path in [*([incoming] if is_complete(incoming) else []), *reversed(named)]:
        try:
            read(checkpoint, path, partial)
            return path
        except CheckpointError as error:
            print(f"WARNING: {error}", file=sys.stderr)
    if named:
        raise CheckpointError(f"None of the checkpoints in {folder} can be read; the folder is kept as it is.")
    if incoming.exists():
        print(
            f"WARNING: {incoming} is incomplete: the run was killed while it wrote its first checkpoint, and there is "
            "no other. It starts from the beginning.",
            file=sys.stderr,
        )
    return None
