"""What the tables for people share."""

import textwrap

from flforensics.report.words import shown
from flforensics.results import RoundReplay, Verdict

WIDTH = 100
"""Columns of a terminal."""

MEANING = {
    Verdict.BIT_EXACT: "the stored global is reproduced bit for bit",
    Verdict.CONSISTENT: "the stored global cannot be told from an honest fusion of the stored clients",
    Verdict.CONSISTENT_FITTED: "the stored global is a fusion of the stored clients under fitted weights",
    Verdict.INCONSISTENT: "no honest evaluation of the rule on the stored clients gives the stored global",
    Verdict.INDETERMINATE: "the evidence does not decide",
}


def wrapped(text: str, width: int = WIDTH) -> str:
    """A paragraph at most 100 columns wide."""
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def replay_line(replay: RoundReplay) -> str:
    """The verdict on the round that a report is about, in a sentence or two."""
    text = f"Replay of round {replay.round}: {replay.verdict.value} ({MEANING[replay.verdict]}"
    if replay.reason:
        text += f": {shown(replay.reason)}"
    text += ")."
    if replay.exact is not None:
        text += f" The recipe is {replay.exact.recipe}: {replay.exact.frameworks}."
    elif replay.floor is not None:
        text += f" Changes below {replay.floor:.1e} of a value cannot be seen."
    return wrapped(text)
