# shellcheck shell=bash
# The distribution's packages: what is missing, and installing just that.

# To run: bcc and libbpf exist only as distribution packages, and the environment is built on the distribution's Python.
PACKAGES_RUN=(python3 python3-venv python3-bpfcc iproute2 kmod procps ca-certificates)
# For the lab and the tests: real programs for real traffic, and a compiler for the host tests of the kernel's headers.
PACKAGES_LAB=(git nginx openssl curl iperf3 nftables tcpdump gcc libc6-dev)
# For `make test`, where setup says fuzzing=yes: libFuzzer, which is clang's. Its run-time library is a package of its own,
# but part of clang's on Ubuntu 22.04.
fuzzing=no
LOCK_WAIT_SECONDS=180

# check_system OS_RELEASE MACHINE: refuse what cannot work, warn about what nobody has tried.
check_system() {
    local ID="" ID_LIKE="" VERSION_ID="" PRETTY_NAME="this system"
    if [ -r "$1" ]; then
        # shellcheck disable=SC1090
        . "$1"
    fi
    case " $ID $ID_LIKE " in
        *" debian "* | *" ubuntu "*) ;;
        *) fail "$EXIT_UNSUPPORTED" "$PRETTY_NAME is not supported: Sallyport needs Debian's or Ubuntu's packages." \
            "Use Debian 12 or 13, or Ubuntu 22.04 or 24.04." ;;
    esac
    case "$2" in
        x86_64 | aarch64) ;;
        *) fail "$EXIT_UNSUPPORTED" "The machine type $2 is not supported: the policy evaluator has no build for it." \
            "Use an x86_64 or aarch64 machine." ;;
    esac
    case "$ID $VERSION_ID" in
        "debian 12" | "debian 13" | "ubuntu 22.04" | "ubuntu 24.04") ;;
        *) say "note: $PRETTY_NAME is not among the tested systems (Debian 12, 13, Ubuntu 22.04, 24.04); going on." ;;
    esac
}

# installed NAME...: print those of the names that are installed.
installed() {
    # dpkg-query fails when one name is unknown to it; the names that it knows are printed all the same.
    dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n' "$@" 2>/dev/null | awk '$1 ~ /^[ih]i/ { print $2 }' || true
}

# fuzzer_present: prove what scripts/fuzz relies on, whatever the packages are called.
fuzzer_present() {
    echo 'int LLVMFuzzerTestOneInput(void) { return 0; }' |
        clang -x c -fsanitize=fuzzer,address,undefined -o /dev/null - 2>/dev/null
}

# missing_packages: print what is not there; the words libbpf, libclang-rt and kernel-headers stand for a choice that apt
# decides.
missing_packages() {
    local present name
    present=" $(installed "${PACKAGES_RUN[@]}" "${PACKAGES_LAB[@]}" libbpf1 libbpf0 | tr '\n' ' ') "
    for name in "${PACKAGES_RUN[@]}" "${PACKAGES_LAB[@]}"; do
        [[ $present == *" $name "* ]] || echo "$name"
    done
    [[ $present == *" libbpf1 "* || $present == *" libbpf0 "* ]] || echo libbpf
    [ "$fuzzing" = no ] || fuzzer_present || printf '%s\n' clang libclang-rt
    headers_present || echo kernel-headers
}

has_candidate() {
    apt-cache policy "$1" 2>/dev/null | grep 'Candidate: [^(]' >/dev/null
}

# resolve NAME: print the archive's name for it, or nothing when the archive has none.
resolve() {
    local -a choices=("$1")
    local choice
    case "$1" in
        libbpf) choices=(libbpf1 libbpf0) ;;
        libclang-rt) choices=(libclang-rt-dev clang) ;;
        kernel-headers) mapfile -t choices < <(header_packages) ;;
    esac
    for choice in "${choices[@]}"; do
        if has_candidate "$choice"; then
            echo "$choice"
            return
        fi
    done
}

# apt_trouble LOG: print what went wrong in one word: locked, disk, network, interrupted or other.
apt_trouble() {
    if grep -qE 'Could not get lock|Unable to (acquire|lock)' "$1"; then
        echo locked
    elif grep -qE "No space left on device|don't have enough free space|Disk quota exceeded" "$1"; then
        echo disk
    elif grep -qE 'dpkg was interrupted|Unmet dependencies|fix-broken' "$1"; then
        echo interrupted
    elif grep -qE 'Temporary failure resolving|Could not (resolve|connect)|Failed to fetch|Unable to connect|timed out' "$1"; then
        echo network
    else
        echo other
    fi
}

# fail_apt LOG: end with the sentence that fits the log.
fail_apt() {
    case "$(apt_trouble "$1")" in
        locked) fail "$EXIT_LOCKED" "Another program has held the package manager's lock for $LOCK_WAIT_SECONDS seconds." \
            "Wait until it is done (often unattended-upgrades, just after a start), then run make setup again." ;;
        disk) fail "$EXIT_DISK" "The disk has no room for the packages." \
            "Make room (apt-get clean helps), then run make setup again." ;;
        network) fail "$EXIT_NETWORK" "The package archive cannot be reached." \
            "Check the network, the proxy and /etc/apt/sources.list*, then run make setup again." ;;
        interrupted) fail "$EXIT_PACKAGES" "The package manager is in the middle of an earlier, broken installation." \
            "Run dpkg --configure -a and apt-get -f install as root, then make setup again." ;;
        *) fail "$EXIT_PACKAGES" "The package manager failed; its own words stand above." \
            "Mend what it names (the whole log is in $1), then run make setup again." ;;
    esac
}

# apt_get LOG WORD...: apt-get as root, its output on the screen and in LOG; waits for a lock that another program holds.
apt_get() {
    local log=$1 deadline=$((SECONDS + LOCK_WAIT_SECONDS)) name
    shift
    # The C locale, because apt_trouble reads the words. sudo drops the proxies, so they are handed on by name.
    local -a settings=(LC_ALL=C DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1)
    for name in http_proxy https_proxy no_proxy; do
        [ -z "${!name:-}" ] || settings+=("$name=${!name}")
    done
    until "$root/scripts/as-root" env "${settings[@]}" apt-get -q -y -o DPkg::Lock::Timeout="$LOCK_WAIT_SECONDS" \
        -o Dpkg::Use-Pty=0 "$@" </dev/null 2>&1 9>&- | tee "$log"; do
        # DPkg::Lock::Timeout does not cover the locks of the package lists and of the archive folder.
        if [ "$(apt_trouble "$log")" != locked ] || [ "$SECONDS" -ge "$deadline" ]; then
            return 1
        fi
        say "another program holds the package manager's lock; waiting"
        sleep 5
    done
}

# nginx is wanted as a program for the lab, not as a service: installing it must not open port 80 on somebody's gateway.
POLICY_FILE=/usr/sbin/policy-rc.d
POLICY_MARK="written by sallyport's setup"

forbid_nginx_service() {
    [ ! -e "$POLICY_FILE" ] || return 0
    cat >build/policy-rc.d <<SH
#!/bin/sh
# $POLICY_MARK; removed at its end
case "\$1" in nginx*) exit 101 ;; esac
exit 0
SH
    "$root/scripts/as-root" install -m 755 build/policy-rc.d "$POLICY_FILE"
}

allow_services() {
    if grep -qs "$POLICY_MARK" "$POLICY_FILE"; then
        "$root/scripts/as-root" rm -f "$POLICY_FILE"
    fi
}

ensure_packages() {
    local -a missing=() names=() unknown=()
    local name found log="$root/build/apt.log"
    # A run that was killed may have left it.
    allow_services
    mapfile -t missing < <(missing_packages)
    if [ "${#missing[@]}" -eq 0 ]; then
        say "system packages: nothing missing"
        return
    fi
    say "system packages missing: ${missing[*]}"
    "$root/scripts/as-root" true 2>/dev/null || fail "$EXIT_ROOT" "Installing packages needs root, and sudo did not give it." \
        "Run make setup as root, or have these installed by somebody who may: ${missing[*]}"

    say "reading the package lists (apt-get update)"
    apt_get "$log" update || fail_apt "$log"
    for name in "${missing[@]}"; do
        found=$(resolve "$name")
        if [ -z "$found" ]; then
            unknown+=("$name")
        elif [ "$name" = kernel-headers ] && brings_kernel "$found"; then
            headers_apart=$found
        else
            names+=("$found")
        fi
    done
    if [ "${#unknown[@]}" -gt 0 ]; then
        # apt-get update ends well even when it could reach nothing.
        [ "$(apt_trouble "$log")" != network ] || fail_apt "$log"
        fail "$EXIT_UNSUPPORTED" "The package archive of this system does not have: ${unknown[*]}" \
            "On Ubuntu enable the universe component (add-apt-repository universe), then run make setup again."
    fi

    [ "${#names[@]}" -eq 0 ] || install_packages "$log" "${names[@]}"
}

# install_packages LOG NAME...
install_packages() {
    local log=$1
    shift
    local -a names=("$@") missing=()
    say "installing: ${names[*]}"
    trap allow_services EXIT
    if [[ " ${names[*]} " == *" nginx "* ]]; then
        forbid_nginx_service
    fi
    apt_get "$log" install --no-install-recommends "${names[@]}" || fail_apt "$log"
    if [[ " ${names[*]} " == *" nginx "* ]]; then
        say "keeping the nginx service off: the lab starts its own"
        "$root/scripts/as-root" update-rc.d nginx disable || true
    fi
    allow_services
    trap - EXIT

    mapfile -t missing < <(missing_packages | grep -v "^${headers_apart:+kernel-headers}\$")
    if [ "${#missing[@]}" -gt 0 ]; then
        fail "$EXIT_PACKAGES" "The package manager ended well, but these are still not there: ${missing[*]}" \
            "Look into $log, then run make setup again."
    fi
}
