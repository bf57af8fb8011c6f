"""Replays recorded allocation traces through the pool, for any capacity, on any machine."""

from vramkit.simulate._capacity import find_min_capacity, parse_capacity
from vramkit.simulate._events import Events
from vramkit.simulate._load import load_trace
from vramkit.simulate._repeat import Repetition, repeat_step
from vramkit.simulate._replay import Failure, Replay, RoundCounters, replay
from vramkit.simulate._report import to_json, to_text
from vramkit.simulate._simulation import Options, Simulation, simulate
from vramkit.simulate._steps import Step, find_heaviest_step

__all__ = [
    "Events",
    "Failure",
    "Options",
    "Repetition",
    "Replay",
    "RoundCounters",
    "Simulation",
    "Step",
    "find_heaviest_step",
    "find_min_capacity",
    "load_trace",
    "parse_capacity",
    "repeat_step",
    "replay",
    "simulate",
    "to_json",
    "to_text",
]
