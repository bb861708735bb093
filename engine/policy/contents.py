"""The files of a policy folder as bytes: which of them belong to the policy, and why one cannot be used.

Every byte is read each time, also where nothing seems to have changed: a time stamp proves nothing (an edit within
one tick of the clock keeps it, and so does `touch -r`). So it is written to be quick: four calls of the kernel for
a file, none for a path.
"""

from __future__ import annotations

import errno
import os
import stat
from operator import attrgetter
from pathlib import Path

from engine.policy.findings import Finding, PolicyRefusedError

MAX_REGO_BYTES = 1 << 20
"""The interpreter reads a module as a whole; a module this large is a generated list that belongs in data."""
MAX_JSON_BYTES = 64 << 20
"""17 MB of JSON cost the evaluator 89 MiB; four times that is the end of what its memory limit can hold."""
MAX_FILES = 4096
_SUFFIXES = (".rego", ".json", ".yaml", ".yml")
_YAML = (".yaml", ".yml")
_OPEN = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_MEND_LINK = "mend the link or the permissions"


def read_files(folder: Path, findings: list[Finding]) -> dict[str, bytes]:
    """Return the content of every file that belongs to the policy, by relative name: a directory's files before its
    subdirectories, each in order. What cannot be used goes to `findings`; without a folder PolicyRefusedError."""
    try:
        root = folder.resolve(strict=True)
        descriptor = os.open(root, _OPEN | os.O_DIRECTORY)
    except OSError as error:
        findings.append(
            Finding(str(folder), 0, 0, f"no policy folder here ({type(error).__name__})", "give a directory")
        )
        raise PolicyRefusedError(findings) from error
    walk = _Walk(root, findings)
    walk.directory(descriptor, "")
    return walk.found


class _Walk:
    """One reading of a folder, by descriptors: a directory that is replaced meanwhile cannot lead elsewhere."""

    def __init__(self, root: Path, findings: list[Finding]) -> None:
        self._root = root
        self._findings = findings
        self._seen = 0
        self.found: dict[str, bytes] = {}

    def directory(self, descriptor: int, relative: str) -> bool:
        """Read what a directory holds and close it. False when there were too many files to go on."""
        try:
            with os.scandir(descriptor) as listing:
                entries = sorted((entry for entry in listing if entry.name[0] != "."), key=attrgetter("name"))
            directories, files = [], []
            for entry in entries:
                if _is_directory(entry):
                    directories.append(entry)
                elif entry.name.endswith(_SUFFIXES):
                    files.append(entry)
            return self._files(descriptor, relative, files) and self._directories(descriptor, relative, directories)
        except OSError as error:
            self._refuse(
                relative.rstrip("/") or ".",
                f"cannot be read ({error.strerror})",
                "give the engine's user read permission",
            )
            return True
        finally:
            os.close(descriptor)

    def _files(self, descriptor: int, relative: str, entries: list[os.DirEntry[str]]) -> bool:
        for entry in entries:
            self._seen += 1
            if self._seen > MAX_FILES:
                self._refuse(".", f"more than {MAX_FILES} files", "give a folder of policy only")
                return False
            name = relative + entry.name
            content = self._content(descriptor, entry.name, name if name.isascii() else _printable(name))
            if content is not None:
                self.found[name] = content
        return True

    def _directories(self, descriptor: int, relative: str, entries: list[os.DirEntry[str]]) -> bool:
        for entry in entries:
            try:
                inner = os.open(entry.name, _OPEN | os.O_DIRECTORY, dir_fd=descriptor)
            except OSError as error:
                name = _printable(relative + entry.name)
                if entry.is_symlink():
                    # Passing over a linked directory silently would drop its rules.
                    self._refuse(name, "a linked directory is not read", "put the files themselves into the folder")
                else:
                    self._refuse(name, f"cannot be read ({error.strerror})", "give the engine's user read permission")
                continue
            if not self.directory(inner, f"{relative}{entry.name}/"):
                return False
        return True

    def _content(self, directory: int, entry: str, name: str) -> bytes | None:
        if "\n" in name or "\ufffd" in name or "?" in name:
            return self._refused(
                name, "the file's name is not usable", "use letters, digits, '_', '-' and '.' in names"
            )
        if name.endswith(_YAML):
            return self._refused(name, "YAML is not read, though OPA would read it", "write the data as JSON")
        try:
            # O_NONBLOCK: opening a FIFO must not hang a reload.
            file = os.open(entry, _OPEN | os.O_NONBLOCK, dir_fd=directory)
        except OSError as error:
            if error.errno == errno.ELOOP:
                return self._linked(name)
            return self._refused(name, f"cannot be read ({error.strerror})", _MEND_LINK)
        return self._read(file, name)

    def _linked(self, name: str) -> bytes | None:
        """Read a file through its link, which must not lead out of the folder."""
        try:
            target = (self._root / name).resolve(strict=True)
            if not target.is_relative_to(self._root):
                return self._refused(name, "the link leaves the policy folder", "put the file itself into the folder")
            file = os.open(target, _OPEN | os.O_NONBLOCK)
        except OSError as error:
            return self._refused(name, f"cannot be read ({error.strerror})", _MEND_LINK)
        except RuntimeError:
            return self._refused(name, "cannot be read (a loop of links)", _MEND_LINK)
        return self._read(file, name)

    def _read(self, file: int, name: str) -> bytes | None:
        limit = MAX_REGO_BYTES if name.endswith(".rego") else MAX_JSON_BYTES
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                return self._refused(name, "not a regular file", "remove it from the policy folder")
            content = os.read(file, min(status.st_size, limit) + 1)
            # It grew meanwhile, or the file system does not say how large it is.
            while len(content) > status.st_size and len(content) <= limit and (more := os.read(file, limit + 1)):
                content += more
        except OSError as error:
            return self._refused(name, f"cannot be read ({error.strerror})", _MEND_LINK)
        finally:
            os.close(file)
        if len(content) > limit:
            return self._refused(name, f"larger than {limit >> 20} MiB", "split it, or keep lists as JSON data")
        return content

    def _refused(self, name: str, message: str, mend: str) -> bytes | None:
        self._refuse(name, message, mend)
        return None

    def _refuse(self, name: str, message: str, mend: str) -> None:
        self._findings.append(Finding(name, 0, 0, message, mend))


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a loop of links


def _printable(name: str) -> str:
    return name.encode(errors="replace").decode()
