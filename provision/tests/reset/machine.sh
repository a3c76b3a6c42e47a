# A machine in namespaces: provisioned, used, and reset. Prints what there is before, in use and after.
program=$1 place=$2

mount --make-rprivate /
mount -t tmpfs tmpfs "$place"
mkdir "$place/upper" "$place/work" "$place/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$place/root"
root=$place/root
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mkdir -p "$root/usr/local/bin" "$root/opt/machine" "$root/run/netns"
cp "$program" "$root/usr/local/bin/orch-provision"
# No unit runs here, and reset asks about each.
cat >"$root/opt/machine/systemctl" <<'SYSTEMCTL'
#!/bin/sh
case "$1" in show) printf 'ActiveState=inactive\nUnitFileState=\nMainPID=0\n' ;; esac
SYSTEMCTL
chmod 755 "$root/opt/machine/systemctl"

inside() { chroot "$root" env PATH="/opt/machine:/usr/sbin:/usr/bin:/sbin:/bin" "$@"; }

look() {
	echo "== files $1"
	(cd "$place/upper" && find . -not -type d -not -name 'xtables.lock' | sort)
	(cd "$root/run" && find . -path ./netns -prune -o -not -type d -not -name '*.lock' -print | sort)
	for directory in etc/rancher var/lib/rancher var/lib/kubelet var/lib/cni etc/containerd-extra run/k3s run/flannel; do
		if [ -e "$root/$directory" ]; then echo "$directory"; fi
	done
	echo "== mounts $1"
	inside cut -d ' ' -f 5 /proc/self/mountinfo | grep -v '^/\(proc\|sys\|dev\)' | sort
	echo "== processes $1"
	inside ps -e -o comm= | grep -x 'sh\|sleep\|containerd-shim.*' | sort | uniq -c || true
	echo "== links $1"
	inside ip -o link show | cut -d ':' -f 2 | cut -d '@' -f 1 | sort
	echo "== namespaces $1"
	inside ip netns list | cut -d ' ' -f 1 | sort
	echo "== routes $1"
	inside ip route show table main
	echo "== rules $1"
	inside iptables-save | grep -v '^#' | sed 's/\[[0-9:]*\]//'
}

# In the overlay only: what this computer may have of K3s itself.
(cd "$root" && rm -rf etc/rancher var/lib/rancher var/lib/kubelet var/lib/cni var/log/pods etc/containerd-extra)

# What is there and is not orch's.
ip link set lo up
ip link add eth1 type veth peer name cable
ip link set cable up
ip address add 192.168.56.10/24 dev eth1
ip link set eth1 up
inside ip netns add mine
inside iptables -A INPUT -p tcp --dport 22 -j ACCEPT
mkdir -p "$root/var/lib/orch/volumes/db" "$root/etc/orch"
echo row >"$root/var/lib/orch/volumes/db/data"
echo '{}' >"$root/etc/orch/node.json"
look before

# What provisioning and K3s leave.
for file in etc/rancher/k3s/config.yaml etc/rancher/node/password var/lib/rancher/k3s/server/db/state.db \
	var/lib/kubelet/pods/a/etc-hosts var/lib/cni/networks/cbr0/10.42.0.2 run/flannel/subnet.env var/log/pods/a/0.log \
	run/k3s/containerd/state usr/local/bin/k3s usr/local/bin/.k3s.orch-new etc/systemd/system/k3s.service \
	etc/systemd/system/k3s.service.env etc/systemd/system/orch-join.service etc/containerd-extra/orch.toml \
	etc/modules-load.d/orch.conf etc/sysctl.d/90-orch.conf var/lib/orch/join-token var/lib/orch/applied.json \
	var/lib/orch/.applied.json.orch-tmp; do
	mkdir -p "$(dirname "$root/$file")"
	echo "$file" >"$root/$file"
done
for link in kubectl crictl ctr; do ln -s /usr/local/bin/k3s "$root/usr/local/bin/$link"; done
mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
ln -s /etc/systemd/system/k3s.service "$root/etc/systemd/system/multi-user.target.wants/k3s.service"
mkdir -p "$root/var/lib/kubelet/pods/a/volumes/b" "$root/run/k3s/containerd/rootfs"
mount -t tmpfs tmpfs "$root/var/lib/kubelet/pods/a/volumes/b"
mount -t tmpfs tmpfs "$root/run/k3s/containerd/rootfs"
ip link add cni0 type bridge
ip link add veth0 type veth peer name veth1
ip link set veth0 master cni0
ip link add flannel.1 type bridge
ip route add 10.42.1.0/24 dev eth1
inside ip netns add cni-1
inside iptables -N KUBE-FORWARD
inside iptables -A FORWARD -j KUBE-FORWARD
inside iptables -A FORWARD -s 10.42.0.0/16 -m comment --comment 'flanneld forward' -j ACCEPT
inside bash -c 'exec -a /x/bin/containerd-shim-runc-v2 sh -c "sleep 600; :" x -address /run/k3s/containerd/containerd.sock' \
	>/dev/null 2>&1 &
until inside ps -e -o comm= | grep -x sleep >/dev/null; do sleep 0.1; done
look 'in use'

inside /usr/local/bin/orch-provision reset >&2
wait
look after
echo '== data'
cat "$root/var/lib/orch/volumes/db/data"
echo '== second plan'
status=0
inside /usr/local/bin/orch-provision reset --dry-run >&2 || status=$?
echo "$status"
echo '== end'
