"""Reading a TOML table key by key: every key typed and bounded, every key that nobody asked for refused.

A misspelt key that is ignored is a setting that silently stays at its default; in a configuration that says
what is never denied, that is a lock-out or a hole.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from engine.errors import ConfigError

_Choice = TypeVar("_Choice", bound=Enum)
_T = TypeVar("_T")


class Table:
    """One table of the file. `finish()` refuses whatever was not taken, so it comes last."""

    def __init__(self, values: dict[str, Any], file: Path, name: str = "") -> None:
        self._values = values
        self._known: list[str] = []
        self.file = file
        self.name = name

    def place(self, key: str) -> str:
        return f"{self.name}.{key}" if self.name else key

    def error(self, key: str, problem: str, *, hint: str = "") -> ConfigError:
        return ConfigError(f"{self.file}: {self.place(key)} {problem}.", hint=hint)

    def _take(self, key: str) -> Any:
        self._known.append(key)
        return self._values.get(key)

    def text(self, key: str, default: str) -> str:
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.error(key, f"must be text in quotes, not {_shown(value)}")
        if not value or not value.isprintable():
            raise self.error(key, "must be printable text and not empty", hint="Leave it out for the default.")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {_shown(value)}")
        return value

    def integer(self, key: str, default: int, *, least: int, most: int) -> int:
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.error(key, f"must be a whole number, not {_shown(value)}")
        self._within(key, value, least, most)
        return value

    def seconds(self, key: str, default: float, *, least: float, most: float) -> float:
        value = self._take(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.error(key, f"must be a number of seconds, not {_shown(value)}")
        self._within(key, value, least, most)
        return float(value)

    def _within(self, key: str, value: float, least: float, most: float) -> None:
        # Written so that NaN, which TOML can spell, is outside.
        if not least <= value <= most:
            raise self.error(key, f"is {value}, and must be from {least} to {most}")

    def choice(self, key: str, default: _Choice) -> _Choice:
        value = self._take(key)
        if value is None:
            return default
        kind = type(default)
        for member in kind:
            if member.value == value:
                return member
        words = [str(member.value) for member in kind]
        problem = f"is {_shown(value)}, and must be one of {', '.join(words)}"
        raise self.error(key, problem, hint=_nearest(value, words))

    def path(self, key: str, default: Path | None) -> Path | None:
        """A relative path starts at the file's own folder, whatever the working directory is."""
        text = self.text(key, "")
        return self.file.parent / text if text else default

    def parsed(self, key: str, default: tuple[_T, ...], parse: Callable[[str], _T], what: str) -> tuple[_T, ...]:
        """A list of texts, each turned into a value by `parse`, whose ValueError names what is wrong."""
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, list):
            raise self.error(key, f"must be a list of {what}, not {_shown(value)}", hint='Write it as ["a", "b"].')
        found: list[_T] = []
        for item in value:
            if not isinstance(item, str):
                raise self.error(key, f"holds {_shown(item)}, which is not {what} in quotes")
            try:
                found.append(parse(item))
            except ValueError as error:
                raise self.error(key, f"holds {_shown(item)}: {error}") from error
        return tuple(found)

    def integers(self, key: str, default: tuple[int, ...], *, least: int, most: int) -> tuple[int, ...]:
        value = self._take(key)
        if value is None:
            return default
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self.error(key, f"must be a list of whole numbers, not {_shown(value)}")
        for item in value:
            self._within(key, item, least, most)
        return tuple(value)

    def texts(self, key: str) -> dict[str, str]:
        """A table of free keys with texts."""
        value = self._take(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or any(not isinstance(item, str) for item in value.values()):
            raise self.error(key, "must be a table of texts", hint='Write it as { rack = "b12" }.')
        return dict(value)

    def table(self, key: str) -> Table:
        """The table below; an empty one where the file has none."""
        value = self._take(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            raise self.error(key, f"must be a table, not {_shown(value)}", hint=f"Write it as [{self.place(key)}].")
        return Table(value, self.file, self.place(key))

    def tables(self, key: str) -> Iterator[Table]:
        value = self._take(key)
        if value is None:
            return
        if not isinstance(value, list) or any(not isinstance(item, dict) for item in value):
            raise self.error(key, "must be a list of tables", hint=f"Each one begins with [[{self.place(key)}]].")
        for number, item in enumerate(value, 1):
            yield Table(item, self.file, f"{self.place(key)}[{number}]")

    def holds(self, key: str) -> bool:
        return key in self._values

    def finish(self) -> None:
        for key in self._values:
            if key not in self._known:
                where = f"[{self.name}]" if self.name else "the top of the file"
                raise ConfigError(
                    f"{self.file}: {where} has no key {_shown(key)}.",
                    hint=_nearest(key, self._known) or f"Known here: {', '.join(sorted(self._known))}.",
                )


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _nearest(value: Any, words: list[str]) -> str:
    close = difflib.get_close_matches(str(value), words, n=1)
    return f"Did you mean {close[0]}?" if close else ""
