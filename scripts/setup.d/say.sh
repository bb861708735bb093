# shellcheck shell=bash
# shellcheck disable=SC2034 # the numbers are used by the files that are sourced beside this one
# What setup says, and the ways it ends.

# Each way to fail has its own number, so that a script can tell them apart (make itself always ends with 2).
EXIT_USAGE=2
EXIT_UNSUPPORTED=10
EXIT_ROOT=11
EXIT_NETWORK=12
EXIT_LOCKED=13
EXIT_DISK=14
EXIT_PACKAGES=15
EXIT_PYTHON=16
EXIT_OPA=17

say() {
    printf 'setup: %s\n' "$*"
}

# fail CODE SENTENCE HINT: one sentence that says what is wrong, one line that says what to do next.
fail() {
    printf 'setup: %s\n  %s\n' "$2" "$3" >&2
    exit "$1"
}
