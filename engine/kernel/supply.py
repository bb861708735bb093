"""Where the programs of a start come from: what is kept in the state directory, else the compiler.

Made before the order is there, so that compilers run while the engine still imports its modules.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.errors import KernelError
from engine.kernel import cache, headers
from engine.kernel.compiler import Compilation
from engine.kernel.objects import Unit


@dataclass(frozen=True)
class Request:
    """What decides which programs are needed."""

    state_dir: str
    sizes: dict[str, int]


class Supply:
    """Compiled programs, or compilers at work, or the error that there are none."""

    def __init__(self, request: Request) -> None:
        """Never raises: what is wrong here is told once the rest of an order has been found right."""
        self.request = request
        self.compiled_because = ""
        """Why the kept programs were not used, as the end of a sentence; empty where they are."""
        self.headers = ""
        """The header tree that is borrowed, empty where the running kernel has its own."""
        self._units: tuple[Unit, ...] = ()
        self._compilation: Compilation | None = None
        self._error: KernelError | None = None
        self._tools: tuple[str, ...] = ()
        try:
            tree = headers.find()
            self.headers = "" if tree is None else str(tree)
            self._purpose = cache.purpose(request.sizes, tree)
            try:
                self._units = cache.load(Path(request.state_dir), self._purpose)
            except cache.NotUsableError as reason:
                self._compile(str(reason))
        except KernelError as error:
            self._error = error

    def _compile(self, because: str) -> None:
        self.compiled_because = because
        self._compilation = Compilation.start(self.request.sizes, Path(self.headers) if self.headers else None)

    def units(self) -> tuple[Unit, ...]:
        """Wait for the programs. Raises KernelError when they cannot be had."""
        if self._error is not None:
            raise self._error
        if self._compilation is not None:
            self._units, self._tools = self._compilation.result()
        return self._units

    def compiled_anew(self) -> tuple[Unit, ...]:
        """Compile after all: the kernel refused what was kept. Raises KernelError when that fails."""
        self._compile("the kernel refused what is kept")
        return self.units()

    def keep(self) -> str:
        """Keep what was compiled for the next start. Return why that failed, empty when it did not."""
        if self._compilation is None:
            return ""
        try:
            cache.store(Path(self.request.state_dir), self._purpose, self._tools, self._units)
        except (cache.NotUsableError, OSError) as error:
            return str(error)
        return ""

    def abandon(self) -> None:
        """End compilers that nobody waits for."""
        if self._compilation is not None:
            self._compilation.abandon()
