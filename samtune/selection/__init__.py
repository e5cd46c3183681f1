"""Selectors: functions that decide *which* entries train. How they train is `samtune.tuning`'s business."""

from samtune.selection.budget import picked
from samtune.selection.select import SELECTORS, check_select, select
from samtune.selection.selection import Addition, Selection, check_selection, load_selection, save_selection
from samtune.selection.selector import Needs, Selector, check_scores

__all__ = [
    "SELECTORS", "Addition", "Needs", "Selection", "Selector", "check_scores", "check_select", "check_selection",
    "load_selection", "picked", "save_selection", "select",
]  # fmt: skip
