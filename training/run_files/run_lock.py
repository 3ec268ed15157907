"""One process at a time writes a run directory: a lock that the operating system gives back when its process ends."""

import contextlib
import os
import platform
import sys

from run_files import run_directory


class RunLock(contextlib.AbstractContextManager):
    """The lock of a run directory, an flock of the file LOCK in it. The file stays; only the lock on it counts.

    Of several machines that train together, the chief alone takes it.

    Args:
        directory: pathlib.Path of the run.
    """

    def __init__(self, directory):
        self.path, self.file = directory / run_directory.LOCK, None

    def take_existing(self):
        """Takes the lock of a directory in which a process has trained before, and leaves others as they are.

        Raises:
            BlockingIOError: another process has it; the message says which.
        """
        if self.path.exists():
            self.open()

    def take(self):
        """Takes the lock, if it is not taken yet, and notes in the file who has it. The directory must exist.

        Raises:
            BlockingIOError: another process has it; the message says which.
        """
        self.open()
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {platform.node()}")
        self.file.flush()

    def open(self):
        """Opens and locks the file, once; writes nothing into it."""
        if self.file is not None:
            return
        file = self.path.open("a+", encoding="utf-8")
        try:
            lock(file)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise BlockingIOError(
                f"{self.path.parent} is being trained by {holder}. Wait until that has ended, end it, or choose "
                "another --run-dir."
            ) from error
        self.file = file

    def __exit__(self, *error):
        """Gives the lock back."""
        if self.file is not None:
            self.file.close()


def lock(file):
    """Locks an open file for this process. Raises BlockingIOError if another has it."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError) as error:
        print(
            f"WARNING: {file.name} cannot be locked here ({error}): take care that no second process uses the folder.",
            file=sys.stderr,
        )
