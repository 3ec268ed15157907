"""Comparing the speed of several programs on a machine that is never quiet.

What runs one after the other meets other clock frequencies and other neighbours. So the programs take turns: a round
runs each of them for a moment, in an order shuffled anew, and only times of one round are divided by each other. The
result is the median of these ratios, with the quartiles as its spread.
"""

import dataclasses
import os
import pathlib
import platform
import random
import time

import numpy as np

WARM_UP = 2  # rounds not counted
AGAIN = " again"  # after a name: the same program a second time, whose difference from itself is the null test


@dataclasses.dataclass(frozen=True)
class Timing:
    """How long one program takes, alone and beside the first one.

    Attributes:
        milliseconds: median over the rounds, per call.
        ratio: median over the rounds of its time divided by the first program's in the same round.
        low, high: quartiles of these ratios.
    """

    milliseconds: float
    ratio: float
    low: float
    high: float


def measure(programs, rounds, *, shortest=0.05, seed=0, clock=time.perf_counter, progress=lambda done: None):
    """Runs programs in turns.

    Args:
        programs: {name: function without arguments}, which returns when its work is done.
        rounds: how many times each is measured, at least 1; two more warm up.
        shortest: seconds that a program runs in a round; a faster one is called several times, all equally often.
        seed: of the order within the rounds.
        clock: function that returns seconds.
        progress: called with the number of rounds done.

    Returns:
        {name: [seconds per call, one number a round]}.
    """
    if rounds < 1:
        raise ValueError(f"measure needs at least one round. Received: rounds={rounds}")
    names, shuffle = list(programs), random.Random(seed).shuffle
    for program in programs.values():  # compiles, allocates, reads files
        program()
    start = clock()
    for program in programs.values():
        program()
    calls = max(1, round(shortest * len(programs) / max(clock() - start, 1e-9)))
    seconds = {name: [] for name in programs}
    for done in range(1 - WARM_UP, rounds + 1):
        shuffle(names)
        for name in names:
            program, start = programs[name], clock()
            for _ in range(calls):
                program()
            if done > 0:
                seconds[name].append((clock() - start) / calls)
        if done > 0:
            progress(done)
    return seconds


def summarise(seconds):
    """{name: seconds per round} -> {name: Timing}; the ratios are to the first name."""
    base = np.array(next(iter(seconds.values())))
    timings = {}
    for name, values in seconds.items():
        low, ratio, high = np.percentile(np.array(values) / base, (25, 50, 75)).tolist()
        timings[name] = Timing(1000 * float(np.median(values)), ratio, low, high)
    return timings


def difference(seconds, other, base):
    """How much longer a program takes than another, as a part of the base's time in the same round: the median.

    The difference of two medians of ratios would have the chance of both, and of rounds in which only one was slow.

    Args:
        seconds, other, base: of the two programs and of the base, one number a round.
    """
    return float(np.median((np.array(seconds) - np.array(other)) / np.array(base)))


def null_spread(low, high):
    """How far a program's ratio to itself, measured as any other and between `low` and `high`, differs from 1."""
    return max(abs(low - 1), abs(high - 1))


def verdict(value, goal, spread):
    """ "met" or "missed" where `value` differs from the goal by more than the `null_spread`, else "open"."""
    return "met" if value + spread <= goal else "missed" if value - spread > goal else "open"


def machine():
    """The CPU's name as the system gives it, and how many cores this process may use, as text."""
    names = [platform.processor() or platform.machine()]
    information = pathlib.Path("/proc/cpuinfo")
    if information.exists():
        lines = information.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")] or names
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{names[0]}, {cores} cores"
