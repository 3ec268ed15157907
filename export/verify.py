"""Checks exported artifacts the way their users will run them: by real consumers, each in a process of its own.

    python export/verify.py VERSION_DIRECTORY REFERENCE.npz

REFERENCE.npz holds inputs and what the Keras model answers: `images` float32 (n, height, width, channels) and their
`probabilities` (n, classes), `files` (n,) encoded images of any size and their `file_probabilities`, and the `labels`;
for other answers than a softmax's also their `ending`, and further outputs (consumers/answer_rules.py says how); of a
detector what consumers/detection_rules.py says. TFLite files of reduced precision need `limits` there too, a JSON
object {KIND: [largest difference of a probability relative to the largest one, smallest correlation]}; export_model.py
takes them from na_keras/deploy/tflite/kinds.py.

Each consumer answers batches of one, two and n; all answers are held to one rule (consumers/verification.py).
The last line printed is a JSON object: the `tolerance`; `largest_difference` of each consumer and signature, and of
each float32 file, to compare with it; `reduced_precision`, how the other files agree; the `spread` of the reference;
the `consumers` with their versions; and those `skipped`, with the reason: not a pass. Exits with 1 if anything is
wrong, and says what on stderr.
"""

import json
import sys

import command_line
from consumers.verification import verify


def parse_arguments(argv):
    parser = command_line.make_parser(__doc__)
    parser.add_argument("version", type=command_line.path, help="folder with saved_model.pb")
    parser.add_argument("reference", type=command_line.path, help="REFERENCE.npz")
    return parser.parse_args(argv)


def main(argv=None):
    arguments = parse_arguments(argv)
    for path in (arguments.version / "saved_model.pb", arguments.reference):
        if not path.is_file():
            sys.exit(f"verify.py: there is no {path}")
    report, found = verify(arguments.version, arguments.reference)
    print(json.dumps(report))
    for sentence in found:
        print(sentence, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
