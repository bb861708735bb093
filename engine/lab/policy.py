"""The lab's policy: the starter library in a git work tree of its own, with data for the lab's names and addresses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from engine.lab import topology
from engine.lab.errors import LabError
from engine.lab.place import ROOT, Place
from engine.lab.rules import LIMITS, RULES

LIBRARY = ROOT / "policies"
_GIT = (
    "git", "-c", "user.name=lab", "-c", "user.email=lab@localhost", "-c", "commit.gpgsign=false",
    "-c", "init.defaultBranch=main", "-c", "core.hooksPath=/dev/null",
)  # fmt: skip


class PolicyFolder:
    """A policy folder that can be changed while an engine watches it."""

    def __init__(self, folder: Path, curl: str, tools: Place) -> None:
        self.folder = folder
        self._tools = tools
        shutil.copytree(LIBRARY, folder)
        denied = (f"{topology.DENIED}/32", f"{topology.DENIED6}/128")
        self.put("exe_names", names={"protected.example": [curl]})
        self.put("address_lists", denied=dict.fromkeys(denied, "the lab's denied address"))
        self.put("cloud_metadata", units=["metadata-agent.service"])
        self.put("source_deny", prefixes=[f"{topology.DENIED_SOURCE}/32"])
        with (folder / "sallyport.rego").open("a") as root:
            root.write(LIMITS)
        self._git("init", "--quiet")
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "lab: the policy to begin with")

    def put(self, rule: str, **settings: Any) -> None:
        """Add entries to members of a rule's settings, by a rename as an editor does it."""
        path = self.folder / "settings" / f"{rule}.json"
        document = json.loads(path.read_text())
        for member, entries in settings.items():
            standing = document[rule][member]
            document[rule][member] = standing | entries if isinstance(standing, dict) else [*standing, *entries]
        fresh = path.with_suffix(".json.new")
        fresh.write_text(json.dumps(document, indent=2) + "\n")
        fresh.rename(path)

    def widen(self) -> None:
        """Say something of what comes in, and of all else in RULES: all of it at once, by one rename."""
        # A name with a dot is no part of the policy yet.
        fresh = self.folder / ".lab"
        fresh.mkdir()
        for name, text in RULES.items():
            (fresh / f"{name}.rego").write_text(text)
        fresh.rename(self.folder / "lab")

    def _git(self, *words: str) -> None:
        done = self._tools.run([*_GIT, "-C", str(self.folder), *words])
        if done.code != 0:
            raise LabError(f"git {words[0]} failed in the lab's policy folder: {done.last_words}")
