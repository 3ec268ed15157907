"""Checkpoints survive a death at any file operation of a save, and damage to the newest."""

import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from run_files import checkpoints
from run_files.checkpoints import newest_first

OPERATIONS = ("mkdir", "rename", "replace", "rmdir", "unlink")  # of os; pathlib and shutil use them


class Killed(BaseException):
    """Like SIGKILL, nothing in `save` may catch it."""


class Saver:
    """A checkpoint of one value; dying at the operations of its writing leaves nothing, no index, or all of it."""

    def __init__(self):
        self.value = tf.Variable(0.0)
        self.checkpoint = tf.train.Checkpoint(value=self.value)

    def write(self, prefix):
        os.mkdir(os.path.dirname(prefix))
        self.checkpoint.write(prefix)
        os.rename(f"{prefix}.index", f"{prefix}.hidden")
        os.rename(f"{prefix}.hidden", f"{prefix}.index")


@pytest.fixture
def killer(monkeypatch):
    """A function that makes the k-th file operation from now on, and only that, raise Killed instead; None: no more."""
    left = [None]

    def count():
        if left[0] is not None:
            left[0] -= 1
            if left[0] < 0:
                left[0] = None
                raise Killed

    def counted(operation):
        def run(*arguments, **options):
            count()
            return operation(*arguments, **options)

        return run

    for name in OPERATIONS:
        monkeypatch.setattr(os, name, counted(getattr(os, name)))

    def kill_at(operation):
        left[0] = operation

    return kill_at


def restored(folder):
    """The value in the checkpoint that a new process would go on from, None if it would start over."""
    value = tf.Variable(-1.0)
    return None if checkpoints.restore(tf.train.Checkpoint(value=value), folder) is None else float(value)


# Steps saved before, and the step at whose saving the process dies: the first, the next, the same again (at the end of
# an epoch, before and after its evaluation).
SAVES = {"first": ([], 5), "next": ([5, 10, 15], 20), "same": ([5, 10], 10), "same, and alone": ([10], 10)}


@pytest.mark.parametrize("name", SAVES)
def test_a_death_at_any_file_operation_of_a_save_loses_nothing(tmp_path, killer, name):
    """Also when the next save dies as well, whatever the first death left behind."""
    before, step = SAVES[name]
    saver = Saver()
    for number, earlier in enumerate(before, start=1):
        saver.value.assign(number)
        checkpoints.save(saver, tmp_path / "whole", earlier)
    old = len(before)

    def save_and_die(folder, value, step, operation):
        saver.value.assign(value)
        killer(operation)
        try:
            checkpoints.save(saver, folder, step)
        except Killed:
            return True
        killer(None)
        return False

    operation, states, left_behind = 0, set(), set()
    while True:
        folder = tmp_path / f"{operation}"
        if before:
            shutil.copytree(tmp_path / "whole", folder)
        died = save_and_die(folder, old + 1, step, operation)
        state = restored(folder)
        assert state in ((old or None), old + 1)  # the old state or the new one
        if not died:
            break
        states.add(state)
        listing = (state, *sorted(str(path.relative_to(folder)) for path in folder.rglob("*")))
        if listing in left_behind:
            operation += 1
            continue
        left_behind.add(listing)
        # The resumed run saves again, the same step or the next, and dies again at every operation of that.
        for again in (step, step + 5):
            second = 0
            while True:
                copy = tmp_path / f"{operation}-{again}-{second}"
                if folder.exists():
                    shutil.copytree(folder, copy)
                died_again = save_and_die(copy, old + 2, again, second)
                assert restored(copy) in (state, old + 2), (operation, again, second)
                shutil.rmtree(copy, ignore_errors=True)
                if not died_again:
                    break
                second += 1
        operation += 1
    assert operation >= 5 and states == {old or None, old + 1}  # deaths before and after the decisive moment
    assert {path.name for path in newest_first(folder)} == {path.name for path in folder.iterdir()}  # no leftovers
    assert newest_first(folder)[0].name == f"step-{step:08d}" and len(newest_first(folder)) <= checkpoints.KEEP


def test_a_complete_checkpoint_under_any_name_of_a_save_is_found(tmp_path, capsys):
    """Runs that an older version left: it deleted the old folder before it renamed the new one."""
    saver = Saver()
    saver.value.assign(7)
    for name in ("incoming", "step-00000009.old"):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        checkpoints.save(saver, folder, 9)
        (folder / "step-00000009").rename(folder / name)
        assert restored(folder) == 7 and not capsys.readouterr().err
        # A half-deleted folder of the same step beside it does not hide it, nor what is next saved.
        (folder / "step-00000009").mkdir()
        assert restored(folder) == 7
        saver.value.assign(7)
        checkpoints.save(saver, folder, 9)
        assert restored(folder) == 7 and [path.name for path in folder.iterdir()] == ["step-00000009"]


def test_a_run_killed_in_its_first_checkpoint_starts_over_and_says_so(tmp_path, capsys):
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming" / "state.index").write_bytes(b"half")
    assert restored(tmp_path) is None
    assert "incoming is incomplete" in capsys.readouterr().err
    assert restored(tmp_path / "none") is None and not capsys.readouterr().err


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(tmp_path):
    checkpoint = tf.train.Checkpoint(value=tf.Variable(1.0))
    for step in (1, 2):
        checkpoints.save(checkpoint, tmp_path, step)
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000001.old")
    for path in tmp_path.glob("*/state.index"):
        path.write_bytes(b"")
    with pytest.raises(checkpoints.CheckpointError, match="None of the checkpoints .* the folder is kept"):
        checkpoints.restore(checkpoint, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_damage_to_the_newest_checkpoint_costs_the_steps_since_the_one_before(tmp_path, capsys):
    value = tf.Variable(np.zeros(100, "float32"))
    checkpoint = tf.train.Checkpoint(value=value)
    for step in (1, 2, 3, 3):
        value.assign(np.full(100, step, "float32"))
        checkpoints.save(checkpoint, tmp_path, step)
    assert {path.name for path in tmp_path.iterdir()} == {"step-00000003", "step-00000002"}
    assert checkpoints.restore(checkpoint, tmp_path).name == "step-00000003" and value.numpy()[0] == 3
    (data,) = (tmp_path / "step-00000003").glob("state.data*")
    data.write_bytes(data.read_bytes()[:100])
    assert checkpoints.restore(checkpoint, tmp_path).name == "step-00000002" and value.numpy()[0] == 2
    assert "step-00000003 is damaged and not used" in capsys.readouterr().err
