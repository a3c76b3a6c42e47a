//! Network interfaces: which one has the node's address.

use std::net::IpAddr;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Interface {
    #[serde(default)]
    ifname: String,
    #[serde(default)]
    addr_info: Vec<Address>,
}

#[derive(Debug, Deserialize)]
struct Address {
    local: Option<IpAddr>,
}

/// Finds the interface with an address in the output of `ip -json address show`.
pub(crate) fn interface_of(
    ip_json: &str,
    address: IpAddr,
) -> Result<Option<String>, serde_json::Error> {
    let interfaces: Vec<Interface> = serde_json::from_str(ip_json)?;
    Ok(interfaces
        .into_iter()
        .find(|interface| {
            interface
                .addr_info
                .iter()
                .any(|known| known.local == Some(address))
        })
        .map(|interface| interface.ifname))
}

/// Interfaces of K3s's pod network, and of pods.
pub(crate) const POD_LINKS: [&str; 7] = [
    "cni0",
    "flannel.1",
    "flannel-v6.1",
    "flannel-wg",
    "flannel-wg-v6",
    "kube-ipvs0",
    "kube-bridge",
];

/// The machine's own addresses: not the loopback interface's, nor those of the pod network.
pub(crate) fn own_addresses(ip_json: &str) -> Result<Vec<(String, IpAddr)>, serde_json::Error> {
    let interfaces: Vec<Interface> = serde_json::from_str(ip_json)?;
    let mut own = Vec::new();
    for interface in interfaces {
        let name = interface.ifname;
        if POD_LINKS.contains(&name.as_str()) || name.starts_with("veth") {
            continue;
        }
        let addresses = interface.addr_info.iter().filter_map(|known| known.local);
        own.extend(
            addresses
                .filter(|address| !address.is_loopback())
                .map(|address| (name.clone(), address)),
        );
    }
    Ok(own)
}

/// The interface of the default route with the smallest metric, in /proc/net/route.
pub(crate) fn default_interface(routes: &str) -> Option<String> {
    let default = routes.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [name, "00000000", _, _, _, _, metric, "00000000", ..] = fields[..] else {
            return None;
        };
        Some((metric.parse::<u32>().ok()?, name))
    });
    default.min().map(|(_, name)| name.to_owned())
}

/// Every address of the machine, for an error that helps.
pub(crate) fn addresses(ip_json: &str) -> Result<Vec<String>, serde_json::Error> {
    let interfaces: Vec<Interface> = serde_json::from_str(ip_json)?;
    Ok(interfaces
        .iter()
        .flat_map(|interface| {
            interface
                .addr_info
                .iter()
                .filter_map(|address| address.local)
                .filter(|local| !local.is_loopback())
                .map(|local| format!("{local} ({})", interface.ifname))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = r#"[
        {"ifindex":1,"ifname":"lo","addr_info":[{"family":"inet","local":"127.0.0.1","prefixlen":8}]},
        {"ifindex":2,"ifname":"eth0","addr_info":[{"family":"inet","local":"10.0.2.15","prefixlen":24}]},
        {},
        {"ifindex":3,"ifname":"eth1","addr_info":[{"family":"inet","local":"192.168.56.11","prefixlen":24}]}
    ]"#;

    #[test]
    fn own_addresses_leave_out_loopback_and_pods() {
        let shown = r#"[
            {"ifname":"lo","addr_info":[{"local":"127.0.0.1"}]},
            {"ifname":"eth1","addr_info":[{"local":"192.168.56.11"},{"local":"fe80::1"}]},
            {"ifname":"cni0","addr_info":[{"local":"10.42.0.1"}]},
            {"ifname":"veth12","addr_info":[{"local":"fe80::2"}]},
            {"ifname":"flannel.1","addr_info":[{"local":"10.42.0.0"}]}]"#;
        let own: Vec<String> = own_addresses(shown)
            .unwrap()
            .iter()
            .map(|(name, address)| format!("{name} {address}"))
            .collect();
        assert_eq!(own, ["eth1 192.168.56.11", "eth1 fe80::1"]);
    }

    #[test]
    fn the_default_route_with_the_smallest_metric_counts() {
        let routes = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth1\t00000000\t0138A8C0\t0003\t0\t0\t200\t00000000\t0\t0\t0\n\
             eth0\t00000000\t0202000A\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             eth2\t0038A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_interface(routes).as_deref(), Some("eth0"));
        assert_eq!(default_interface("Iface\n"), None);
    }

    #[test]
    fn the_interface_is_found_by_its_address() {
        let found = interface_of(SHOWN, "192.168.56.11".parse().unwrap()).unwrap();
        assert_eq!(found.as_deref(), Some("eth1"));
        let found = interface_of(SHOWN, "192.168.56.12".parse().unwrap()).unwrap();
        assert_eq!(found, None);
        assert_eq!(
            addresses(SHOWN).unwrap(),
            ["10.0.2.15 (eth0)", "192.168.56.11 (eth1)"]
        );
    }
}
