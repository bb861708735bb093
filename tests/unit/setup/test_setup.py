"""What setup does on machines that lack something: its functions, run with stand-ins for the programs they call."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@dataclass(frozen=True)
class Checkout:
    """A copy of the scripts in a folder of its own, with stand-ins for programs first in PATH."""

    root: Path

    def stand_in(self, name: str, script: str) -> Path:
        """Put a program that is the given shell script before the real one."""
        return self.program(f"bin/{name}", script)

    def program(self, path: str, script: str) -> Path:
        program = self.root / path
        program.parent.mkdir(parents=True, exist_ok=True)
        program.unlink(missing_ok=True)
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        program.chmod(program.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        return program

    def run(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(
            words,
            cwd=self.root,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )

    def shell(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run a script that has all functions of setup."""
        files = ("say", "headers", "packages", "environment", "opa")
        sources = " ".join(f". scripts/setup.d/{name}.sh;" for name in files)
        return self.run("bash", "-c", f"set -euo pipefail; root=$PWD; {sources}\n{script}")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    for name in ("pyproject.toml", "requirements-dev.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "build").mkdir()
    return Checkout(tmp_path)


DEBIAN = 'PRETTY_NAME="Debian GNU/Linux"\nID=debian\nVERSION_ID="{}"\n'
UBUNTU = 'PRETTY_NAME="Ubuntu"\nID=ubuntu\nID_LIKE=debian\nVERSION_ID="{}"\n'


@pytest.mark.parametrize(
    ("release", "machine", "code", "words"),
    [
        (DEBIAN.format(12), "x86_64", 0, ""),
        (DEBIAN.format(13), "aarch64", 0, ""),
        (UBUNTU.format("22.04"), "x86_64", 0, ""),
        (UBUNTU.format("24.04"), "x86_64", 0, ""),
        (UBUNTU.format("25.10"), "x86_64", 0, "not among the tested systems"),
        ('ID=linuxmint\nID_LIKE="ubuntu debian"\nVERSION_ID=22\n', "x86_64", 0, "not among the tested systems"),
        ('PRETTY_NAME="Fedora Linux 43"\nID=fedora\n', "x86_64", 10, "Fedora Linux 43 is not supported"),
        ("", "x86_64", 10, "this system is not supported"),
        (DEBIAN.format(12), "riscv64", 10, "riscv64 is not supported"),
    ],
)
def test_the_system_is_checked_before_anything_else(
    checkout: Checkout, release: str, machine: str, code: int, words: str
) -> None:
    (checkout.root / "os-release").write_text(release, encoding="utf-8")
    done = checkout.shell(f"check_system os-release {machine}")
    assert done.returncode == code
    assert words in done.stdout + done.stderr
    assert bool(done.stdout + done.stderr) == bool(words)


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("E: Could not get lock /var/lib/dpkg/lock-frontend. It is held by process 812 (unattended-upgr)", 13),
        ("E: Unable to lock directory /var/lib/apt/lists/", 13),
        ("E: You don't have enough free space in /var/cache/apt/archives/.", 14),
        ("dpkg: error processing archive x.deb: failed to write: No space left on device", 14),
        ("Err:1 http://deb.example bookworm\n  Temporary failure resolving 'deb.example'", 12),
        ("E: Failed to fetch http://deb.example/k.deb  Connection timed out", 12),
        ("E: dpkg was interrupted, you must manually run 'dpkg --configure -a' to correct the problem.", 15),
        ("E: Sub-process /usr/bin/dpkg returned an error code (1)", 15),
    ],
)
def test_each_way_that_apt_fails_has_its_exit_code_and_says_what_to_do(checkout: Checkout, log: str, code: int) -> None:
    (checkout.root / "apt.log").write_text(log, encoding="utf-8")
    done = checkout.shell("fail_apt apt.log")
    assert done.returncode == code
    sentence, hint = done.stderr.splitlines()
    assert sentence.startswith("setup: ")
    assert "make setup" in hint


@pytest.mark.parametrize(
    ("log", "code"),
    [
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", 16),
        ("OSError: [Errno 28] No space left on device", 14),
        ("WARNING: Retrying after connection broken by 'NewConnectionError(...): [Errno -3]'", 12),
        ("ERROR: Could not find a version that satisfies the requirement idna==3.20", 16),
    ],
)
def test_each_way_that_pip_fails_has_its_exit_code(checkout: Checkout, log: str, code: int) -> None:
    (checkout.root / "build/pip.log").write_text(log, encoding="utf-8")
    done = checkout.shell("fail_pip")
    assert done.returncode == code
    assert len(done.stderr.splitlines()) == 2


def test_libfuzzer_is_missing_only_where_it_is_wanted_and_does_not_work(checkout: Checkout) -> None:
    checkout.stand_in("dpkg-query", 'shift 2; for name in "$@"; do echo "ii  $name"; done')
    checkout.stand_in("clang", "exit 1")
    there = "headers_present() { true; };"
    assert checkout.shell(f"{there} missing_packages").stdout == ""
    assert checkout.shell(f"{there} fuzzing=yes; missing_packages").stdout.split() == ["clang", "libclang-rt"]
    checkout.stand_in("clang", "exit 0")
    assert checkout.shell(f"{there} fuzzing=yes; missing_packages").stdout == ""
    # Ubuntu 22.04 has no package of that name: clang brings the library.
    for known in ("libclang-rt-dev", "clang"):
        checkout.stand_in("apt-cache", f'[ "$2" != {known} ] || echo "  Candidate: 1:14.0"')
        assert checkout.shell("resolve libclang-rt").stdout.split() == [known]


def test_only_packages_that_are_not_installed_are_missing(checkout: Checkout) -> None:
    # `rc`: removed, its configuration kept. `hi`: installed and held back by the administrator.
    checkout.stand_in(
        "dpkg-query",
        'shift 2; for name in "$@"; do case $name in nginx) echo "rc  $name" ;; curl | libbpf1) ;;'
        ' git) echo "hi  $name" ;; *) echo "ii  $name" ;; esac; done; exit 1',
    )
    done = checkout.shell("headers_present() { false; }; PACKAGES_LAB+=(unheard-of); missing_packages")
    assert done.stdout.split() == ["nginx", "curl", "kernel-headers"]
    done = checkout.shell("headers_present() { true; }; installed() { echo python3; }; missing_packages")
    assert "libbpf" in done.stdout.split()
    assert "python3" not in done.stdout.split()


def test_headers_are_the_running_kernel_s_or_the_newest_generic_ones(checkout: Checkout) -> None:
    checkout.stand_in("uname", "echo 6.1.0-9-cloud")
    checkout.stand_in("dpkg", "echo amd64")
    policy = '[ "$2" = {} ] && echo "  Candidate: 1.2" || echo "  Candidate: (none)"'
    for name in ("linux-headers-6.1.0-9-cloud", "linux-headers-amd64", "linux-headers-generic"):
        checkout.stand_in("apt-cache", policy.format(name))
        assert checkout.shell("resolve kernel-headers").stdout.split() == [name]
    checkout.stand_in("apt-cache", policy.format("libbpf0"))
    assert checkout.shell("resolve libbpf").stdout.split() == ["libbpf0"]
    assert checkout.shell("resolve nginx").stdout == ""


@pytest.mark.parametrize("brings", [True, False])
def test_headers_that_would_bring_a_kernel_along_are_unpacked_and_not_installed(
    checkout: Checkout, brings: bool
) -> None:
    checkout.program("scripts/as-root", 'exec "$@"')
    checkout.stand_in(
        "apt-cache", 'case $1 in depends) echo linux-headers-6.12-amd64;; *) echo "  Candidate: 1.2";; esac'
    )
    deb = "linux-headers-6.12-amd64_1.2_amd64.deb"
    checkout.stand_in(
        "apt-get",
        f"""echo APT "$@" >>calls
        case "$*" in
            *--simulate*) echo "Inst {"linux-image" if brings else "linux-headers"}-6.12-amd64" ;;
            *download*) touch {deb} ;;
            *install*) touch installed ;;
        esac""",
    )
    checkout.stand_in(
        "dpkg-deb",
        'tree="$3/usr/src/linux-headers-6.12-amd64/include/generated"; mkdir -p "$tree"; touch "$tree/autoconf.h"',
    )
    (checkout.root / ".venv").mkdir()
    done = checkout.shell(
        r"""
        installed() { printf '%s\n' "$@"; }
        headers_present() {
            [ -e installed ] || compgen -G '.venv/src/linux-headers-*/include/generated/autoconf.h' >/dev/null
        }
        ensure_packages
        ensure_headers
        """
    )
    assert done.returncode == 0, done.stderr
    assert (checkout.root / "installed").exists() != brings
    assert (checkout.root / ".venv/src/linux-headers-6.12-amd64/include/generated/autoconf.h").exists() == brings


def test_without_root_or_sudo_nothing_is_touched(checkout: Checkout) -> None:
    checkout.stand_in("dpkg-query", "exit 1")
    checkout.stand_in("id", "echo 1000")
    checkout.stand_in("sudo", "exit 1")
    checkout.stand_in("apt-get", "touch apt-was-called")
    done = checkout.run("scripts/setup")
    assert done.returncode == 11
    assert "needs root" in done.stderr
    assert "python3-bpfcc" in done.stderr
    assert not (checkout.root / "apt-was-called").exists()
    assert not (checkout.root / ".venv").exists()


def test_what_is_to_be_installed_is_said_before_it_is(checkout: Checkout) -> None:
    checkout.program("scripts/as-root", 'exec "$@"')
    checkout.stand_in("apt-cache", 'echo "  Candidate: 1.2"')
    checkout.stand_in("apt-get", "echo APT $*")
    done = checkout.shell("missing_packages() { [ -e once ] || { touch once; echo curl; }; }; ensure_packages")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    said = next(number for number, line in enumerate(lines) if line == "setup: installing: curl")
    installed = next(number for number, line in enumerate(lines) if line.startswith("APT") and " install " in line)
    assert lines[0] == "setup: system packages missing: curl"
    assert said < installed


def test_a_package_that_the_archive_lacks_is_named(checkout: Checkout) -> None:
    checkout.program("scripts/as-root", 'exec "$@"')
    checkout.stand_in("apt-cache", 'echo "  Candidate: (none)"')
    checkout.stand_in("apt-get", "echo done")
    done = checkout.shell("missing_packages() { echo python3-bpfcc; }; ensure_packages")
    assert done.returncode == 10
    assert "does not have: python3-bpfcc" in done.stderr
    # An archive that was never reached has nothing either, but for another reason; apt-get update ends with 0 then.
    checkout.stand_in("apt-get", "echo \"W: Failed to fetch http://deb.example  Temporary failure resolving 'x'\"")
    assert checkout.shell("missing_packages() { echo python3-bpfcc; }; ensure_packages").returncode == 12


def test_apt_waits_for_a_lock_that_goes_away(checkout: Checkout) -> None:
    checkout.program("scripts/as-root", 'exec "$@"')
    checkout.stand_in("apt-get", "[ -e once ] && exit 0; touch once; echo 'E: Could not get lock /x'; exit 100")
    checkout.stand_in("sleep", "exit 0")
    done = checkout.shell("apt_get build/apt.log update")
    assert done.returncode == 0
    assert "waiting" in done.stdout
    (checkout.root / "once").unlink()
    checkout.stand_in("apt-get", "echo 'E: Could not get lock /x'; exit 100")
    done = checkout.shell("LOCK_WAIT_SECONDS=0; apt_get build/apt.log update || fail_apt build/apt.log")
    assert done.returncode == 13


def test_nginx_is_kept_from_starting_and_other_services_are_not(checkout: Checkout) -> None:
    checkout.program("scripts/as-root", 'exec "$@"')
    policy = checkout.root / "policy-rc.d"
    done = checkout.shell(f"POLICY_FILE={policy}; forbid_nginx_service; {policy} nginx start || echo refused $?")
    assert done.stdout.split() == ["refused", "101"]
    assert checkout.run(policy, "ssh", "start").returncode == 0
    checkout.shell(f"POLICY_FILE={policy}; allow_services")
    assert not policy.exists()


def test_a_service_policy_of_the_administrator_s_stays(checkout: Checkout) -> None:
    policy = checkout.program("policy-rc.d", "exit 101")
    before = policy.read_bytes()
    checkout.shell(f"POLICY_FILE={policy}; forbid_nginx_service; allow_services")
    assert policy.read_bytes() == before


def test_an_environment_that_worked_survives_a_failure_to_make_the_next(checkout: Checkout) -> None:
    checkout.program(".venv/bin/sallyport", "echo old")
    python = checkout.stand_in("python-stub", 'case "$*" in *venv*) mkdir .venv; exit 1 ;; *) echo 3.11 ;; esac')
    done = checkout.shell(f"PYTHON={python}; VENV_MEGABYTES=0; ensure_environment")
    assert done.returncode == 16
    assert checkout.run(".venv/bin/sallyport").stdout == "old\n"
    assert not (checkout.root / ".venv/made-from").exists()
    assert not (checkout.root / "build/venv.old").exists()


def test_a_first_environment_that_could_not_be_made_leaves_nothing(checkout: Checkout) -> None:
    python = checkout.stand_in("python-stub", 'case "$*" in *venv*) mkdir .venv; exit 1 ;; *) echo 3.11 ;; esac')
    assert checkout.shell(f"PYTHON={python}; VENV_MEGABYTES=0; ensure_environment").returncode == 16
    assert not (checkout.root / ".venv").exists()


def test_an_environment_that_was_moved_away_by_a_killed_run_comes_back(checkout: Checkout) -> None:
    checkout.program("build/venv.old/bin/sallyport", "echo old")
    checkout.program(".venv/bin/half-made", "")
    checkout.shell("put_back")
    assert checkout.run(".venv/bin/sallyport").stdout == "old\n"
    assert not (checkout.root / ".venv/bin/half-made").exists()


def test_an_environment_made_from_the_same_lock_is_left_alone(checkout: Checkout) -> None:
    checkout.program(".venv/bin/sallyport", "")
    checkout.program(".venv/bin/python", "touch pip-was-called; exit 1")
    checkout.shell("{ environment_key; project_key; } >.venv/made-from")
    done = checkout.shell("ensure_environment")
    assert (done.returncode, done.stdout) == (0, "setup: python environment: as locked\n")
    with (checkout.root / "requirements-dev.txt").open("a", encoding="utf-8") as lock:
        lock.write("# changed\n")
    assert checkout.shell("VENV_MEGABYTES=99999999; ensure_environment").returncode == 14


def test_a_python_outside_the_supported_versions_is_refused(checkout: Checkout) -> None:
    for version in ("3.9", "3.14"):
        python = checkout.stand_in("python-stub", f"echo {version}")
        done = checkout.shell(f"PYTHON={python}; check_python")
        assert done.returncode == 10
        assert f"Python {version}" in done.stderr


def test_an_opa_of_the_pinned_minor_version_is_taken_from_path(checkout: Checkout) -> None:
    (checkout.root / ".venv/bin").mkdir(parents=True)
    opa = checkout.stand_in("opa", "echo Version: 1.22.9")
    done = checkout.shell("ensure_opa")
    assert done.returncode == 0, done.stderr
    assert (checkout.root / ".venv/bin/opa").resolve() == opa
    # Gone from PATH since: the link is dead and must not count as an opa.
    opa.unlink()
    assert checkout.shell("right_opa .venv/bin/opa").returncode == 1


def test_an_opa_of_another_version_is_left_aside_and_a_release_is_checked(checkout: Checkout) -> None:
    (checkout.root / ".venv/bin").mkdir(parents=True)
    checkout.stand_in("opa", "echo Version: 1.9.0")
    checkout.stand_in("go", "echo go1.19.8")
    body = "#!/bin/sh\necho Version: 1.22.2\n"
    file = "build/opa_linux_amd64_static"
    checkout.stand_in("dpkg", "echo amd64")
    digest = hashlib.sha256(body.encode()).hexdigest()
    curl = "printf '#!/bin/sh\\necho Version: 1.22.2\\n' >{0}; echo '{1}  release/opa' >{0}.sha256"

    checkout.stand_in("curl", curl.format(file, "0" * 64))
    done = checkout.shell("ensure_opa")
    assert done.returncode == 17
    assert "1.9.0, not 1.22.2" in done.stdout
    assert not (checkout.root / ".venv/bin/opa").exists()

    checkout.stand_in("curl", "exit 22")
    assert checkout.shell("ensure_opa").returncode == 17

    checkout.stand_in("curl", curl.format(file, digest))
    done = checkout.shell("ensure_opa")
    assert done.returncode == 0, done.stderr
    assert (checkout.root / ".venv/bin/opa").read_text(encoding="utf-8") == body


@pytest.mark.parametrize(
    ("version", "can"),
    [("go1.26.0", True), ("go1.21", True), ("go1.19.8", False), ("devel +abc", False), ("", False)],
)
def test_a_go_before_toolchains_is_not_used(checkout: Checkout, version: str, can: bool) -> None:
    go = checkout.stand_in("go", f"echo '{version}'")
    assert (checkout.shell(f"go_can_build {go}").returncode == 0) == can


def test_unknown_words_are_refused_and_help_has_every_exit_code(checkout: Checkout) -> None:
    assert checkout.run("scripts/setup", "--fast").returncode == 2
    text = checkout.run("scripts/setup", "--help").stdout
    codes = checkout.shell("compgen -v EXIT_ | while read -r name; do echo ${!name}; done").stdout.split()
    assert len(codes) == len(set(codes)) == 9
    listed = text[text.index("exit codes:") :]
    assert all(f" {code} " in listed for code in codes)
