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
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from engine.policy.findings import Finding, PolicyRefusedError

MAX_REGO_BYTES = 1 << 20
"""The interpreter reads a module as a whole; a module this large is a generated list that belongs in data."""
MAX_JSON_BYTES = 64 << 20
"""17 MB of JSON cost the evaluator 89 MiB; four times that is the end of what its memory limit can hold."""
MAX_FILES = 4096
TEST_ONLY_DIRECTORIES = frozenset({"samples", "schemas"})


@dataclass(frozen=True)
class Module:
    """One Rego file: `file` relative to the folder with forward slashes, `text` as read."""

    file: str
    text: str


@dataclass(frozen=True)
class Bundle:
    """A policy folder as read at one moment.

    `data` is what rules may read, `test_data` the same with samples and schemas. `data_files` maps each data path
    (dotted) to the file that gave it. `digest` is lower-case hex SHA-256 over every file read (see `digest_of`).
    `commit` is the git commit of the work tree that holds the folder, or None; `dirty` says that tracked files of
    the folder differ from it or that files in it are not tracked.
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


def read(folder: Path) -> Bundle:
    """Read a policy folder. Raises PolicyRefusedError with every file that cannot be used."""
    findings: list[Finding] = []
    files = _files(folder, findings)
    modules: list[Module] = []
    tests: list[Module] = []
    data: dict[str, Any] = {}
    test_data: dict[str, Any] = {}
    owners: dict[tuple[str, ...], str] = {}
    test_owners: dict[tuple[str, ...], str] = {}
    for name, content in files.items():
        if name.endswith(".rego"):
            text = _text(name, content, findings)
            if text is not None:
                (tests if name.endswith("_test.rego") else modules).append(Module(name, text))
            continue
        document = _document(name, content, findings)
        if document is None:
            continue
        _merge(test_data, document, name, test_owners, findings)
        if not TEST_ONLY_DIRECTORIES & set(name.split("/")[:-1]):
            _merge(data, document, name, owners, [])
    if not modules and not findings:
        findings.append(
            Finding(".", 0, 0, "the folder holds no Rego file", "give the folder that holds sallyport.rego")
        )
    if findings:
        raise PolicyRefusedError(findings)
    commit, dirty = git_state(folder)
    return Bundle(folder, tuple(modules), tuple(tests), data, test_data, owners, digest_of(files), commit, dirty)


def digest_of(files: dict[str, bytes]) -> str:
    """Return the hex SHA-256 of the canonical listing: per file in order of its name's UTF-8 bytes, the line
    `<hex sha256 of content>  <size>  <name>` ended by a newline (a name with a newline is never read)."""
    listing = hashlib.sha256()
    for name in sorted(files, key=lambda name: name.encode()):
        content = files[name]
        listing.update(f"{hashlib.sha256(content).hexdigest()}  {len(content)}  {name}\n".encode())
    return listing.hexdigest()


def _files(folder: Path, findings: list[Finding]) -> dict[str, bytes]:
    """Return the content of every file that belongs to the policy, by relative name, in sorted order."""
    try:
        root = folder.resolve(strict=True)
        if not root.is_dir():
            raise NotADirectoryError
    except OSError as error:
        findings.append(
            Finding(str(folder), 0, 0, f"no policy folder here ({type(error).__name__})", "give a directory")
        )
        raise PolicyRefusedError(findings) from error
    found: dict[str, bytes] = {}
    seen = 0
    for directory, subdirectories, names in os.walk(
        root, onerror=lambda error: findings.append(_unreadable(root, error))
    ):
        subdirectories[:] = sorted(name for name in subdirectories if not name.startswith("."))
        here = Path(directory)
        for name in list(subdirectories):
            # os.walk does not enter linked directories; passing over one silently would drop its rules.
            if (here / name).is_symlink():
                mend = "put the files themselves into the folder"
                findings.append(Finding(_relative(here / name, root), 0, 0, "a linked directory is not read", mend))
                subdirectories.remove(name)
        for name in sorted(names):
            if name.startswith(".") or not name.endswith((".rego", ".json", ".yaml", ".yml")):
                continue
            seen += 1
            if seen > MAX_FILES:
                findings.append(Finding(".", 0, 0, f"more than {MAX_FILES} files", "give a folder of policy only"))
                return found
            path = here / name
            content = _content(path, root, findings)
            if content is not None:
                found[_relative(path, root)] = content
    return found


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix().encode(errors="replace").decode()


def _unreadable(root: Path, error: OSError) -> Finding:
    where = Path(error.filename) if error.filename else root
    name = _relative(where, root) if where.is_relative_to(root) else str(where)
    return Finding(name, 0, 0, f"cannot be read ({error.strerror})", "give the engine's user read permission")


def _content(path: Path, root: Path, findings: list[Finding]) -> bytes | None:
    name = _relative(path, root)

    def refuse(message: str, mend: str) -> None:
        findings.append(Finding(name, 0, 0, message, mend))

    if "\n" in name or "\ufffd" in name or "?" in name:
        refuse("the file's name is not usable", "use letters, digits, '_', '-' and '.' in names")
        return None
    if name.endswith((".yaml", ".yml")):
        refuse("YAML is not read, though OPA would read it", "write the data as JSON")
        return None
    try:
        target = path.resolve(strict=True)
        if not target.is_relative_to(root):
            refuse("the link leaves the policy folder", "put the file itself into the folder")
            return None
        # O_NONBLOCK: opening a FIFO must not hang a reload.
        descriptor = os.open(target, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                refuse("not a regular file", "remove it from the policy folder")
                return None
            limit = MAX_REGO_BYTES if name.endswith(".rego") else MAX_JSON_BYTES
            content = file.read(limit + 1)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "a loop of links"
        refuse(f"cannot be read ({reason})", "mend the link or the permissions")
        return None
    if len(content) > limit:
        refuse(f"larger than {limit >> 20} MiB", "split it, or keep lists as JSON data")
        return None
    return content


def _text(name: str, content: bytes, findings: list[Finding]) -> str | None:
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
    return text


def _document(name: str, content: bytes, findings: list[Finding]) -> dict[str, Any] | None:
    try:
        document = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        findings.append(Finding(name, 1, 1, f"not JSON: {error}", "mend the JSON"))
        return None
    if not isinstance(document, dict):
        findings.append(Finding(name, 1, 1, "the file holds no JSON object", 'wrap the value: {"name": ...}'))
        return None
    return document


def _merge(
    tree: dict[str, Any],
    document: dict[str, Any],
    name: str,
    owners: dict[tuple[str, ...], str],
    findings: list[Finding],
) -> None:
    """Merge a file's document under its directory's path as OPA does: objects join, anything else may stand once."""
    for key in reversed(name.split("/")[:-1]):
        document = {key: document}

    def join(into: dict[str, Any], add: dict[str, Any], path: tuple[str, ...]) -> None:
        for key, value in add.items():
            here = (*path, key)
            if key not in into:
                into[key] = _copied(value)
                owners[here] = name
            elif isinstance(into[key], dict) and isinstance(value, dict):
                join(into[key], value, here)
            else:
                message = f"data.{'.'.join(here)} is already given by {owners.get(here, 'another file')}"
                findings.append(Finding(name, 1, 1, message, "keep each value in one file"))

    join(tree, document, ())


def _copied(value: Any) -> Any:
    # The two trees (with and without samples) must not share the objects that later files are merged into.
    return {key: _copied(inner) for key, inner in value.items()} if isinstance(value, dict) else value


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
