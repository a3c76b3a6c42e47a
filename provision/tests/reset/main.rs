//! `orch-provision reset` on a machine of its own: namespaces for mounts, processes and the network, and an overlay over
//! the root directory, whose upper layer is then the list of what was changed. Only systemd is a script.
//!
//! Needs root, util-linux, iproute2 and iptables.

use std::process::{Command, Output, Stdio};

/// Runs inside; `$1` is the program, `$2` an empty directory.
const MACHINE: &str = include_str!("machine.sh");

fn machine() -> std::io::Result<Output> {
    let directory = tempfile::tempdir()?;
    // A machine that hangs is a failure, too.
    Command::new("timeout")
        .args(["--kill-after=5", "300", "unshare"])
        .args(["--mount", "--net", "--pid", "--fork", "--kill-child"])
        .args(["bash", "-euo", "pipefail", "-c", MACHINE, "machine"])
        .arg(env!("CARGO_BIN_EXE_orch-provision"))
        .arg(directory.path())
        .stdin(Stdio::null())
        .output()
}

/// The lines between `== title` and the next one.
fn section<'a>(output: &'a str, title: &str) -> Vec<&'a str> {
    output
        .lines()
        .skip_while(|line| *line != format!("== {title}"))
        .skip(1)
        .take_while(|line| !line.starts_with("== "))
        .collect()
}

#[test]
fn files_mounts_processes_and_the_network_are_as_before() {
    let output = machine().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}\n{errors}");
    for what in [
        "files",
        "mounts",
        "processes",
        "links",
        "namespaces",
        "routes",
        "rules",
    ] {
        let before = section(&text, &format!("{what} before"));
        let used = section(&text, &format!("{what} in use"));
        let after = section(&text, &format!("{what} after"));
        assert_ne!(before, used, "nothing was set up: {what}\n{text}\n{errors}");
        assert_eq!(before, after, "{what}\n{text}\n{errors}");
    }
    assert_eq!(section(&text, "data"), ["row"], "{text}");
    assert_eq!(section(&text, "second plan"), ["0"], "{text}");
}
