"""A policy folder becomes a Bundle: the Rego modules, the data, and the digest that names them.

The folder means what it means to `opa test DIR` and `opa eval -d DIR`, so that authors can use OPA's tools on it:

- every `*.rego` file is a module; `*_test.rego` files are kept apart and never come into force;
- every `*.json` file holds one object, merged into `data` at the path of its *directory* (the file's own name
  plays no part): `settings/cloud_metadata.json` with `{"cloud_metadata": {...}}` is `data.settings.cloud_metadata`.
  Two files that define the same path are an error, as in OPA;
- YAML files, which OPA would load too, are refused: two readers of YAML rarely agree;
- `samples/` and `schemas/` directories are loaded for tests only;
- names that begin with a dot are skipped (git, editors), and so is every file of another kind.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from engine.policy.contents import read_files
from engine.policy.findings import Finding, PolicyRefusedError

TEST_ONLY_DIRECTORIES = frozenset({"samples", "schemas"})


@dataclass(frozen=True)
class Module:
    """One Rego file: `file` relative to the folder with forward slashes, `text` as read."""

    file: str
    text: str


@dataclass(frozen=True)
class Document:
    """One JSON file's object, under the path of its directory: not to be changed, other trees share it. `size` in
    bytes, as a file."""

    at: tuple[str, ...]
    value: dict[str, Any]
    test_only: bool
    size: int

    @property
    def gives(self) -> tuple[tuple[str, ...], ...]:
        """The data paths that it gives, as far as its own keys."""
        return tuple((*self.at, key) for key in self.value) or (self.at,)


@dataclass(frozen=True)
class Bundle:
    """A policy folder as read at one moment.

    `data` is what rules may read, `test_data` the same with samples and schemas. `data_files` maps each data path
    (dotted) to the file that gave it. `digests` has the hex SHA-256 of every file read, `digest` the one over all of
    them (see `digest_of`). `commit` is the git commit of the work tree that holds the folder, or None; `dirty` says
    that tracked files of the folder differ from it or that files in it are not tracked.
    """

    folder: Path
    modules: tuple[Module, ...]
    tests: tuple[Module, ...]
    data: dict[str, Any]
    test_data: dict[str, Any]
    data_files: dict[tuple[str, ...], str]
    digest: str
    commit: str | None = None
    dirty: bool = False
    digests: dict[str, str] = field(default_factory=dict)
    documents: dict[str, Document] = field(default_factory=dict)

    @cached_property
    def texts(self) -> dict[str, str]:
        """The text of each module and test by its file."""
        return {module.file: module.text for module in (*self.modules, *self.tests)}


def read(folder: Path, before: Bundle | None = None) -> Bundle:
    """Read a policy folder and ask git about it. Raises PolicyRefusedError with every file that cannot be used."""
    return replace(read_folder(folder, before), **git_fields(folder))


def read_folder(folder: Path, before: Bundle | None = None) -> Bundle:
    """Read a policy folder, without a commit. What has the bytes that it had in the bundle `before` is taken from
    there instead of being decoded again."""
    findings: list[Finding] = []
    files = read_files(folder, findings)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    known_modules = {module.file: module for module in (*before.modules, *before.tests)} if before else {}
    modules: list[Module] = []
    tests: list[Module] = []
    documents: dict[str, Document] = {}
    for name, content in files.items():
        same = before is not None and before.digests.get(name) == digests[name]
        if name.endswith(".rego"):
            module = known_modules[name] if same else _module(name, content, findings)
            if module is not None:
                (tests if name.endswith("_test.rego") else modules).append(module)
            continue
        document = before.documents[name] if before is not None and same else _document(name, content, findings)
        if document is not None:
            documents[name] = document
    if before is not None and _same(documents, before.documents):
        data, test_data, owners = before.data, before.test_data, before.data_files
    else:
        owners = {}
        test_data = merged(documents, findings)
        data = merged({name: document for name, document in documents.items() if not document.test_only}, [], owners)
    if not modules and not findings:
        findings.append(
            Finding(".", 0, 0, "the folder holds no Rego file", "give the folder that holds sallyport.rego")
        )
    if findings:
        raise PolicyRefusedError(findings)
    return Bundle(
        folder, tuple(modules), tuple(tests), data, test_data, owners, _digest(files, digests), digests=digests,
        documents=documents,
    )  # fmt: skip


def _same(documents: dict[str, Document], before: dict[str, Document]) -> bool:
    """Are these the very documents that were merged before?"""
    return documents.keys() == before.keys() and all(before[name] is document for name, document in documents.items())


def git_fields(folder: Path) -> dict[str, Any]:
    """Return what git says of a folder, as the members of a bundle."""
    commit, dirty = git_state(folder)
    return {"commit": commit, "dirty": dirty}


def digest_of(files: dict[str, bytes]) -> str:
    """Return the hex SHA-256 of the canonical listing: per file in order of its name's UTF-8 bytes, the line
    `<hex sha256 of content>  <size>  <name>` ended by a newline (a name with a newline is never read)."""
    return _digest(files, {name: hashlib.sha256(content).hexdigest() for name, content in files.items()})


def _digest(files: dict[str, bytes], digests: dict[str, str]) -> str:
    listing = "".join([f"{digests[name]}  {len(files[name])}  {name}\n" for name in sorted(files, key=str.encode)])
    return hashlib.sha256(listing.encode()).hexdigest()


def _module(name: str, content: bytes, findings: list[Finding]) -> Module | None:
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        col = error.start - (content.rfind(b"\n", 0, error.start) + 1) + 1
        findings.append(Finding(name, line, col, "not UTF-8", "save the file as UTF-8"))
        return None
    if "\0" in text or text.startswith("\ufeff"):
        findings.append(Finding(name, 1, 1, "a NUL or a byte order mark", "save the file as plain UTF-8 text"))
        return None
    return Module(name, text)


def _document(name: str, content: bytes, findings: list[Finding]) -> Document | None:
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        findings.append(Finding(name, 1, 1, f"not JSON: {error}", "mend the JSON"))
        return None
    if not isinstance(document, dict):
        findings.append(Finding(name, 1, 1, "the file holds no JSON object", 'wrap the value: {"name": ...}'))
        return None
    at = tuple(name.split("/")[:-1])
    return Document(at, document, bool(TEST_ONLY_DIRECTORIES & set(at)), len(content))


def merged(
    documents: Mapping[str, Document], findings: list[Finding], owners: dict[tuple[str, ...], str] | None = None
) -> dict[str, Any]:
    """Merge documents by file as OPA does: objects join, anything else may stand once. `owners` is told which file
    gave each path."""
    given: dict[tuple[str, ...], str] = {} if owners is None else owners
    tree: dict[str, Any] = {}
    own = {id(tree)}

    def join(into: dict[str, Any], add: dict[str, Any], path: tuple[str, ...], name: str) -> None:
        for key, value in add.items():
            here = (*path, key)
            if key not in into:
                into[key] = value
                given[here] = name
            elif isinstance(into[key], dict) and isinstance(value, dict):
                if id(into[key]) not in own:
                    # It is a document's own object, which other trees share.
                    into[key] = dict(into[key])
                    own.add(id(into[key]))
                join(into[key], value, here, name)
            else:
                message = f"data.{'.'.join(here)} is already given by {given.get(here, 'another file')}"
                findings.append(Finding(name, 1, 1, message, "keep each value in one file"))

    for name, document in documents.items():
        value = document.value
        for key in reversed(document.at):
            value = {key: value}
        join(tree, value, (), name)
    return tree


def git_state(folder: Path) -> tuple[str | None, bool]:
    """Return the commit of the git work tree that holds the folder, and whether the folder differs from it.

    (None, False) without git or outside a work tree. git refuses a tree owned by somebody else ("dubious
    ownership", CVE-2022-24765), which is the usual case for an engine that runs as root on an operator's checkout:
    so it is named safe for these read-only calls alone, with hooks and fsmonitor (both run programs that the tree's
    configuration names) switched off.
    """
    # safe.directory is honoured from the system, global and command scope only, never from the tree's own
    # configuration; GIT_CONFIG_COUNT is the command scope.
    settings = {"safe.directory": "*", "core.fsmonitor": "false", "core.hooksPath": "/dev/null"}
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_CONFIG_COUNT": str(len(settings)), "GIT_OPTIONAL_LOCKS": "0", "LC_ALL": "C"}
    # In a partial clone a missing object is fetched, by a command that the tree's configuration names.
    environment |= {"GIT_NO_LAZY_FETCH": "1", "GIT_ALLOW_PROTOCOL": "none", "GIT_TERMINAL_PROMPT": "0"}
    for index, (key, value) in enumerate(settings.items()):
        environment |= {f"GIT_CONFIG_KEY_{index}": key, f"GIT_CONFIG_VALUE_{index}": value}

    def git(*arguments: str) -> str | None:
        try:
            run = subprocess.run(
                ["git", "-C", str(folder), *arguments],
                env=environment, capture_output=True, text=True, timeout=5, check=False,
            )  # fmt: skip
        except (OSError, subprocess.TimeoutExpired, UnicodeDecodeError):
            return None
        return run.stdout if run.returncode == 0 else None

    commit = git("rev-parse", "--verify", "HEAD^{commit}")
    if commit is None:
        return None, False
    # filter.*.clean of the tree's configuration would run a program on a changed file; comparing without filters
    # is not offered by status, so a tree that defines one is read as "dirty" without asking.
    filters = git("config", "--show-scope", "--includes", "--get-regexp", r"^filter\..*\.(clean|process)$") or ""
    if any(line.startswith(("local", "worktree")) for line in filters.splitlines()):
        return commit.strip(), True
    # Submodules are left alone: git asks them with their own configuration, and without the settings above.
    status = git("status", "--porcelain", "--untracked-files=normal", "--ignore-submodules=all", "--", ".")
    return commit.strip(), status is None or bool(status.strip())
