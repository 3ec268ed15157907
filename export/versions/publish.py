"""Versions of a model in a base folder, as TF Serving watches it: every child with a number for a name is a version.

A server takes a version up as soon as its name appears. So a version is written under another name beside the others
and renamed at the end, which happens at once or not at all. Existing versions and other people's files are never
touched; two exports into one folder at a time get two numbers.
"""

import contextlib
import pathlib
import shutil
import signal
import tempfile

INCOMING = "incoming-"  # prefix of a version being written; an export that was killed leaves such a folder


def check_base_folder(output):
    """Checks that the folder `output`, if it is there, holds versions and nothing else.

    Raises:
        FileExistsError: the folder is a file, or holds something that no export wrote.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file; it is kept. Choose another --output.")
    for child in output.iterdir() if output.exists() else ():
        version = child.name.isdecimal() and (child / "manifest.json").exists()
        if not version and not child.name.startswith((INCOMING, ".")):  # hidden files are a file browser's
            raise FileExistsError(
                f"{output} is not empty and holds {child.name}, which no export wrote; it is kept. "
                "Choose another --output."
            )


def leftovers(output):
    """The unfinished versions in `output`, of other exports at work or of killed ones."""
    return sorted(output.glob(f"{INCOMING}*"))


def check_writable(output):
    """Tries to create a folder where the first folder of `output` will be, so that an export does not fail at its end.

    Raises:
        OSError: no folder can be created there.
    """
    existing = next(path for path in (output, *output.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=INCOMING, dir=existing):
            pass
    except OSError as error:
        raise OSError(f"Cannot write to {output}: {existing}: {error.strerror}. Choose another --output.") from error


class Stopped(BaseException):
    """SIGTERM or Ctrl-C has asked the program to stop; an ordinary `except` does not catch it.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number):
        super().__init__(f"Stopped by {signal.Signals(number).name}.")
        self.number = number


class StopRequest:
    """Whether a signal has asked the program to stop.

    A signal raises Stopped where the program happens to be, so that the unfinished version is removed. It is remembered
    too, for Python drops an exception that is raised inside of a destructor: whoever does the work asks `check` between
    its steps.
    """

    def __init__(self):
        self.number = None

    def listen(self):
        """Takes SIGTERM and SIGINT over, for the rest of the program."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self.receive)

    def receive(self, number, frame=None):
        """The signal handler. Raises Stopped."""
        self.number = number
        self.check()

    def check(self):
        """Raises Stopped if a signal has come."""
        if self.number is not None:
            raise Stopped(self.number)


@contextlib.contextmanager
def incoming_version(output):
    """A new folder in `output` to write a version into; removed at the end unless `release` has renamed it."""
    output.mkdir(parents=True, exist_ok=True)
    folder = pathlib.Path(tempfile.mkdtemp(prefix=INCOMING, dir=output))
    try:
        yield folder
    finally:
        if folder.exists():
            shutil.rmtree(folder)


def release(folder):
    """Makes the finished `folder` of `incoming_version` the next version beside it; returns the version's path."""
    folder.chmod(0o755)  # mkdtemp's folders are private; a server runs as another user
    while True:
        versions = [int(path.name) for path in folder.parent.iterdir() if path.name.isdecimal()]
        target = folder.parent / str(1 + max(versions, default=0))
        try:
            return folder.rename(target)
        except OSError:  # "not empty": another export has just taken this number
            if not target.exists():
                raise
