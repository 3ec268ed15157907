"""Checkpoints that are whole or not there: each is a folder, written beside its name, and renamed when complete.

    checkpoints/step-00000440/state.index, state.data-...

TensorFlow's files carry checksums, so a checkpoint that a disk has cut or changed is noticed when it is read; the one
before it is used then, and the user is told.
"""

import pathlib
import shutil
import sys

import tensorflow as tf

KEEP = 2  # the newest, and the one before in case that is damaged
UNREADABLE = tf.errors.OpError, IndexError  # the reader's Python side turns a short read into IndexError


class CheckpointError(RuntimeError):
    """There are checkpoints, but none can be read."""


def newest_first(folder):
    """The folders of the complete checkpoints."""
    return sorted(folder.glob("step-*"), reverse=True)


def save(checkpoint, folder, step):
    """Writes the state as the checkpoint of `step`, then deletes all but the newest ones.

    A checkpoint of the same step is replaced: it holds the same state.
    """
    folder.mkdir(exist_ok=True)
    incoming, target = folder / "incoming", folder / f"step-{step:08d}"
    shutil.rmtree(incoming, ignore_errors=True)  # of a run that was killed while writing
    checkpoint.write(str(incoming / "state"))
    if target.exists():
        shutil.rmtree(target)
    incoming.rename(target)
    for old in newest_first(folder)[KEEP:]:
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
    """Restores the newest readable checkpoint; `partial` as in `read`.

    Returns:
        Its folder, or None if there is no checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, but none can be read. Starting over would throw a run away silently.
    """
    paths = newest_first(pathlib.Path(folder))
    for path in paths:
        try:
            read(checkpoint, path, partial)
            return path
        except CheckpointError as error:
            print(f"WARNING: {error}", file=sys.stderr)
    if paths:
        raise CheckpointError(f"None of the checkpoints in {folder} can be read; the folder is kept as it is.")
    return None
