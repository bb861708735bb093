"""The table of programs against the C files that hold them."""

from __future__ import annotations

import re

from engine.kernel.programs import PROGRAMS, SOURCES


def test_every_entry_function_is_in_the_table_and_the_table_in_the_files() -> None:
    found = {
        (name, file.name)
        for file in SOURCES.glob("*.c")
        for name in re.findall(r"^int (\w+)\(struct \w+ \*\w+\)\n\{", file.read_text(), re.MULTILINE)
    }
    assert found == {(program.name, program.source) for program in PROGRAMS}


def test_program_names_fit_the_kernel() -> None:
    """BPF_OBJ_NAME_LEN (linux/bpf.h): 16 with the NUL; a cut name would not be found again."""
    assert all(len(program.name) < 16 for program in PROGRAMS)
