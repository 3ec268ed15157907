"""Which images are held out where the data has no validation images of its own: a share of each class.

The images' names alone decide, relative to the data's folder: of a class those are held out whose names have the
smallest SHA-256. There is no other seed: runs of any seed have the same validation images, wherever the folder lies,
and a few images more or less move few others.

Of images with several labels, classes take their share in turn, the rarest first, of the images that no rarer class has
decided about (the idea of iterative stratification: Sechidis et al., ECML 2011). With one label an image, that is the
share of each class.
"""

import hashlib
import math


def parse_share(text):
    """The share to hold out, a float, from a recipe's `validation_split` (text or number).

    Raises:
        ValueError: it is no number between 0 and 1.
    """
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share < 1:
        raise ValueError(
            f"validation_split of image files must be the share to hold out, between 0 and 1, such as 0.2. Received: "
            f"{text!r}"
        )
    return share


def share_of(count, share):
    """How many of a class's images are held out: the share, rounded, but one at least and not all; none of one."""
    return min(max(math.floor(share * count + 0.5), 1), count - 1) if count else 0


def held_out(names, labels, share):
    """Positions of the images that are held out.

    Args:
        names: of the images, bytes, all different.
        labels: of each image the numbers of its classes, in a tuple that may be empty.
        share: between 0 and 1.

    Returns:
        Set of positions in `names`.
    """
    members = {}  # those without a label are a class too
    for position in sorted(range(len(names)), key=lambda i: hashlib.sha256(names[i]).digest()):
        for label in labels[position] or (-1,):
            members.setdefault(label, []).append(position)
    chosen, decided = set(), set()
    for _, label in sorted((len(positions), label) for label, positions in members.items()):
        wanted = share_of(len(members[label]), share) - len(chosen.intersection(members[label]))
        free = [position for position in members[label] if position not in decided]
        chosen.update(free[: max(wanted, 0)])
        decided.update(free)
    return chosen


def divide(names, labels, share, split, where):
    """Positions of the images of one part, in their order, and lines for the Source's notes.

    Args:
        names, labels, share: see `held_out`.
        split: "train" for what is not held out, "validation" for what is.
        where: what the images are, for messages.

    Raises:
        ValueError: no class has two images.
    """
    apart = held_out(names, labels, share)
    if not apart:
        raise ValueError(f"{where} has no two images of one class, of which one could be held out.")
    if split == "train":
        return [position for position in range(len(names)) if position not in apart], []
    return sorted(apart), [f"{where}: {len(apart)} of {len(names)} images held out, {share:g} of each class, by name"]
