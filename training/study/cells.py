"""Running the cells of a study, each in a process of its own, and showing how far they are."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time

from na_keras.text_table import text_table
from run_files import run_directory, run_lock
from study.record import CELLS, LOGS

EVERY = 0.5  # seconds between two looks at the processes
SHOWN_EVERY = 2.0  # seconds between two tables on a terminal


@dataclasses.dataclass
class Running:
    """A process that trains a cell. Attributes: the cell, the process, the open log, which of the devices it has."""

    cell: object
    process: subprocess.Popen
    log: object
    device: str | None


def in_words(seconds):
    """A duration to the minute: "3 h 05 min"."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{max(minutes, 1)} min"


class Board:
    """What is done and the time to go: a table that stands still on a terminal, a line for each event elsewhere.

    Args:
        study: Study.
        cells: those that were asked for.
        stream: where to.
    """

    def __init__(self, study, cells, stream=None):
        self.study, self.cells, self.stream = study, cells, stream or sys.stdout
        self.states, self.lines, self.shown = {}, 0, 0.0  # states: {Cell: text} of failed ones
        self.start, self.done_before = time.monotonic(), self.epochs_done()

    def epochs_of(self, cell):
        """Epochs that a cell has behind it."""
        if cell in self.study.histories:
            return self.study.content["recipe"]["epochs"]
        path = self.study.directory_of(cell) / run_directory.HISTORY
        return max(0, path.read_text("utf-8").count("\n") - 1) if path.exists() else 0

    def epochs_done(self):
        """Of all cells."""
        return sum(map(self.epochs_of, self.cells))

    def text_of(self, cell, running):
        """A cell in the table."""
        if cell in self.study.histories:
            return f"{100 * self.study.result(cell, self.study.metric):.2f}"
        if cell in running:
            return f"{self.epochs_of(cell)}/{self.study.content['recipe']['epochs']}"
        return self.states.get(cell, ".")

    def time_to_go(self):
        """In words, by the epochs since this process began; empty before the first."""
        done = self.epochs_done()
        since, wanted = done - self.done_before, len(self.cells) * self.study.content["recipe"]["epochs"]
        lost = sum(self.study.content["recipe"]["epochs"] - self.epochs_of(cell) for cell in self.states)
        if since <= 0 or wanted - done - lost <= 0:
            return ""
        return f", about {in_words((time.monotonic() - self.start) / since * (wanted - done - lost))} to go"

    def headline(self, running):
        """Numbers of cells and the time to go."""
        finished = sum(cell in self.study.histories for cell in self.cells)
        failed = f", {len(self.states)} failed" if self.states else ""
        return f"{finished} of {len(self.cells)} cells finished, {len(running)} running{failed}{self.time_to_go()}"

    def show(self, running, event=None):
        """Shows how things stand now.

        Args:
            running: set of Cells.
            event: what has just happened, a sentence; None: time has passed.
        """
        now = time.monotonic()
        if not self.stream.isatty():
            if event:
                print(f"{event} ({self.headline(running)})", file=self.stream, flush=True)
            return
        if event is None and now - self.shown < SHOWN_EVERY:
            return
        self.shown = now
        seeds = sorted({cell.seed for cell in self.cells})
        modules = list(dict.fromkeys(cell.attention for cell in self.cells))
        of = {(cell.attention, cell.seed): self.text_of(cell, running) for cell in self.cells}
        rows = [[name, *(of[name, seed] for seed in seeds)] for name in modules]
        lines = [*text_table(["", *(f"seed {seed}" for seed in seeds)], rows).splitlines(), self.headline(running)]
        up = f"\x1b[{self.lines}A\x1b[J" if self.lines else ""  # to where the last table began, and clear from there
        above = f"{event}\n" if event else ""
        print(f"{up}{above}" + "\n".join(lines), file=self.stream, flush=True)
        self.lines = len(lines)


class Runner:
    """Runs cells, several at a time, until all are finished or have failed, or a signal comes.

    Args:
        study: Study.
        command: function of a Cell -> the command line of its run.
        jobs: processes at a time.
        devices: numbers of GPUs as text, one a process; empty: each process sees all that there is.
    """

    def __init__(self, study, command, jobs, devices=()):
        self.study, self.command, self.running, self.failed = study, command, [], {}
        self.free = list(devices or [None] * jobs)[:jobs]

    def run(self, cells, interruption, board):
        """Runs the cells that are not finished.

        Args:
            cells: Cells.
            interruption: terminal.Interruption that is active.
            board: Board.

        Returns:
            {Cell: why it failed}.
        """
        waiting = [cell for cell in cells if cell not in self.study.histories]
        for cell in [cell for cell in waiting if self.study.is_trained(cell)]:  # the program ended just then
            self.conclude(cell, board)
            waiting.remove(cell)
        busy = set()  # cells whose processes outlived a killed compare.py
        while (waiting or self.running) and not interruption.signal:
            for cell in list(waiting):
                if not self.free:
                    break
                if self.is_busy(cell):
                    if cell not in busy:
                        busy.add(cell)
                        board.show(
                            self.cells_running, f"{cell.name} is being trained by another process: waiting for it."
                        )
                    continue
                waiting.remove(cell)
                if self.study.is_trained(cell):
                    self.conclude(cell, board)
                else:
                    self.start(cell)
                    board.show(self.cells_running, f"{cell.name} begins.")
            time.sleep(EVERY)
            self.collect(board)
            board.show(self.cells_running)
        if interruption.signal:
            self.stop()
        return self.failed

    @property
    def cells_running(self):
        """The cells that are being trained."""
        return {run.cell for run in self.running}

    def is_busy(self, cell):
        """Whether another process trains the cell."""
        with run_lock.RunLock(self.study.directory_of(cell)) as lock:
            try:
                lock.take_existing()
            except BlockingIOError:
                return True
        return False

    def start(self, cell):
        """Starts a cell's process. It has a session of its own: Ctrl-C is for compare.py, which passes it on."""
        (self.study.directory / CELLS).mkdir(exist_ok=True)
        (self.study.directory / LOGS).mkdir(exist_ok=True)
        device, environment = self.free.pop(0), dict(os.environ)
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        log = (self.study.directory / LOGS / f"{cell.name}.log").open("ab")
        process = subprocess.Popen(
            self.command(cell),
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self.running.append(Running(cell, process, log, device))

    def collect(self, board):
        """Takes over what has ended."""
        for run in [run for run in self.running if run.process.poll() is not None]:
            self.running.remove(run)
            self.free.append(run.device)
            run.log.close()
            if run.process.returncode == 0:
                self.conclude(run.cell, board)
            else:
                self.fail(run.cell, self.last_line(run), board)

    def conclude(self, cell, board):
        """Takes over the numbers of a finished run."""
        try:
            self.study.add(cell)
        except ValueError as error:
            self.fail(cell, str(error), board)
            return
        value = 100 * self.study.result(cell, self.study.metric)
        board.show(self.cells_running, f"{cell.name}: {self.study.metric} {value:.2f} %.")

    def fail(self, cell, reason, board):
        """Notes that a cell has failed; the others go on."""
        self.failed[cell] = reason
        board.states[cell] = "failed"
        board.show(self.cells_running, f"{cell.name} failed: {reason}")

    def last_line(self, run):
        """Why a process failed: what it said last, and where the rest is."""
        path = self.study.directory / LOGS / f"{run.cell.name}.log"
        lines = path.read_text("utf-8", errors="replace").strip().splitlines() or ["it said nothing"]
        code = run.process.returncode
        how = f"ended by {signal.Signals(-code).name}: " if code < 0 else ""
        return f"{how}{lines[-1]} ({path})"

    def stop(self):
        """Lets the processes write a checkpoint and end."""
        for run in self.running:
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(signal.SIGTERM)
        for run in self.running:
            run.process.wait()
            run.log.close()
