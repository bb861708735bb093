"""What is compiled together, and what the compiler is told; the compiling itself is tested in the kernel tier."""

from __future__ import annotations

import re

from engine.kernel.compiler import flags, parts
from engine.kernel.programs import PROGRAMS, SOURCES


def test_every_program_is_compiled_once_from_its_own_file() -> None:
    compiled = [(part.source, name) for part in parts() for name in part.programs]
    assert sorted(compiled) == sorted((program.source, program.name) for program in PROGRAMS)


def test_a_part_leaves_out_the_other_programs_of_its_file_and_only_those() -> None:
    for part in parts():
        told = {flag.removeprefix("-D").partition("=")[0] for flag in part.flags()}
        assert told | set(part.programs) == {program.name for program in PROGRAMS if program.source == part.source}
        assert not told & set(part.programs)


def test_the_word_that_leaves_a_program_out_fits_its_definition() -> None:
    """`int static f(...)` is C; a definition that began with anything else would become an error there."""
    for program in PROGRAMS:
        text = (SOURCES / program.source).read_text()
        assert re.search(rf"^int {program.name}\(", text, re.MULTILINE)


def test_the_sizes_reach_the_compiler_in_one_order() -> None:
    """The order is part of what kept programs are compared by."""
    assert flags({"B": 2, "A": 1})[-2:] == flags({"A": 1, "B": 2})[-2:] == ["-DA=1", "-DB=2"]
