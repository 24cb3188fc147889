"""Files that a command writes, and what they must not hurt."""

from .case import Case

CASES: list[Case] = []
