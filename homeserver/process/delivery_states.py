"""The states of a delivery, and what leads from one to the next: the tables that `delivery.py` performs.

Theory of operation
===================

`TRANSITIONS` is the machine of the destination:

    IDLE          it has everything
    SENDING       it is sent what waits in memory; what is new joins the end, and replaces what is out of date
    FULL          the same, but too much waits: what is new is left to the table from `left_out_at` on
    WAITING       it lags, and is left alone until its back-off is over
    READING       it lags; what it lacks next is to be read
    CATCHING_UP   it lags, and is sent what was read

`VERDICTS` is the machine of the transaction under way. It says what follows from its outcome. "taken": it has
arrived. "refused": the destination does not take this, and never will. "failed": the destination has an error of its
own, which may be due to what it was sent. "unreachable": nothing is known about what it was sent.

    SEVERAL   the first items, as many as fit. If refused or failed, halves are sent, and so on down to a single one,
              so that the good items before a bad one arrive.
    SINGLE    one item. If refused, it is dropped. If failed, the destination may be ill: it is left alone for a while.
    STUCK     several, and for POISON_SECONDS nothing but failures. Perhaps the first item is poison.
    PROBE     one item from further back (the 2nd, 3rd, 5th, 9th …, after the next pause the 3rd, 4th, 6th …): does the
              destination take any?
    CONFIRM   one item from before a probe that was taken. If the destination still fails of it, it is dropped.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto
from typing import Literal

# The machine of the destination


class State(Enum):
    """Explained at the head of this file."""

    IDLE = auto()
    SENDING = auto()
    FULL = auto()
    WAITING = auto()
    READING = auto()
    CATCHING_UP = auto()


class Input(Enum):
    """What happens to a destination.

    HANDED_OVER, OVERFLOWED: there is something new; it fits in memory or does not. EMPTIED: the last item that waited
    is dealt with. STOPPED: the destination has failed, or the work for it has. DUE: it may be tried again. FOUND,
    FOUND_NOTHING, UP_TO_DATE: what reading has shown; the last means that there is nothing left to read.
    """

    HANDED_OVER = auto()
    OVERFLOWED = auto()
    EMPTIED = auto()
    STOPPED = auto()
    DUE = auto()
    FOUND = auto()
    FOUND_NOTHING = auto()
    UP_TO_DATE = auto()


# What is handed over to a destination that lags is left to the table: HANDED_OVER never occurs there.
TRANSITIONS: Mapping[State, Mapping[Input, State]] = {
    State.IDLE: {
        Input.HANDED_OVER: State.SENDING,
        Input.OVERFLOWED: State.WAITING,
        Input.STOPPED: State.WAITING,
    },
    State.SENDING: {
        Input.HANDED_OVER: State.SENDING,
        Input.OVERFLOWED: State.FULL,
        Input.EMPTIED: State.IDLE,
        Input.STOPPED: State.WAITING,
    },
    State.FULL: {
        Input.EMPTIED: State.WAITING,
        Input.STOPPED: State.WAITING,
    },
    State.WAITING: {
        Input.DUE: State.READING,
        Input.STOPPED: State.WAITING,
    },
    State.READING: {
        Input.FOUND: State.CATCHING_UP,
        Input.FOUND_NOTHING: State.READING,
        Input.UP_TO_DATE: State.IDLE,
        Input.STOPPED: State.WAITING,
    },
    State.CATCHING_UP: {
        Input.EMPTIED: State.READING,
        Input.STOPPED: State.WAITING,
    },
}
LAGGING = frozenset({State.WAITING, State.READING, State.CATCHING_UP})
SENDING = frozenset({State.SENDING, State.FULL, State.CATCHING_UP})


# The machine of the transaction


class Attempt(Enum):
    """Explained at the head of this file."""

    SEVERAL = auto()
    SINGLE = auto()
    STUCK = auto()
    PROBE = auto()
    CONFIRM = auto()


class Verdict(Enum):
    """What follows from the outcome of a transaction.

    DONE: its items are delivered. DROP: its only item is left out. HALVE: its halves are sent. PROBE: an item from
    further back is sent, or if there is none, STOP. CONFIRM: the probe is delivered; those before it are sent alone.
    STOP: the destination is left alone.
    """

    DONE = auto()
    DROP = auto()
    HALVE = auto()
    PROBE = auto()
    CONFIRM = auto()
    STOP = auto()


Outcome = Literal["taken", "refused", "failed", "unreachable"]

VERDICTS: Mapping[Attempt, Mapping[Outcome, Verdict]] = {
    Attempt.SEVERAL: {
        "taken": Verdict.DONE,
        "refused": Verdict.HALVE,
        "failed": Verdict.HALVE,
        "unreachable": Verdict.STOP,
    },
    Attempt.SINGLE: {
        "taken": Verdict.DONE,
        "refused": Verdict.DROP,
        "failed": Verdict.STOP,
        "unreachable": Verdict.STOP,
    },
    Attempt.STUCK: {
        "taken": Verdict.DONE,
        "refused": Verdict.HALVE,
        "failed": Verdict.PROBE,
        "unreachable": Verdict.STOP,
    },
    Attempt.PROBE: {
        "taken": Verdict.CONFIRM,
        "refused": Verdict.PROBE,
        "failed": Verdict.PROBE,
        "unreachable": Verdict.STOP,
    },
    Attempt.CONFIRM: {
        "taken": Verdict.DONE,
        "refused": Verdict.DROP,
        "failed": Verdict.DROP,
        "unreachable": Verdict.STOP,
    },
}
