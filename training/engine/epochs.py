"""Which epoch a step of a run lies in, also of a run whose epochs have changed their length with the data."""

import dataclasses


@dataclasses.dataclass
class Epochs:
    """Counts epochs, from 0, in the finished steps of a run.

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
