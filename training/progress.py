"""How far a program is: a bar on a terminal, one plain line now and then in a file or a pipe."""

import contextlib
import sys
import time

EVERY = 30  # seconds between lines in a file; the last one always comes


class Progress:
    """Progress of one stage, such as an epoch.

    Args:
        total: number of units of the whole stage.
        unit: what is counted, in the plural.
        names: of the numbers that `update` gets.
        stream: where to; by default standard output, as it is when the stage begins.
    """

    def __init__(self, total, unit, names=(), stream=None):
        self.total, self.unit, self.stream = total, unit, stream or sys.stdout
        self.start = self.written = time.monotonic()
        self.first = None  # where this process began, if not at 0
        self.bar = None
        if self.stream.isatty():
            import keras

            # Stateful: the numbers are shown as they are, not averaged once more.
            self.bar = keras.utils.Progbar(total, unit_name=unit.removesuffix("s"), stateful_metrics=names)

    def update(self, done, values=None, count=1):
        """After `done` units in all, the last `count` of them since the last update; `values` as {name: number}."""
        values = values or {}
        if self.bar:
            with contextlib.redirect_stdout(self.stream):
                self.bar.update(done, list(values.items()))
            return
        now = time.monotonic()
        self.first = done - count if self.first is None else self.first
        if done < self.total and now - self.written < EVERY:
            return
        self.written = now
        seconds = now - self.start
        left = seconds / (done - self.first) * (self.total - done)
        time_text = f"{seconds:.0f} s" if done >= self.total else f"{seconds:.0f} s, about {left:.0f} s left"
        numbers = "".join(f", {name} {value:.4f}" for name, value in values.items())
        print(f"    {done}/{self.total} {self.unit}, {time_text}{numbers}", file=self.stream, flush=True)
