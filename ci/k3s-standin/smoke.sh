#!/bin/bash
# Boots a server and an agent of the stand-in in two containers, without
# --privileged, and checks what orch relies on; then two more servers, the loss
# of the first one, and a snapshot that is restored. Builds into OUTDIR first;
# the machines are Dockerfiles/node, whose base image must be there.
#
#   ci/k3s-standin/smoke.sh OUTDIR
set -euo pipefail

[ $# -eq 1 ] || { echo "usage: smoke.sh OUTDIR" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
"$here/build.sh" "$1"
assets=$(cd "$1" && pwd)

name=standin-smoke-$$
server=$name-server
second=$name-second
third=$name-third
agent=$name-agent

cleanup() {
    docker rm --force --volumes "$server" "$second" "$third" "$agent" >/dev/null 2>&1 || true
    rm -f "/tmp/$name.log"
    docker network rm "$name" >/dev/null 2>&1 || true
}
trap cleanup EXIT

say() { echo "smoke: $*" >&2; }
fail() {
    say "FAILED: $*"
    for machine in "$server" "$second" "$third" "$agent"; do
        say "the last of $machine:"
        docker exec "$machine" journalctl --no-pager -u 'k3s*' 2>/dev/null | grep 'level=' | tail -n 20 >&2 || true
    done
    exit 1
}
on() { docker exec -i "$@"; }
api=$server
kubectl() { on "$api" k3s kubectl "$@"; }

# within SECONDS WHAT COMMAND...: until the command succeeds.
within() {
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "$what"
        sleep 1
    done
    say "ok: $what"
}

start_machine() {
    local capabilities=() capability
    for capability in SYS_ADMIN NET_ADMIN SYS_PTRACE SYS_MODULE NET_RAW SYS_TIME IPC_LOCK SYS_NICE SYSLOG \
        DAC_READ_SEARCH LINUX_IMMUTABLE MKNOD SYS_BOOT; do
        capabilities+=(--cap-add "$capability")
    done
    docker run --detach --name "$1" --hostname "$1" --network "$name" "${capabilities[@]}" \
        --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined \
        --device-cgroup-rule 'a *:* rwm' --cgroupns=private --tmpfs /run --device /dev/kmsg \
        --volume /var/lib/rancher --volume /var/lib/kubelet --volume "$assets:/assets:ro" "$image" >/dev/null
    within 30 "$1 boots" on "$1" test -S /run/systemd/private
    on "$1" sh -ec '
        install -m 0755 /assets/k3s /usr/local/bin/k3s
        install -D -m 0644 -t /var/lib/rancher/k3s/agent/images /assets/k3s-airgap-images-amd64.tar.zst
        mkdir -p /etc/rancher/k3s'
}

# install_unit MACHINE ROLE: what K3s's own installer writes.
install_unit() {
    on "$1" sh -c 'cat >/etc/systemd/system/k3s.service' <<UNIT
[Service]
Type=notify
ExecStart=/usr/local/bin/k3s $2
KillMode=process
Delegate=yes
TimeoutStartSec=0
LimitNOFILE=1048576
TasksMax=infinity
UNIT
}

# configure MACHINE: K3s's settings, from stdin.
configure() { on "$1" sh -c 'cat >/etc/rancher/k3s/config.yaml'; }

# start_pod NAME: on the agent, so that it must hear of it.
start_pod() {
    kubectl run "$1" --image=orch.dev/k3s-standin/pause:1 --overrides="{\"spec\":{\"nodeName\":\"$agent\"}}" >/dev/null
    within 60 "a pod starts on the agent" kubectl wait --for=condition=Ready "pod/$1" --timeout=1s
}

# join TOKEN: starts the agent with a token; fails if it does not get up.
join() {
    on "$agent" sh -c 'umask 077; cat >/etc/rancher/k3s/token' <<<"$1"
    on "$agent" timeout 120 systemctl restart k3s
}

# refused TOKEN MESSAGE: the agent must end and say why.
refused() {
    if join "$1" >/dev/null 2>&1; then
        fail "a token that must be refused was accepted ($2)"
    fi
    on "$agent" journalctl --no-pager -u k3s | grep 'level=fatal' | grep -e "$2" >/dev/null || fail "the agent does not say: $2"
    say "ok: refused: $2"
}

# server_refused TOKEN OPTION MESSAGE: the second server must, too.
server_refused() {
    on "$second" sh -c 'umask 077; cat >/etc/rancher/k3s/token' <<<"$1"
    if on "$second" timeout 60 k3s server --cluster-cidr="$2" >/tmp/$name.log 2>&1; then
        fail "a server that must be refused was accepted ($3)"
    fi
    grep 'level=fatal' "/tmp/$name.log" | grep -e "$3" >/dev/null || { cat "/tmp/$name.log" >&2; fail "the server does not say: $3"; }
    say "ok: refused: $3"
}

# NODE_IMAGE: one that is built already, where its base cannot be pulled.
image=${NODE_IMAGE:-$(docker build --quiet "$here/../../Dockerfiles/node")}
docker network create "$name" >/dev/null
start_machine "$server"
start_machine "$agent"

"$assets/k3s" --version | grep 'not K3s' >/dev/null || fail "--version does not say what it is"

install_unit "$server" server
on "$server" timeout 120 systemctl start k3s || fail "the server does not start"
say "ok: the server starts"
[ "$(on "$server" stat -L -c %a /var/lib/rancher/k3s/server/node-token)" = 600 ] || fail "node-token is readable by others"
within 60 "the server is Ready" kubectl wait --for=condition=Ready "node/$server" --timeout=1s

address=$(on "$server" hostname -I | cut -d' ' -f1)
install_unit "$agent" agent
on "$agent" sh -c 'cat >/etc/rancher/k3s/config.yaml' <<CONFIG
server: https://$address:6443
token-file: /etc/rancher/k3s/token
CONFIG

token=$(on "$server" k3s token create --ttl 10m --description smoke)
refused "K10$(printf '0%.0s' {1..64})::${token##*::}" 'token CA hash does not match'
refused "${token%%::*}::abcdef.0123456789abcdef" 'token rejected'
expired=$(on "$server" k3s token create --ttl 1s)
sleep 2
refused "$expired" 'token rejected'
join "$token" || fail "the agent does not join"
within 60 "the agent is Ready" kubectl wait --for=condition=Ready "node/$agent" --timeout=1s

within 120 "CoreDNS is up" kubectl --namespace kube-system wait --for=condition=Available deployment/coredns --timeout=1s
within 60 "a service answers on the other node" on "$agent" curl --fail --silent --max-time 5 http://10.43.0.10:9153/metrics
within 120 "metrics of both nodes" sh -c "docker exec $server k3s kubectl top nodes --no-headers | grep -v unknown | grep -c . | grep -qx 2"

pods=$(kubectl get pods --all-namespaces -o 'jsonpath={.items[*].status.containerStatuses[*].containerID}')
on "$server" timeout 120 systemctl restart k3s || fail "the server does not start again"
kubectl --namespace kube-system rollout status deployment/coredns --timeout=60s >/dev/null || fail "CoreDNS is gone after a restart"
[ "$(kubectl get pods --all-namespaces -o 'jsonpath={.items[*].status.containerStatuses[*].containerID}')" = "$pods" ] || fail "pods did not survive a restart"
say "ok: pods survive a restart of the server"

# From here on with etcd in K3s's sense, and three servers.
[[ $(on "$server" k3s etcd-snapshot save 2>&1 || true) == *"etcd datastore disabled"* ]] || fail "a server without cluster-init takes snapshots"
configure "$server" <<<"cluster-init: true"
on "$server" timeout 120 systemctl restart k3s || fail "the server does not start with cluster-init"
kubectl get node "$server" --no-headers | grep 'control-plane,etcd,master' >/dev/null || fail "the server does not have K3s's roles"
say "ok: cluster-init turns a server into the first of several"

for machine in "$second" "$third"; do
    start_machine "$machine"
    install_unit "$machine" server
    configure "$machine" <<CONFIG
server: https://$address:6443
token-file: /etc/rancher/k3s/token
CONFIG
done
token=$(on "$server" cat /var/lib/rancher/k3s/server/token)
server_refused "$(on "$server" k3s token create --ttl 10m)" 10.42.0.0/16 'the server token only'
server_refused "${token%%::*}::server:nonsense" 10.42.0.0/16 'token rejected'
server_refused "$token" 10.99.0.0/16 'mismatch between servers: cluster-cidr'
for machine in "$second" "$third"; do
    on "$machine" sh -c 'umask 077; cat >/etc/rancher/k3s/token' <<<"$token"
    on "$machine" systemctl start --no-block k3s
done
for machine in "$second" "$third"; do
    within 150 "$machine is Ready" kubectl wait --for=condition=Ready "node/$machine" --timeout=1s
    within 30 "$machine is a server" sh -c "docker exec $server k3s kubectl get node $machine --no-headers | grep control-plane,etcd,master"
done
within 60 "the agent knows three servers" sh -c "docker exec $agent grep -c :6443 /var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json | grep -qx 4"
kubectl create configmap smoke --from-literal=key=value >/dev/null

# The first server's machine vanishes: nothing answers, nothing is reset.
on "$server" sh -ec 'iptables -I INPUT -i eth0 -j DROP; iptables -I OUTPUT -o eth0 -j DROP'
api=$second
within 60 "the API answers without the first server" kubectl get configmap smoke
within 90 "the agent goes to another server" sh -c "! docker exec $agent grep -q '\"$address:6443\"' /var/lib/rancher/k3s/agent/etc/k3s-agent-load-balancer.json"
on "$agent" timeout 120 systemctl restart k3s || fail "the agent does not start without the server it joined"
start_pod before
kubectl wait --for=condition=Ready "node/$agent" --timeout=1s >/dev/null || fail "the agent is not Ready without the first server"
say "ok: the agent outlives the server it joined"
on "$server" sh -ec 'iptables -D INPUT -i eth0 -j DROP; iptables -D OUTPUT -o eth0 -j DROP'
api=$server
within 90 "the first server is back" kubectl get pod before
within 60 "it is Ready" kubectl wait --for=condition=Ready "node/$server" --timeout=1s

on "$server" k3s etcd-snapshot save --name smoke >/dev/null 2>&1 || fail "no snapshot is saved"
snapshot=$(on "$server" k3s etcd-snapshot ls -o json | sed -n 's|.*"location": "file://\(.*\)".*|\1|p')
on "$server" test -s "$snapshot" || fail "the snapshot is not listed"
kubectl delete configmap smoke >/dev/null
for machine in "$second" "$third" "$server"; do
    on "$machine" timeout 60 systemctl stop k3s || fail "$machine does not stop"
done
on "$server" timeout 60 k3s server --cluster-reset --cluster-reset-restore-path="$snapshot" >"/tmp/$name.log" 2>&1 \
    || { cat "/tmp/$name.log" >&2; fail "the snapshot is not restored"; }
grep 'has been reset, restart without --cluster-reset flag now' "/tmp/$name.log" >/dev/null || fail "the reset does not say that it is done"
on "$server" timeout 120 systemctl start k3s || fail "the server does not start with the snapshot"
[ "$(kubectl get configmap smoke -o jsonpath='{.data.key}')" = value ] || fail "what was deleted is not there again"
say "ok: a snapshot is saved and restored"
on "$second" sh -c 'rm -rf /var/lib/rancher/k3s/server/db; systemctl start --no-block k3s'
within 120 "the second server joins again" on "$second" k3s kubectl get configmap smoke
start_pod after
say "passed"
