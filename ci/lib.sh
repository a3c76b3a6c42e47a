# shellcheck shell=bash
# Shared by the CI scripts: where things are, and how a stage is run. Sourced, not executed.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export ORCH_CACHE="${ORCH_CACHE:-$HOME/.cache/orch}"
export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$ORCH_CACHE/target}"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-never}"
tools="$ORCH_CACHE/tools"
export PATH="$tools/bin:$PATH"
cd "$root"

say() { printf '== %s\n' "$*"; }

# stage NAME COMMAND...: runs it, says how long it took; a failure ends the script with its name.
stage() {
    local name=$1 started=$SECONDS
    shift
    say "$name"
    # Not as a condition: bash would go on after a command in it that fails.
    set +e
    (
        set -e
        "$@"
    )
    local code=$?
    set -e
    if [ "$code" -ne 0 ]; then
        say "$name FAILED after $((SECONDS - started)) s"
        exit 1
    fi
    say "$name passed in $((SECONDS - started)) s"
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then "$@"; else sudo "$@"; fi
}

# packages NAME...: Debian packages that are not there yet.
packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query --show --showformat '${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "installing ${missing[*]}"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
}
