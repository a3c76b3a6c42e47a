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
