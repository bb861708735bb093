"""Rules by executable: a file that is another's copy, code that runs under another's name."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

from engine.lab.topology import SERVER
from engine.selftest.attempt import PATIENCE, Attempt, Chance, Outcome, hear
from engine.selftest.hello import client_hello
from engine.selftest.policy import BY_DIGEST, BY_PATH, PROTECTED

_SENDER = "engine.selftest.sender"
_COMPILERS = ("cc", "gcc", "clang")
_SECONDS = 90.0
"""Against a hang only: an emulated machine takes half a minute to start a copy of the interpreter."""

_LIBRARY = """
#include <arpa/inet.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

__attribute__((constructor)) static void leave(void)
{
	static char hello[4096], word[64];
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(getenv("LEAVE_PORT")))};
	struct timeval patience = {.tv_sec = 2};
	const char *hex = getenv("LEAVE_HELLO");
	int length = 0, fd = socket(AF_INET, SOCK_STREAM, 0);

	for (; hex[0] && hex[1] && length < (int)sizeof(hello); hex += 2) {
		char digits[3] = {hex[0], hex[1], 0};
		hello[length++] = (char)strtol(digits, 0, 16);
	}
	inet_pton(AF_INET, getenv("LEAVE_ADDRESS"), &to.sin_addr);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof(patience));
	if (connect(fd, (struct sockaddr *)&to, sizeof(to)) || write(fd, hello, length) != length)
		_exit(1);
	(void)!read(fd, word, sizeof(word));
	_exit(0);
}
"""


def copy_interpreter(to: Path) -> Path:
    """Put another file with the interpreter's content there."""
    shutil.copy(Path(sys.executable).resolve(), to)
    return to


def _environment() -> dict[str, str]:
    # A copy of the interpreter does not find its library by its own path.
    return {**os.environ, "PYTHONHOME": sys.base_prefix, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def _run(program: Path | str, c: Chance, suffix: str, *, pass_fds: tuple[int, ...] = ()) -> None:
    words = [str(program), "-m", _SENDER, SERVER, str(c.port), c.name(suffix).decode()]
    _ended(subprocess.run(words, env=_environment(), capture_output=True, check=False, timeout=_SECONDS,
                          pass_fds=pass_fds))  # fmt: skip


def _ended(done: subprocess.CompletedProcess[bytes]) -> None:
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(lines[-1] if lines else f"exit {done.returncode}")


def another(c: Chance) -> None:
    with c.connect(SERVER) as connection:
        connection.sendall(client_hello(c.name(PROTECTED)))
        hear(connection)


def renamed(c: Chance) -> None:
    """A file of the listed one's name and content, in another folder."""
    folder = c.work / c.token
    folder.mkdir(exist_ok=True)
    _run(copy_interpreter(folder / c.listed.name), c, PROTECTED)


def without_file(c: Chance) -> None:
    """A program in memory alone (memfd_create)."""
    memory = os.memfd_create("program", 0)
    os.write(memory, Path(sys.executable).resolve().read_bytes())
    words = ["program", "-m", _SENDER, SERVER, str(c.port), c.name(PROTECTED).decode()]
    done = subprocess.run(words, executable=f"/proc/self/fd/{memory}", env=_environment(), capture_output=True,
                          check=False, timeout=_SECONDS, pass_fds=(memory,))  # fmt: skip
    os.close(memory)
    _ended(done)


def mounted_over(c: Chance) -> None:
    """In a mount namespace of its own, another file lies over the listed one."""
    other = copy_interpreter(c.work / f"{c.token}-over")
    script = 'mount --bind "$0" "$1" && shift && exec "$@"'
    words = ["unshare", "--mount", "--", "sh", "-c", script, str(other), str(c.listed)]
    words += [str(c.listed), "-m", _SENDER, SERVER, str(c.port), c.name(PROTECTED).decode()]
    _ended(subprocess.run(words, env=_environment(), capture_output=True, check=False, timeout=_SECONDS))


def copied(c: Chance, suffix: str) -> None:
    copy = c.work / f"{c.token}-copy"
    shutil.copy(c.unwanted, copy)
    _run(copy, c, suffix)


def copied_by_path(c: Chance) -> None:
    copied(c, BY_PATH)


def copied_by_digest(c: Chance) -> None:
    copied(c, BY_DIGEST)


def interpreter(c: Chance) -> None:
    """Not the script that the interpreter is listed for."""
    _run(c.listed, c, PROTECTED)


def preload(c: Chance) -> None:
    compiler = next(filter(None, map(shutil.which, _COMPILERS)), None)
    if compiler is None:
        raise OSError(f"no C compiler ({', '.join(_COMPILERS)}) to make a library with")
    library = c.work / f"{c.token}.so"
    words = [compiler, "-shared", "-fPIC", "-x", "c", "-", "-o", str(library)]
    _ended(subprocess.run(words, input=_LIBRARY.encode(), capture_output=True, check=False, timeout=_SECONDS))
    hello = client_hello(c.name(PROTECTED)).hex()
    environment = {"LD_PRELOAD": str(library), "LEAVE_ADDRESS": SERVER, "LEAVE_PORT": str(c.port), "LEAVE_HELLO": hello}
    _ended(subprocess.run([str(c.listed), "--version"], env=environment, capture_output=True, check=False,
                          timeout=_SECONDS))  # fmt: skip


def handed_over(c: Chance) -> None:
    """The listed program connects and hands the socket to another one, which sends what it likes."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    words = [str(c.listed), "-m", _SENDER, SERVER, str(c.port), "-", "--hand-over", str(theirs.fileno())]
    with subprocess.Popen(words, env=_environment(), pass_fds=(theirs.fileno(),)) as program, ours:
        theirs.close()
        ours.settimeout(_SECONDS)
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        with socket.socket(fileno=descriptors[0]) as connection:
            connection.settimeout(PATIENCE)
            connection.sendall(client_hello(c.name(PROTECTED)))
            hear(connection)
        ours.sendall(b"x")
        program.wait()


_NOT_LISTED = "A rule by executable goes by the whole path of the file that runs, and this is another file."
_ITS_CODE = "The gate knows a program by its file, not by the code it loads: list none that runs others' code."

_ATTEMPTS = (
    Attempt("another program", "a name that is for the listed program alone", another, {Outcome.BLOCKED: _NOT_LISTED}),
    Attempt("renamed executable", "a protected name, by a file of the listed one's name elsewhere", renamed,
            {Outcome.BLOCKED: _NOT_LISTED}),
    Attempt("executable without a file", "a protected name, by a program in memory (memfd)", without_file,
            {Outcome.BLOCKED: _NOT_LISTED}),
    Attempt("executable mounted over", "a protected name, by another file bound over the listed one", mounted_over,
            {Outcome.OPEN: "The path is the one that the program's own mount namespace shows; exe.sha256 tells."},
            needs="CAP_SYS_ADMIN"),
    Attempt("copied executable, denied by path", "a name that one file is denied by its path", copied_by_path,
            {Outcome.SEEN: "A deny by path ends at the path; the log has the copy's own: deny by digest, or allow "
             "by list."}, tells=lambda entry: entry.exe.endswith("-copy")),
    Attempt("copied executable, denied by digest", "a name that one file is denied by its digest", copied_by_digest,
            {Outcome.BLOCKED: "A copy has the digest of what it is a copy of."}),
    Attempt("interpreter", "a protected name, by any script of the listed interpreter", interpreter,
            {Outcome.OPEN: "The executable of a script is its interpreter: list no interpreter."}),
    Attempt("LD_PRELOAD", "a protected name, by a library in the listed program", preload, {Outcome.OPEN: _ITS_CODE}),
    Attempt("SCM_RIGHTS from the listed program", "a protected name, by a program that was handed its socket",
            handed_over, {Outcome.OPEN: "Who connected answers for the socket: list no program that gives its away."}),
)  # fmt: skip
ATTEMPTS = tuple(replace(each, files=True) for each in _ATTEMPTS)
