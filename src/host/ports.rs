//! Who listens on a TCP port of this host (Linux: /proc/net/tcp, proc_pid_net(5)).

use std::fmt;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;

/// Whoever holds a port, as far as this user may see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortOwner {
    /// Process name and id; unknown where another user's process cannot be read.
    pub process: Option<(String, u32)>,
}

impl fmt::Display for PortOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.process {
            Some((name, pid)) => write!(f, "{name} (pid {pid})"),
            None => write!(f, "a process of another user"),
        }
    }
}

/// Who holds 127.0.0.1:`port`, if anyone does.
pub fn port_owner(port: u16) -> Option<PortOwner> {
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => Some(PortOwner {
            process: listener_inode(port).and_then(|inode| process_of_socket(&inode)),
        }),
        _ => None,
    }
}

fn listener_inode(port: u16) -> Option<String> {
    // Columns: sl local_address rem_address st ... inode; state 0A is LISTEN.
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| std::fs::read_to_string(table).ok())
        .flat_map(|table| table.lines().map(str::to_owned).collect::<Vec<_>>())
        .find_map(|line| {
            let columns: Vec<_> = line.split_whitespace().collect();
            let (_, hex) = columns.get(1)?.rsplit_once(':')?;
            let listens = columns.get(3) == Some(&"0A");
            let same = u16::from_str_radix(hex, 16).ok()? == port;
            (listens && same).then(|| columns.get(9).map(|inode| (*inode).to_owned()))?
        })
}

fn process_of_socket(inode: &str) -> Option<(String, u32)> {
    let wanted = format!("socket:[{inode}]");
    let holds = |directory: &Path| {
        std::fs::read_dir(directory.join("fd")).is_ok_and(|entries| {
            entries
                .filter_map(Result::ok)
                .filter_map(|entry| std::fs::read_link(entry.path()).ok())
                .any(|target| target.as_os_str() == wanted.as_str())
        })
    };
    std::fs::read_dir("/proc")
        .ok()?
        .filter_map(Result::ok)
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            holds(&entry.path()).then_some((entry.path(), pid))
        })
        .find_map(|(path, pid)| {
            let name = std::fs::read_to_string(path.join("comm")).ok()?;
            Some((name.trim().to_owned(), pid))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_its_process() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (_, pid) = port_owner(port).unwrap().process.unwrap();
        assert_eq!(pid, std::process::id());
    }
}
