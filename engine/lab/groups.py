"""The lab's control groups: what each is for, below one folder of its own.

The gate judges what runs in `guarded`; the engine, the servers and the lab's own tools are beside it. Every process of
a run is in one of them, so that a run can be ended without knowing a single process id.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from engine.lab.errors import LabError


@dataclass(frozen=True)
class Groups:
    root: Path

    @property
    def guarded(self) -> Path:
        """What `sallyport run --cgroup` is given."""
        return self.root / "guarded.slice"

    @property
    def plain(self) -> Path:
        return self.guarded / "plain.service"

    @property
    def ignored(self) -> Path:
        return self.guarded / "ignored.service"

    @property
    def metadata(self) -> Path:
        """Listed in the policy as a unit that may ask the cloud's metadata service."""
        return self.guarded / "metadata-agent.service"

    @property
    def shop(self) -> Path:
        """A container's, which may reach what another container may not."""
        return self.guarded / "shop.service"

    @property
    def other(self) -> Path:
        """Another container's."""
        return self.guarded / "other.service"

    @property
    def engine(self) -> Path:
        return self.root / "engine.service"

    @property
    def servers(self) -> Path:
        return self.root / "servers.service"

    @property
    def tools(self) -> Path:
        """The lab's own tools, and what keeps the namespaces."""
        return self.root / "tools.service"

    def make(self) -> None:
        folders = (self.root, self.guarded, self.plain, self.ignored, self.metadata, self.shop, self.other)
        for folder in (*folders, self.engine, self.servers, self.tools):
            try:
                folder.mkdir()
            except OSError as error:
                raise LabError(
                    f"The control group {folder} cannot be made: {error.strerror}",
                    hint="The lab needs root and a cgroup2 mount that may be written to.",
                ) from error
