"""Recordings to clone, from every source and with every fault."""

from .case import Case

CASES: list[Case] = []
