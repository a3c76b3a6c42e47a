# shellcheck shell=bash
# Checks of `orch cluster` on machines of hosts.sh, counted. Sourced after it; `k3s` is the folder with K3s's assets.
: "${k3s:?}" "${root:?}" "${work:?}" "${hosts:?}"

passed=0
failed=0

ok() { passed=$((passed + 1)); echo "ok - $*"; }
not_ok() { failed=$((failed + 1)); echo "not ok - $*"; }
# check NAME COMMAND...
check() {
    local name=$1
    shift
    if "$@"; then ok "$name"; else not_ok "$name"; fi
}
finish() {
    local status=$?
    trap - EXIT INT TERM
    if [ "$failed" -gt 0 ] || [ "$status" -ne 0 ]; then
        tail -n 30 "$work/err" 2>/dev/null || true
    fi
    clear_hosts
    rm -rf "$work"
    echo "$passed passed, $failed failed"
    [ "$failed" -eq 0 ] && [ "$status" -eq 0 ]
    exit $?
}

orch() { "$root/Scripts/orch" --file "$work/orch.yaml" "$@"; }
# exits CODE ARGUMENTS...: stdout and stderr are kept for the checks after it.
exits() {
    local wanted=$1 code=0
    shift
    orch "$@" >"$work/out" 2>"$work/err" || code=$?
    [ "$code" -eq "$wanted" ] || { echo "exit $code instead of $wanted: orch $*"; tail -n 15 "$work/err"; return 1; }
}
kubectl() { orch kubectl -- "$@" 2>/dev/null; }
ready() { kubectl wait --for=condition=Ready "node/$1" --timeout=60s >/dev/null; }
registered() { kubectl get nodes --output 'jsonpath={.items[*].metadata.name}' | tr ' ' '\n' | sort | xargs; }

# begin SUBNET: nothing of an earlier run is there, K3s, the node image and a key are, and so is the network.
begin() {
    rm -rf "$work"
    mkdir -p "$work/authorized"
    trap finish EXIT
    trap 'exit 130' INT TERM
    clear_hosts
    ci/k3s-standin/build.sh "$k3s"
    # shellcheck disable=SC2034 # hosts.sh reads it
    image=$(Scripts/orch --output json images build node | jq --raw-output .node)
    ssh-keygen -q -t ed25519 -N '' -C e2e -f "$work/id"
    cp "$work/id.pub" "$work/authorized/authorized_keys"
    docker network create --label "$hosts" --subnet "$1" "$hosts" >/dev/null
}
