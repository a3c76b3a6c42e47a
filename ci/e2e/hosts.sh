# shellcheck shell=bash
# Machines that nobody has prepared for orch: containers with systemd, sshd and sudo. Sourced; the caller sets
#   hosts    their label, their network's name, and what their names begin with
#   image    the node image
#   work     a folder with authorized/authorized_keys
: "${hosts:?}" "${work:?}" "${image:=}"

on() { docker exec -i "$hosts-$1" "${@:2}"; }
clear_hosts() {
    docker ps --all --quiet --filter "label=$hosts" | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
    docker network ls --quiet --filter "label=$hosts" | xargs --no-run-if-empty docker network rm >/dev/null
}

# host NAME ADDRESS: a machine that nobody has prepared for orch.
host() {
    local capabilities=() capability
    for capability in SYS_ADMIN NET_ADMIN SYS_PTRACE SYS_MODULE NET_RAW SYS_TIME IPC_LOCK SYS_NICE SYSLOG \
        DAC_READ_SEARCH LINUX_IMMUTABLE MKNOD SYS_BOOT; do
        capabilities+=(--cap-add "$capability")
    done
    docker run --detach --name "$hosts-$1" --hostname "$1" --label "$hosts" --network "$hosts" --ip "$2" "${capabilities[@]}" \
        --security-opt seccomp=unconfined --security-opt apparmor=unconfined --security-opt systempaths=unconfined \
        --device-cgroup-rule 'a *:* rwm' --cgroupns=private --tmpfs /run --tmpfs /tmp --device /dev/kmsg \
        --volume /var/lib/rancher --volume /var/lib/kubelet --volume "$work/authorized:/etc/orch-ssh:ro" \
        --volume /lib/modules:/lib/modules:ro "$image" >/dev/null
    until on "$1" test -S /run/systemd/private && on "$1" sh -c 'systemctl is-active --quiet ssh'; do sleep 0.2; done
}
host_key() { on "$1" cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub; }
