"""Which epoch of a run is the best so far, and whether a better one is still waited for.

Both follow from the rows of history.csv alone, which a resumed run has as they were: it keeps the same best.keras, and
ends where an undisturbed one ends. An epoch whose row was written, but which the newest checkpoint does not know to be
evaluated, is evaluated again, and its best.keras written again, from the same weights.
"""

import math

LOWER_IS_BETTER = ("loss",)


def validated(row, metric):
    """A metric of the validation in a row, of which history.csv makes text; NaN where it is missing."""
    return float(row.get(f"validation_{metric}") or math.nan)


def best_epoch(rows, metric):
    """The row of the best epoch, of equal ones the first; None without a number in any.

    Args:
        rows: of history.csv.
        metric: name of a mean of the validation, such as "top1"; of "loss" the lowest is the best.
    """
    sign = -1 if metric in LOWER_IS_BETTER else 1
    numbers = [row for row in rows if not math.isnan(validated(row, metric))]
    return max(numbers, key=lambda row: sign * validated(row, metric), default=None)


def patience_is_over(rows, recipe):
    """Whether the recipe's metric has not been better than before for as many epochs as its patience."""
    if recipe.patience is None or not rows:
        return False
    best = best_epoch(rows, recipe.keep_best)
    return int(rows[-1]["epoch"]) - int(best["epoch"] if best else 0) >= recipe.patience


def is_finished(rows, recipe):
    """Whether a run with these rows ends: after the recipe's last epoch, or as its patience is over."""
    return len(rows) == recipe.epochs or patience_is_over(rows, recipe)
