"""libvirt's chains in the packet filter: it makes them with its first network and leaves them, empty, at its end."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
from collections.abc import Iterator

from vagrant.vm.place import search_path

_FAMILIES = ("iptables", "ip6tables")
_CHAIN = re.compile(r":(LIBVIRT_\w+) ")


@contextlib.contextmanager
def as_before() -> Iterator[None]:
    """Take libvirt's chains away that were not there before, where nothing is in them."""
    before = {family: set(chains(_saved(family))) for family in _FAMILIES}
    try:
        yield
    finally:
        for family in _FAMILIES:
            saved = _saved(family)
            for table, chain in chains(saved):
                if (table, chain) not in before[family]:
                    _remove(family, table, chain, saved)


def chains(saved: str) -> list[tuple[str, str]]:
    """(table, chain) of each of libvirt's chains, out of what iptables-save says."""
    found, table = [], ""
    for line in saved.splitlines():
        if line.startswith("*"):
            table = line[1:]
        elif match := _CHAIN.match(line):
            found.append((table, match[1]))
    return found


def _remove(family: str, table: str, chain: str, saved: str) -> None:
    if re.search(rf"^-A {chain} ", _of_table(saved, table), re.MULTILINE):
        return
    for jump in re.findall(rf"^-A (.*-j {chain})$", _of_table(saved, table), re.MULTILINE):
        _call(family, "-t", table, "-D", *jump.split())
    _call(family, "-t", table, "-X", chain)


def _of_table(saved: str, table: str) -> str:
    return saved.partition(f"*{table}\n")[2].partition("\nCOMMIT")[0]


def _saved(family: str) -> str:
    return _call(f"{family}-save")


def _call(program: str, *words: str) -> str:
    """What it says; nothing where there is no such program, as then libvirt has used none either."""
    found = shutil.which(program, path=search_path())
    if found is None:
        return ""
    return subprocess.run([found, *words], check=False, capture_output=True, text=True).stdout
