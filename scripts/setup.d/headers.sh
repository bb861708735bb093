# shellcheck shell=bash
# A kernel header tree for BCC to compile against. Any tree will do: the programs read no structure of the running kernel.

# A header package that is to be unpacked rather than installed; set by ensure_packages.
headers_apart=""

# autoconf.h stands only in a tree that belongs to an architecture, so a lone "-common" tree does not count.
headers_present() {
    compgen -G "/lib/modules/$(uname -r)/build/include/generated/autoconf.h" >/dev/null ||
        compgen -G "/usr/src/linux-headers-*/include/generated/autoconf.h" >/dev/null ||
        compgen -G ".venv/src/linux-headers-*/include/generated/autoconf.h" >/dev/null
}

# header_packages: the running kernel's own tree first, which the archive has not got for cloud and custom kernels and
# for those that it has replaced by newer ones; then the distribution's newest.
header_packages() {
    echo "linux-headers-$(uname -r)"
    echo "linux-headers-$(dpkg --print-architecture)"
    echo linux-headers-generic
}

# brings_kernel PACKAGE: since Debian 13 header packages depend on their kernel. To install one would change what the
# machine starts next time, which is not for this script to do.
brings_kernel() {
    apt-get --simulate --no-install-recommends install "$1" 2>/dev/null | grep '^Inst linux-image' >/dev/null
}

# unpack_headers PACKAGE: the trees that the package or meta package stands for, in .venv/src. apt checks what it
# downloads as if it were to be installed; no script of the packages runs, and root is not needed.
unpack_headers() {
    local log="$root/build/apt.log" package
    local -a trees=()
    mapfile -t trees < <(apt-cache depends --recurse --no-pre-depends --no-recommends --no-suggests --no-conflicts \
        --no-breaks --no-replaces --no-enhances "$1" | grep -E '^linux-headers-[0-9]' | sort -u)
    say "unpacking ${trees[*]} into .venv/src; they are not installed, because they would bring a kernel along"
    rm -rf build/headers && mkdir -p build/headers/tree
    (cd build/headers && LC_ALL=C apt-get -q download "${trees[@]}") </dev/null 2>&1 | tee "$log" || fail_apt "$log"
    for package in build/headers/*.deb; do
        dpkg-deb --extract "$package" build/headers/tree ||
            fail "$EXIT_DISK" "The kernel headers could not be unpacked; the reason stands above." \
                "Make room in $root if it was that, then run make setup again."
    done
    rm -rf .venv/src && mv build/headers/tree/usr/src .venv/src && rm -rf build/headers
}

ensure_headers() {
    if headers_present; then return; fi
    [ -z "$headers_apart" ] || unpack_headers "$headers_apart"
    headers_present || fail "$EXIT_PACKAGES" "There is no kernel header tree, though the packages that have one are there." \
        "Reinstall the package linux-headers-* of any kernel, then run make setup again."
}
