"""What verification found wrong, and under which names a person may accept it. Standard library only.

A gate refuses what is probably broken. Who knows better names it, `export_model.py --accept GATE`, and the manifest
records what was accepted. What is certainly broken has no gate: a consumer that fails, other shapes, NaN.
"""

GATES = {
    "reduced-precision": "a TFLite file of reduced precision is further from the Keras model than its kind's limits",
    "float-difference": "a float32 artifact differs from the Keras model by more than float32 programs do",
    "equal-answers": "the Keras model answers all images alike, so that agreement on them says little",
}


class Finding(str):
    """A sentence about something wrong.

    Attributes:
        gate: the key of GATES that it can be accepted under, or None.
        artifact: name of the consumer or file that it is about, or None.
    """

    def __new__(cls, sentence, gate=None, artifact=None):
        """As str; the other arguments become the attributes."""
        self = super().__new__(cls, sentence)
        self.gate, self.artifact = gate, artifact
        return self


def gates_help():
    """The gates, a line each, for the end of a program's help."""
    return "\n".join(("gates of --accept:", *(f"  {name:18} {meaning}" for name, meaning in GATES.items())))
