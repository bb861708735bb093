# shellcheck shell=bash
# OPA, the reference for what a policy means: tests hold the embedded evaluator against it, and it can decide itself.

OPA_VERSION=1.22.2

# opa_version PROGRAM: print its version, or nothing.
opa_version() {
    "$1" version 2>/dev/null | sed -n 's/^Version: //p' || true
}

# right_opa PROGRAM: the same minor version; a patch release does not change what a policy means.
right_opa() {
    [ -x "$1" ] && [ "$(opa_version "$1" | cut -d. -f1,2)" = "$(echo "$OPA_VERSION" | cut -d. -f1,2)" ]
}

# go_can_build PROGRAM: since 1.21 go fetches the toolchain that a module asks for.
go_can_build() {
    local version
    version=$("$1" env GOVERSION 2>/dev/null | sed -n -E 's/^go1\.([0-9]+).*/\1/p')
    [ -n "$version" ] && [ "$version" -ge 21 ]
}

# build_opa PROGRAM: go checks the source against its public checksum database.
build_opa() {
    say "building opa $OPA_VERSION with $1 (one to two minutes)"
    # The flags and targets of the user's own builds would change what is built.
    env -u GOFLAGS -u GOOS -u GOARCH GOWORK=off GO111MODULE=on CGO_ENABLED=0 GOBIN="$root/build" \
        "$1" install "github.com/open-policy-agent/opa@v$OPA_VERSION" </dev/null
}

# download_opa: the release's own checksum file comes over the same connection, so it finds a damaged download; who
# made the file is vouched for by TLS alone. Building with go (above) has the stronger proof and comes first.
download_opa() {
    local arch file base name
    arch=$(dpkg --print-architecture)
    file="opa_linux_${arch}_static"
    base="https://github.com/open-policy-agent/opa/releases/download/v$OPA_VERSION"
    say "downloading opa $OPA_VERSION ($file)"
    rm -f "build/$file" "build/$file.sha256" || return 1
    for name in "$file.sha256" "$file"; do
        curl --proto '=https' --tlsv1.2 --fail --location --silent --show-error --retry 1 --connect-timeout 15 \
            --max-time 600 --output "build/$name" "$base/$name" || return 1
    done
    # The checksum file names the file by some path of the builder's: only the digest is taken from it.
    echo "$(awk '{ print $1; exit }' "build/$file.sha256")  build/$file" | sha256sum --check --quiet || return 1
    chmod 755 "build/$file" && mv "build/$file" build/opa
}

ensure_opa() {
    local place found
    if right_opa .venv/bin/opa; then
        say "opa: $(opa_version .venv/bin/opa)"
        return
    fi
    rm -f .venv/bin/opa
    # By its full path, because sudo has another PATH than the user who ran setup.
    found=$(command -v opa || true)
    if [ -n "$found" ] && right_opa "$found"; then
        ln -s "$(realpath "$found")" .venv/bin/opa
        say "opa: $(opa_version .venv/bin/opa), from $found"
        return
    fi
    [ -z "$found" ] || say "opa in PATH is $(opa_version "$found"), not $OPA_VERSION: leaving it aside"
    place=$(command -v go || true)
    if [ -n "$place" ] && go_can_build "$place" && build_opa "$place"; then
        :
    elif ! download_opa; then
        fail "$EXIT_OPA" "opa $OPA_VERSION could not be had: neither in PATH, nor by go install, nor as a release." \
            "Put opa $OPA_VERSION into PATH; or run scripts/setup --no-opa: the default evaluator and make demo need none."
    fi
    if ! right_opa build/opa; then
        fail "$EXIT_OPA" "The opa that was obtained does not run or is not $OPA_VERSION." \
            "Put opa $OPA_VERSION into PATH, then run make setup again."
    fi
    mv build/opa .venv/bin/opa
    say "opa: $(opa_version .venv/bin/opa)"
}
