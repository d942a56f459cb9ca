"""Draws an email's path through the state machine as an SVG: what it met is filled."""

from collections import Counter
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

import yaml

from cli.history import failure_of, located

ASL = Path(__file__).parent.parent / "statemachines" / "process_email.asl.yaml"

# Column and row of every state; the Map's own states stand in its frame.
_PLACES = {
    "Fetch email": (0, 0),
    "Safe to deliver?": (1, 0),
    "Drop as virus": (2, 1),
    "Store as loop": (2, 2),
    "Deliver as spam": (2, 3),
    "Look up routes": (3, 0),
    "Which action?": (0, 5),
    "Forward to Gmail": (1, 5),
    "Send bounce": (1, 6),
    "Store": (1, 7),
    "Drop": (1, 8),
    "Park": (2, 6),
    "Unparked": (3, 6),
    "All delivered?": (0, 10),
    "Delivered": (1, 10),
    "Record dead letters": (2, 11),
    "Dead-lettered": (3, 11),
    "Parking failed": (3, 12),
}
_WIDTH, _HEIGHT, _ACROSS, _DOWN, _MARGIN = 200, 34, 235, 48, 24
_FRAME = "For each delivery"


def draw(history: Iterable[dict[str, Any]]) -> str:
    """The SVG of one execution. Raises KeyError for a state that has no place here yet."""
    states = yaml.safe_load(ASL.read_text())["States"]
    inner = states[_FRAME]["ItemProcessor"]["States"]
    entered, failed = _counts(history)
    shapes = [_frame(_FRAME in entered), *_into_and_out_of_the_frame(_FRAME in entered)]
    for name, state in [*states.items(), *inner.items()]:
        if name == _FRAME:
            continue
        for target in _targets(state, _FRAME if name in states else ""):
            shapes.append(_arrow(name, target, name in entered and target in entered))
    for name in [*states, *inner]:
        if name != _FRAME:
            shapes.append(_box(name, entered[name], failed[name]))
    width = 4 * _ACROSS + 2 * _MARGIN
    height = 13 * _DOWN + 2 * _MARGIN
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">'
        '<defs><marker id="tip" markerUnits="userSpaceOnUse" markerWidth="8" markerHeight="8" '
        'refX="7" refY="4" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>'
        f'<rect width="{width}" height="{height}" fill="#fff"/>' + "".join(shapes) + "</svg>\n"
    )


def _counts(history: Iterable[dict[str, Any]]) -> tuple[Counter[str], Counter[str]]:
    """How often each state was entered, and how often its task failed."""
    entered: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for event, where in located(history):
        if "stateEnteredEventDetails" in event:
            entered[where.state] += 1
        elif failure_of(event) is not None:
            failed[where.state] += 1
    return entered, failed


def _targets(state: dict[str, Any], frame: str) -> list[str]:
    ways = [state, *state.get("Choices", []), *state.get("Catch", [])]
    targets = [way["Next"] for way in ways if "Next" in way]
    targets += [state["Default"]] if "Default" in state else []
    return [target for target in dict.fromkeys(targets) if target != frame]


def _corner(name: str) -> tuple[int, int]:
    column, row = _PLACES[name]
    return _MARGIN + column * _ACROSS, _MARGIN + row * _DOWN


def _box(name: str, entered: int, failed: int) -> str:
    x, y = _corner(name)
    fill, text = ("#1a7f37", "#fff") if entered else ("#eef0f3", "#667")
    label = name + (f" · {failed + 1} attempts" if failed else "")
    radius = _HEIGHT // 2 if name.endswith("?") else 4
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="{radius}" fill="{fill}"/>'
        f'<text x="{x + _WIDTH // 2}" y="{y + 22}" text-anchor="middle" fill="{text}">'
        f"{escape(label)}</text>"
    )


def _arrow(source: str, target: str, met: bool) -> str:
    (x1, y1), (x2, y2) = _corner(source), _corner(target)
    if x1 < x2:
        return _line(x1 + _WIDTH, y1 + _HEIGHT // 2, x2, y2 + _HEIGHT // 2, met)
    down = y1 < y2
    start, end = (_HEIGHT, 0) if down else (0, _HEIGHT)
    return _line(x1 + _WIDTH // 2, y1 + start, x2 + _WIDTH // 2, y2 + end, met)


def _line(x1: int, y1: int, x2: int, y2: int, met: bool) -> str:
    style = '#1a7f37" stroke-width="2.5' if met else '#c4c9d1" stroke-width="1'
    return f'<path d="M{x1} {y1} L{x2} {y2}" stroke="{style}" fill="none" marker-end="url(#tip)"/>'


_FRAME_TOP, _FRAME_HEIGHT = _MARGIN + int(4.2 * _DOWN), int(5.2 * _DOWN)


def _into_and_out_of_the_frame(met: bool) -> list[str]:
    x, y = _corner("Look up routes")
    end_x, end_y = _corner("All delivered?")
    return [
        _line(x + _WIDTH // 2, y + _HEIGHT, x + _WIDTH // 2, _FRAME_TOP, met),
        _line(end_x + _WIDTH // 2, _FRAME_TOP + _FRAME_HEIGHT, end_x + _WIDTH // 2, end_y, met),
    ]


def _frame(met: bool) -> str:
    colour = "#1a7f37" if met else "#c4c9d1"
    return (
        f'<rect x="8" y="{_FRAME_TOP}" width="{4 * _ACROSS + 2 * _MARGIN - 16}" '
        f'height="{_FRAME_HEIGHT}" rx="8" fill="none" stroke="{colour}" stroke-dasharray="6 4"/>'
        f'<text x="20" y="{_FRAME_TOP + 20}" fill="#334">{_FRAME}</text>'
    )
