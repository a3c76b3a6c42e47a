//! Listening TCP ports and who has them.

/// A listening socket as `ss` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Listener {
    pub(crate) port: u16,
    /// Program and process id, where the kernel tells.
    pub(crate) owner: Option<(String, u32)>,
}

/// Reads `ss -H -l -t -n -p`.
pub(crate) fn parse_listeners(ss: &str) -> Vec<Listener> {
    ss.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Listener> {
    let local = line.split_whitespace().nth(3)?;
    let port = local.rsplit_once(':')?.1.parse().ok()?;
    // users:(("sshd",pid=12,fd=3),...)
    let owner = line.split_once("users:((\"").and_then(|(_, users)| {
        let (name, rest) = users.split_once('"')?;
        let digits = rest.split_once("pid=")?.1;
        let end = digits.find(|c: char| !c.is_ascii_digit())?;
        Some((name.to_owned(), digits[..end].parse().ok()?))
    });
    Some(Listener { port, owner })
}

/// The ports that /proc/net/tcp or tcp6 lists as listening (state 0A); anybody may read those.
pub(crate) fn listening_ports(proc_net_tcp: &str) -> impl Iterator<Item = u16> {
    proc_net_tcp.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, "0A", ..] = fields[..] else {
            return None;
        };
        u16::from_str_radix(local.rsplit_once(':')?.1, 16).ok()
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ports_and_owners_are_read() {
        let listeners = parse_listeners(
            "LISTEN 0 128 0.0.0.0:22 0.0.0.0:* users:((\"sshd\",pid=12,fd=3))\n\
             LISTEN 0 4096 *:6443 *:* users:((\"k3s-server\",pid=345,fd=14),(\"x\",pid=1,fd=2))\n\
             LISTEN 0 4096 [::]:10250 [::]:*\n",
        );
        assert_eq!(
            listeners,
            [
                Listener {
                    port: 22,
                    owner: Some(("sshd".to_owned(), 12))
                },
                Listener {
                    port: 6443,
                    owner: Some(("k3s-server".to_owned(), 345))
                },
                Listener {
                    port: 10250,
                    owner: None
                },
            ]
        );
    }

    #[test]
    fn listening_sockets_are_told_from_others() {
        let table = "  sl  local_address rem_address   st tx_queue\n\
               0: 00000000:192B 00000000:0000 0A 00000000:00000000\n\
               1: 0100007F:0CEA 0100007F:192B 01 00000000:00000000\n\
               2: 00000000000000000000000000000000:184E 00000000000000000000000000000000:0000 0A 0\n";
        assert_eq!(listening_ports(table).collect::<Vec<_>>(), [6443, 6222]);
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_panic(text in "\\PC{0,200}") {
            let _ = parse_listeners(&text);
            let _ = listening_ports(&text).count();
        }
    }
}
