"""A field of a recipe says all that is to be known of it; its flag, its help, its checks and how old runs are read
follow from that. Standard library only: command lines are parsed before Keras is imported.
"""

import argparse
import dataclasses
import json
import math
import re

ON = object()  # in `needs`: any value but None, 0, False and nothing at all


def setting(
    group,
    text,
    default=dataclasses.MISSING,
    *,
    limits=None,
    choices=None,
    check=None,
    needs=(),
    before=dataclasses.MISSING,
):
    """A field of Recipe with all that is to be known of it: command line, checks and old runs follow from here.

    Args:
        group: the heading under which `train.py --help` shows it.
        text: what it means, with its unit.
        default: of recipes that do not say; a dictionary is copied for each.
        limits: (lowest, highest), each included, None for no limit, or the name of another attribute of the recipe. Of
            a pair (low, high) the limits hold both, and 0 itself is none of them.
        choices: the values that it can have, or a function that returns them.
        check: None, or a function of the value that raises ValueError on a wrong one.
        needs: what the field has no effect without: dictionaries {name of another field: the value that it must have,
            a tuple of such values, or ON}, of each of which one entry at least must hold.
        before: what runs did that were started before the field existed, so that they can be resumed; `default` if not
            given. A field that every recipe.json holds, because it has no default, needs none.
    """
    metadata = {"group": group, "help": text, "limits": limits, "choices": choices, "check": check, "needs": needs}
    metadata["before"] = default if before is dataclasses.MISSING else before
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def limits_of(field, recipe=None):
    """(lowest, highest) of a field; limits that are another attribute's are looked up in the recipe, if one is given,
    and None otherwise.
    """
    limits = field.metadata["limits"] or (None, None)
    return [getattr(recipe, limit, None) if isinstance(limit, str) else limit for limit in limits]


def range_text(low, high):
    """The limits in words; empty without any."""
    if high is None:
        return "" if low is None else f"at least {low}"
    return f"between {low} and {high}"


def flag_of(name):
    """The flag of the field of that name."""
    return f"--{name.replace('_', '-')}"


def need_text(alternatives):
    """One of a field's needs in words: "--mixup or --cutmix"."""
    texts = []
    for name, value in alternatives.items():
        values = value if isinstance(value, tuple) else (value,)
        texts += [f"{flag_of(name)}{'' if one is ON else f'={one}'}" for one in values]
    return " or ".join(texts)


def holds(value, wanted):
    """Whether a field has the value, or one of the values, that another one needs."""
    if wanted is ON:
        return bool(value)
    return value in wanted if isinstance(wanted, tuple) else value == wanted


def check_effect(field, recipe):
    """Raises ValueError if the recipe lacks what the field needs to have an effect."""
    for alternatives in field.metadata["needs"]:
        values = {name: getattr(recipe, name) for name in alternatives}
        if not any(holds(values[name], value) for name, value in alternatives.items()):
            found = ", ".join(f"{flag_of(name)}={value}" for name, value in values.items())
            raise ValueError(
                f"{flag_of(field.name)} has no effect without {need_text(alternatives)}. Add that, or leave "
                f"{flag_of(field.name)} out. The recipe has {found}"
            )


def check_patterns(patterns, name=""):
    """Raises ValueError on what is no regular expression; `name` begins the message."""
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{name}expected regular expressions. Received: {pattern!r}: {error}") from error


def check_field(field, recipe):
    """Raises ValueError on a value that could only fail later, or silently."""
    value, choices = getattr(recipe, field.name), field.metadata["choices"]
    choices = choices() if callable(choices) else choices
    unset = value is None and field.default is None
    if choices and value not in choices and not unset:
        raise ValueError(f"{field.name} must be one of {list(choices)}. Received: {value!r}")
    if field.metadata["check"] and not unset:
        field.metadata["check"](value)
    if field.type == tuple[str, ...]:
        check_patterns(value, f"{field.name}: ")
    if value is None or not field.metadata["limits"]:
        return
    low, high = limits_of(field, recipe)
    if field.type == tuple[float, float]:
        if not 0 < value[0] <= value[1] <= (math.inf if high is None else high):
            raise ValueError(f"{field.name} must be a range of positive numbers (low, high). Received: {value}")
    elif not (low <= value and (high is None or value <= high)):
        raise ValueError(f"{field.name} must be {range_text(low, high)}. Received: {value}")


def json_value(kind, example):
    """An argparse type: JSON whose value is a `kind`; a list becomes a tuple and must hold regular expressions."""

    def parse(text):
        try:
            value = json.loads(text)
        except ValueError:
            value = None
        if not isinstance(value, kind) or kind is list and not all(isinstance(item, str) for item in value):
            raise argparse.ArgumentTypeError(f"expected JSON, as in '{example}'. Received: {text!r}")
        if kind is dict:
            return value
        try:
            check_patterns(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return tuple(value)

    return parse


def help_text(field):
    """What `--help` says: meaning, limits and choices as far as they are known without Keras."""
    low, high = limits_of(field)
    remarks = [range_text(low, high) if low != 0 or high is not None else ""]
    remarks += [f"with {need_text(alternatives)}" for alternatives in field.metadata["needs"]]
    remarks = "; ".join(filter(None, remarks))
    return f"{field.metadata['help']} ({remarks})" if remarks else field.metadata["help"]


def add_flags(parser, recipe_class, names=None):
    """One flag per field, in groups, named after it: --learning-rate, --crop-area LOW HIGH, --flip, --no-flip ...

    A flag that is not given is None: the recipe's own value stands. `names`: only of these fields.
    """
    groups = {}
    for field in dataclasses.fields(recipe_class):
        if names is not None and field.name not in names:
            continue
        title = field.metadata["group"]
        if title not in groups:
            groups[title] = parser.add_argument_group(f"fields of the recipe: {title}")
        options = {"help": help_text(field).replace("%", "%%")}
        if field.type in (bool, bool | None):
            options |= {"action": argparse.BooleanOptionalAction, "default": None}
        elif field.type is dict:
            options |= {"type": json_value(dict, '{"alpha": 0.35}'), "metavar": "JSON"}
        elif field.type == tuple[str, ...]:
            options |= {"type": json_value(list, '["bias$"]'), "metavar": "JSON"}
        elif field.type == tuple[int, ...]:
            options |= {"type": int, "nargs": "+", "metavar": "N"}
        elif field.type == tuple[float, float]:
            options |= {"type": float, "nargs": 2, "metavar": ("LOW", "HIGH")}
        else:
            (options["type"],) = (kind for kind in (int, float, str) if field.type in (kind, kind | None))
            if isinstance(field.metadata["choices"], tuple):
                options["choices"] = field.metadata["choices"]
            else:
                options["metavar"] = {int: "N", float: "X", str: "NAME"}[options["type"]]
        groups[title].add_argument(flag_of(field.name), **options)


def overrides(arguments, recipe_class):
    """{field: value} of the flags that were given."""
    values = {field.name: getattr(arguments, field.name, None) for field in dataclasses.fields(recipe_class)}
    given = {name: value for name, value in values.items() if value is not None}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
