//! How each node of `orch.yaml` is reached over SSH: as the file says, or as Vagrant's provisioner noted.

use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Context;
use crate::cli::cluster::Access;
use crate::config::{self, ssh};
use crate::exit::{Exit, WithExit as _};
use crate::machines::Provider;
use crate::nodes::{Host, Options};
use crate::remote::{HostKeyPin, SudoPassword, Wanted};

/// Nodes at the same time where nobody says otherwise. Each costs a connection and little else; the work is the nodes' own.
const PARALLEL: usize = 32;

/// Names the file with sudo's password on the nodes.
const SUDO_PASSWORD_FILE: &str = "ORCH_SUDO_PASSWORD_FILE";

/// Every node that is described, in the file's order.
pub(super) fn hosts(context: &Context) -> anyhow::Result<Vec<Host>> {
    let nodes = context.config.nodes.iter();
    nodes.map(|node| host(context, node)).collect()
}

fn host(context: &Context, node: &config::Node) -> anyhow::Result<Host> {
    let name = &node.name.value;
    let wanted = match context.provider() {
        Provider::Ssh => over_ssh(context, node)?,
        _ => over_vagrant(context, name),
    };
    Ok(Host {
        name: name.clone(),
        role: node.role.into(),
        folder: context.project.state().join("nodes").join(name),
        wanted,
    })
}

fn over_ssh(context: &Context, node: &config::Node) -> anyhow::Result<Wanted> {
    wanted(context, &node.name.value, &described(context, node))
}

/// What orch.yaml says of an SSH host, its address included.
fn described(context: &Context, node: &config::Node) -> ssh::Host {
    let own = node.ssh.as_ref().map(|ssh| ssh.value.clone());
    let mut host = own.unwrap_or_default().or(&context.config.ssh.value);
    host.host
        .get_or_insert_with(|| node.address.value.to_string());
    host
}

fn wanted(context: &Context, name: &str, host: &ssh::Host) -> anyhow::Result<Wanted> {
    let reading = || format!("reading ssh.host_key of node {name}");
    let pin = host.host_key.as_deref().map(str::parse::<HostKeyPin>);
    let defaults = &context.config.ssh.value;
    Ok(Wanted {
        name: name.to_owned(),
        host: host.host.clone().unwrap_or_default(),
        user: host.user.clone(),
        port: host.port,
        identity: host.key.as_deref().map(|key| located(context, key)),
        jump: host.jump.clone(),
        host_key: pin.transpose().exit(Exit::Input, reading())?,
        ssh_config: defaults
            .config
            .as_deref()
            .map(|path| located(context, path)),
        known_hosts: None,
    })
}

/// Notes how the SSH hosts are reached: one that orch.yaml no longer has must be found to be freed of K3s.
pub(super) fn remember(context: &Context) -> anyhow::Result<()> {
    for node in &context.config.nodes {
        let path = context.project.reached().join(&node.name.value);
        let noting = || format!("noting how node {} is reached", node.name.value);
        let json = serde_json::to_vec_pretty(&described(context, node))?;
        std::fs::create_dir_all(context.project.reached()).exit(Exit::Host, noting())?;
        crate::files::keep_private(&path, &json).exit(Exit::Host, noting())?;
    }
    Ok(())
}

/// Whether orch.yaml has the node, or had it.
pub(super) fn is_known(context: &Context, name: &str) -> bool {
    let mut nodes = context.config.nodes.iter();
    nodes.any(|node| node.name.value == name) || context.project.reached().join(name).exists()
}

/// The node of orch.yaml that is now what `name` was: a host that got another name.
pub(super) fn same_host(context: &Context, name: &str) -> anyhow::Result<Option<String>> {
    let Some(former) = noted(context, name)? else {
        return Ok(None);
    };
    let is_it = |node: &&config::Node| {
        let now = described(context, node);
        node.name.value != name && (&now.host, now.port) == (&former.host, former.port)
    };
    let node = context.config.nodes.iter().find(is_it);
    Ok(node.map(|node| node.name.value.clone()))
}

/// How an SSH host was last reached.
fn noted(context: &Context, name: &str) -> anyhow::Result<Option<ssh::Host>> {
    let path = context.project.reached().join(name);
    let Ok(text) = std::fs::read(&path) else {
        return Ok(None);
    };
    let reading = || format!("reading {}", path.display());
    serde_json::from_slice(&text)
        .map(Some)
        .exit(Exit::Host, reading())
}

/// An SSH host as orch.yaml has it, or as it last had it.
pub(super) fn remembered(context: &Context, name: &str) -> anyhow::Result<Option<Host>> {
    let mut nodes = context.config.nodes.iter();
    if let Some(node) = nodes.find(|node| node.name.value == name) {
        return host(context, node).map(Some);
    }
    let Some(host) = noted(context, name)? else {
        return Ok(None);
    };
    Ok(Some(Host {
        name: name.to_owned(),
        role: orch_contract::Role::Agent,
        folder: PathBuf::new(),
        wanted: wanted(context, name, &host)?,
    }))
}

/// SSH hosts that orch.yaml had once, was not told to let go, and does not have under another name.
pub(super) fn former(context: &Context) -> anyhow::Result<Vec<Host>> {
    let folder = context.project.reached();
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let reading = || format!("reading {}", folder.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).exit(Exit::Host, reading())? {
        let name = entry.exit(Exit::Host, reading())?.file_name();
        let name = name.to_string_lossy().into_owned();
        let mut nodes = context.config.nodes.iter();
        // A name of ours has no dot: what else lies there is no note.
        if !name.contains('.') && !nodes.any(|node| node.name.value == name) {
            names.push(name);
        }
    }
    names.sort();
    let mut hosts = Vec::new();
    for name in names {
        if same_host(context, &name)?.is_none() {
            hosts.extend(remembered(context, &name)?);
        }
    }
    Ok(hosts)
}

/// What the Vagrantfile's provisioner notes of a machine, in the form of ssh_config(5), host key included.
fn over_vagrant(context: &Context, name: &str) -> Wanted {
    Wanted {
        name: name.to_owned(),
        host: name.to_owned(),
        ssh_config: Some(context.project.reached().join(name)),
        ..Wanted::default()
    }
}

/// Relative to orch.yaml; what begins with `~` is found at home by who opens it.
fn located(context: &Context, path: &Path) -> PathBuf {
    if path.starts_with("~") {
        path.to_owned()
    } else {
        context.path(path)
    }
}

/// How the nodes are worked on.
pub(super) fn options(context: &Context, access: &Access) -> anyhow::Result<Options> {
    let parallel = access.parallel.or(context.config.ssh.value.parallel);
    // Read here and not by the command line's parser: `create`, `start` and `destroy` have no option for it.
    let file = access
        .sudo_password_file
        .clone()
        .or_else(|| std::env::var_os(SUDO_PASSWORD_FILE).map(PathBuf::from));
    let sudo_password = file
        .map(|path| {
            let reading = || format!("reading sudo's password from {}", path.display());
            let mut text = std::fs::read_to_string(&path)
                .map(Zeroizing::new)
                .exit(Exit::Input, reading())?;
            let length = text.trim_end_matches(['\r', '\n']).len();
            text.truncate(length);
            SudoPassword::new(text).exit(Exit::Input, reading())
        })
        .transpose()?;
    Ok(Options {
        parallel: parallel.map_or(PARALLEL, usize::from),
        is_new_cluster: !context.project.kubeconfig().exists(),
        sudo_password,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ui::{Output, Ui};

    #[test]
    fn hosts_that_orch_yaml_had_once_are_known_and_those_with_a_new_name_are_not_among_them() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("orch.yaml");
        let text = "\
name: demo
provider: ssh
ssh: { key: ~/.ssh/id, config: ssh_config }
nodes:
  - { name: one, role: server, address: 10.0.0.11 }
  - { name: two, role: agent, address: 10.0.0.12 }
  - { name: gone, role: agent, address: 10.0.0.13 }
";
        let load = |text: &str| {
            std::fs::write(&file, text).unwrap();
            Context::load(&file, &Ui::new(Output::Json)).unwrap()
        };
        let names =
            |hosts: Vec<Host>| -> Vec<String> { hosts.into_iter().map(|host| host.name).collect() };
        let before = load(text);
        assert_eq!(names(former(&before).unwrap()), Vec::<String>::new());
        remember(&before).unwrap();
        let wanted = &hosts(&before).unwrap()[0].wanted;
        // The one is found at home, the other beside orch.yaml.
        assert_eq!(wanted.identity, Some("~/.ssh/id".into()));
        let config = before.project.root().join("ssh_config");
        assert_eq!(wanted.ssh_config, Some(config));
        let now = text
            .replace("name: two", "name: second")
            .replace("  - { name: gone, role: agent, address: 10.0.0.13 }\n", "");
        let after = load(&now);
        assert_eq!(names(former(&after).unwrap()), ["gone"]);
        assert_eq!(same_host(&after, "two").unwrap().as_deref(), Some("second"));
    }
}
