"""Packages from Debian's archive, by apt itself: it finds, checks the signatures, and downloads; nothing is installed.

apt gets folders of its own below the cache, so neither the package lists nor the sources of this machine are touched.
Which mirror is asked is this machine's own choice: a Debian's sources name it, anybody else says it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vagrant.vm.errors import NetworkError, PackageError, RoomError, UsageError
from vagrant.vm.place import require, search_path

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
MIRROR_VARIABLE = "SALLYPORT_DEBIAN_MIRROR"
SECURITY_VARIABLE = "SALLYPORT_DEBIAN_SECURITY_MIRROR"
LISTS_LIVE_SECONDS = 24 * 3600
APT_SECONDS = 900
"""After which apt counts as hanging: it does for ever on a disk that is full."""
_FULL_BYTES = 1 << 20

SUITES = ("bookworm", "bookworm-backports", "trixie", "trixie-backports")
SECURITY_SUITES = ("bullseye-security", "bookworm-security", "trixie-security")

_UNREACHABLE = re.compile(
    r"Temporary failure resolving|Could not (?:resolve|connect)|Failed to fetch|Unable to connect|timed out|Connection"
)
_FULL = re.compile(r"No space left on device|enough free space|Disk quota exceeded")


@dataclass(frozen=True)
class Mirrors:
    """Base addresses of the archive and of its security part, without a slash at the end."""

    main: str
    security: str


@dataclass(frozen=True)
class Package:
    name: str
    version: str


def mirrors_among(repositories: Iterable[str]) -> Mirrors | None:
    """Pick Debian's archive out of the addresses in apt's sources; None when it is not among them."""
    main = security = ""
    for address in repositories:
        stripped = address.rstrip("/")
        if stripped.endswith("/debian"):
            main = main or stripped
        elif stripped.endswith("/debian-security"):
            security = security or stripped
    if not main:
        return None
    return Mirrors(main, security or f"{main}-security")


def mirrors() -> Mirrors:
    """The mirrors to use. Raises UsageError when this machine names none."""
    if main := os.environ.get(MIRROR_VARIABLE):
        main = main.rstrip("/")
        return Mirrors(main, os.environ.get(SECURITY_VARIABLE, f"{main}-security").rstrip("/"))
    require(["apt-get"])
    listed = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Created-By: Packages"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    found = mirrors_among(listed.stdout.split())
    if found is None:
        raise UsageError(
            "This machine's package sources name no mirror of Debian.",
            hint=f"Set {MIRROR_VARIABLE} to the address of one (it ends in /debian).",
        )
    return found


def parse_stanzas(text: str) -> list[Package]:
    """Packages out of the stanzas of a Packages file or of `apt-cache dumpavail`."""
    found = []
    for stanza in text.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Version): (\S+)$", stanza, re.MULTILINE))
        if len(fields) == 2:
            found.append(Package(fields["Package"], fields["Version"]))
    return found


class Archive:
    """Debian's archive as apt sees it from folders of its own. One at a time: apt locks them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._configuration = folder / "apt.conf"

    def refresh(self) -> None:
        """Read the package lists, unless they are younger than a day. Raises NetworkError, RoomError, PackageError."""
        require(["apt-get", "dpkg-deb"])
        stamp = self.folder / "read"
        wanted = self._write_configuration()
        if stamp.exists() and stamp.read_text() == wanted and time.time() - stamp.stat().st_mtime < LISTS_LIVE_SECONDS:
            return
        stamp.unlink(missing_ok=True)
        self._apt(["update", "--error-on=any"], "The package lists cannot be read")
        stamp.write_text(wanted)

    def packages(self, pattern: str) -> list[Package]:
        """Every package whose whole name matches, in each version that a suite has."""
        done = subprocess.run(
            ["apt-cache", "-c", str(self._configuration), "dumpavail"], check=False, capture_output=True, text=True
        )
        whole = re.compile(pattern)
        return [package for package in parse_stanzas(done.stdout) if whole.fullmatch(package.name)]

    def fetch(self, packages: Sequence[Package], into: Path) -> None:
        """Download the packages and unpack them into the folder; no script of theirs runs."""
        debs = self.folder / "debs"
        debs.mkdir(exist_ok=True)
        for old in debs.glob("*.deb"):
            old.unlink()
        self._apt(
            ["download", *(f"{package.name}={package.version}" for package in packages)],
            f"The package {packages[0].name} cannot be downloaded", cwd=debs,
        )  # fmt: skip
        for deb in sorted(debs.glob("*.deb")):
            done = subprocess.run(
                ["dpkg-deb", "--extract", str(deb), str(into)], check=False, capture_output=True, text=True
            )
            if done.returncode:
                raise _said(f"{deb.name} cannot be unpacked", done.stderr)
            deb.unlink()

    def _write_configuration(self) -> str:
        """Write apt's configuration and sources; return what the sources say."""
        at = mirrors()
        if not KEYRING.exists():
            raise UsageError(
                f"Debian's signing keys are not at {KEYRING}.", hint="Install the package debian-archive-keyring."
            )
        lines = [f"deb [arch=amd64 signed-by={KEYRING}] {at.main} {suite} main" for suite in SUITES]
        lines += [f"deb [arch=amd64 signed-by={KEYRING}] {at.security} {suite} main" for suite in SECURITY_SUITES]
        sources = "\n".join(lines) + "\n"
        for name in ("lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").touch()
        (self.folder / "sources.list").write_text(sources)
        settings = {
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "/dev/null",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": "/dev/null",
            "Dir::State": self.folder,
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",
            "Acquire::Languages": "none",
            "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        }
        self._configuration.write_text("".join(f'{name} "{value}";\n' for name, value in settings.items()))
        return sources

    def _apt(self, words: Sequence[str], failure: str, cwd: Path | None = None) -> None:
        try:
            done = subprocess.run(
                ["apt-get", "-c", str(self._configuration), "-q", "-o", "Acquire::Retries=2", *words],
                check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL, cwd=cwd, timeout=APT_SECONDS,
                # The C locale, because the words are read; the lock of another run is waited for.
                env={**os.environ, "LC_ALL": "C", "PATH": search_path()},
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            full = shutil.disk_usage(self.folder).free < _FULL_BYTES
            said = "No space left on device" if full else "Connection timed out"
            raise _said(failure, said) from error
        if done.returncode:
            raise _said(failure, done.stdout + done.stderr)


def _said(failure: str, output: str) -> NetworkError | RoomError | PackageError:
    """The error that fits what apt or dpkg said."""
    lines = [line for line in output.splitlines() if line.startswith(("E:", "Err:", "dpkg"))] or output.splitlines()
    last = lines[-1] if lines else "it said nothing"
    if _FULL.search(output):
        return RoomError(f"{failure}: the disk is full.", hint="Make room, then run the command again.")
    if _UNREACHABLE.search(output):
        return NetworkError(
            f"{failure}: the package archive cannot be reached.",
            hint=f"Check the network and the proxy, or name another mirror in {MIRROR_VARIABLE}. apt said: {last}",
        )
    return PackageError(f"{failure}.", hint=f"It was said: {last}")
