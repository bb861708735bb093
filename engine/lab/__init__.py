"""The lab: the engine on real traffic, between two network namespaces of its own.

What it makes is written into a journal first (`journal`), so that whatever ends a run, the next one finds what it
left. A run builds the two sides (`topology`, `groups`, `servers`), starts the engine as a user would (`gate`), and
plays `scenarios` with real clients. `actor` is the program that speaks for a side.
"""
