"""SIGTERM and SIGINT end a run at a step's boundary."""

import signal


class Interruption:
    """Notes SIGTERM and SIGINT instead of dying of them, so that a loop can end at a step's boundary.

    Attributes:
        signal: the first that came, or None. A second one acts as it would have without us.
    """

    def __enter__(self):
        """Takes the signals over."""
        self.signal = None
        self.previous = {number: signal.signal(number, self.note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def note(self, number, frame):
        """Remembers a signal."""
        self.signal = signal.Signals(number)
        self.__exit__()

    def __exit__(self, *error):
        """Puts the handlers back that were there before."""
        for number, handler in self.previous.items():
            signal.signal(number, handler)
