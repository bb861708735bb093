# shellcheck shell=bash
# The Python environment in .venv: the distribution's interpreter and bcc, everything else from the lock file.

# By absolute path: bcc is built for this one, whatever python3 comes first in PATH.
PYTHON=/usr/bin/python3
VENV_MEGABYTES=500
LOCK_FILE=requirements-dev.txt

# check_python: the environment's packages have builds for these versions only.
check_python() {
    local version
    version=$("$PYTHON" -IS -c 'import sys; print("%d.%d" % sys.version_info[:2])') ||
        fail "$EXIT_PYTHON" "$PYTHON does not start." "Reinstall the package python3, then run make setup again."
    case "$version" in
        3.10 | 3.11 | 3.12 | 3.13) ;;
        *) fail "$EXIT_UNSUPPORTED" "$PYTHON is Python $version; Sallyport needs 3.10 to 3.13." \
            "Use Debian 12 or 13, or Ubuntu 22.04 or 24.04." ;;
    esac
}

# environment_key: what the environment was made from; it is made anew when one of these changes. The path is among
# them because an environment cannot be moved.
environment_key() {
    echo "root $root"
    echo "python $("$PYTHON" -IS -c 'import sys; print(sys.version.split()[0], sys.executable)')"
    echo "lock $(sha256sum <"$LOCK_FILE")"
}

# project_key: pyproject.toml says which commands .venv/bin has.
project_key() {
    echo "project $(sha256sum <pyproject.toml)"
}

# venv_pip WORD...: the environment's pip. The user's index, proxy and certificate settings hold; those that would put files
# elsewhere or change versions do not. Progress is one line a package; build/pip.log has everything.
venv_pip() {
    env -u PIP_TARGET -u PIP_PREFIX -u PIP_ROOT -u PIP_CONSTRAINT -u PIP_REQUIREMENT PIP_USER=0 PIP_NO_INPUT=1 \
        PIP_DISABLE_PIP_VERSION_CHECK=1 .venv/bin/python -I -m pip --no-color "$@" </dev/null 2>&1 |
        tee build/pip.log |
        sed -u -n -E 's/^Collecting ([^ ;]+).*/  \1/p; s/^(Installing) collected.*/  \1/p; /^(ERROR|error)/s/^(.{0,200}).*/  \1/p'
}

fail_pip() {
    if grep -q 'DO NOT MATCH THE HASHES' build/pip.log; then
        fail "$EXIT_PYTHON" "A downloaded package is not the file that the lock names: it was damaged or replaced." \
            "Do not go on with this package index; build/pip.log names the package."
    elif grep -qE 'No space left on device|Disk quota exceeded' build/pip.log; then
        fail "$EXIT_DISK" "The disk has no room for the Python packages." \
            "Make $VENV_MEGABYTES MB of room in $root, then run make setup again."
    elif grep -qE 'NewConnectionError|name resolution|Connection (refused|reset|aborted)|[Tt]imed out|Could not fetch URL|SSLError|ProxyError' build/pip.log; then
        fail "$EXIT_NETWORK" "The Python package index cannot be reached." \
            "Check the network, the proxy and pip's settings (pip config list), then run make setup again."
    fi
    fail "$EXIT_PYTHON" "The Python packages could not be installed; pip's own words stand above." \
        "Mend what it names (the whole log is in $root/build/pip.log), then run make setup again."
}

# build_environment: all of it, from nothing.
build_environment() {
    # Without the distribution's packages in sight at first: pip must not take one of them for a locked version.
    "$PYTHON" -m venv .venv ||
        fail "$EXIT_PYTHON" "$PYTHON could not make an environment." "Reinstall python3-venv, then run make setup again."
    venv_pip install --require-hashes --no-deps --only-binary :all: -r "$LOCK_FILE" || fail_pip
    # Now bcc comes into sight, behind the environment's own packages.
    sed -i 's/^include-system-site-packages = .*/include-system-site-packages = true/' .venv/pyvenv.cfg
}

# install_project: the command and an import path to this folder. No index is asked: the build backend is in the lock.
install_project() {
    venv_pip install --no-index --no-deps --no-build-isolation --editable . || fail_pip
}

# check_environment: prove what the rest relies on, rather than that the commands above ended well.
check_environment() {
    .venv/bin/python -I - "$LOCK_FILE" <<'PY' ||
import importlib.metadata, pathlib, re, sys

ours = pathlib.Path(sys.prefix)
for name in sorted(set(re.findall(r"^([A-Za-z0-9._-]+)==", pathlib.Path(sys.argv[1]).read_text(), re.M))):
    try:
        found = pathlib.Path(str(importlib.metadata.distribution(name).locate_file("")))
    except importlib.metadata.PackageNotFoundError:
        continue  # a pin for another Python version or system
    if ours not in found.parents:
        sys.exit(f"{name} would come from {found}, not from the environment")
import bcc  # noqa: F401
PY
        fail "$EXIT_PYTHON" "The environment in .venv does not work: the reason stands above." \
            "Reinstall python3-bpfcc, remove $root/.venv, then run make setup again."
    [ -x .venv/bin/sallyport ] || fail "$EXIT_PYTHON" "The command sallyport is not in the environment." \
        "Look into $root/build/pip.log, then run make setup again."
}

# put_back: an environment that worked comes back when its successor could not be made.
put_back() {
    if [ -d build/venv.old ]; then
        rm -rf .venv
        mv build/venv.old .venv
    fi
}

check_room() {
    local free
    free=$(df -Pm . | awk 'NR == 2 { print $4 }')
    [ "$free" -ge "$VENV_MEGABYTES" ] || fail "$EXIT_DISK" \
        "There are $free MB free in $root; the environment needs $VENV_MEGABYTES MB." \
        "Make room, then run make setup again."
}

ensure_environment() {
    local stamp=.venv/made-from kept
    check_python
    # A run that was killed between the two moves.
    put_back
    if [ -e .venv ] && [ ! -w .venv ]; then
        fail "$EXIT_ROOT" "The environment in $root/.venv belongs to $(stat -c %U .venv)." \
            "Run make setup as that user, or remove the folder."
    fi
    if [ -x .venv/bin/sallyport ] && [ "$(cat "$stamp" 2>/dev/null)" = "$(environment_key; project_key)" ]; then
        say "python environment: as locked"
        return
    fi

    if ! head -n 3 "$stamp" 2>/dev/null | cmp -s - <(environment_key); then
        check_room
        say "making .venv on $PYTHON from $LOCK_FILE (every file is checked against its hash)"
        if [ -e .venv ]; then mv .venv build/venv.old; fi
        trap 'rm -rf .venv; put_back' EXIT
        build_environment
        install_project
        check_environment
        trap - EXIT
        # What did not come from the lock is kept: ensure_opa and ensure_headers look at it themselves.
        for kept in bin/opa src; do
            if [ -e "build/venv.old/$kept" ]; then mv "build/venv.old/$kept" ".venv/$kept"; fi
        done
        rm -rf build/venv.old
    else
        say "pyproject.toml has changed: installing the command anew"
        install_project
        check_environment
    fi
    # Last, so that an interrupted run is done again.
    { environment_key; project_key; } >"$stamp"
}
