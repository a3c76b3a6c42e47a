use orch_runner::{Recorder, Runner};

use super::*;
use crate::testing::{Machine, agent_config, server_config};

#[test]
fn a_mount_unit_is_named_after_its_path() {
    assert_eq!(
        mount_unit_name(Path::new("/var/lib/orch/volumes")),
        "var-lib-orch-volumes.mount"
    );
    assert_eq!(
        mount_unit_name(Path::new("/.a/b-c/")),
        "\\x2ea-b\\x2dc.mount"
    );
}

#[tokio::test]
async fn a_bind_that_nobody_mounted_is_refused() {
    let machine = Machine::fit();
    let mut config = server_config();
    config.storage.kind = StorageKind::Bind;
    let step = MountStorage {
        context: machine.context(&config),
    };
    assert!(matches!(
        step.inspect().await,
        Err(MountStorageError::NotMounted { .. })
    ));
    machine.files.put(
        "/proc/self/mountinfo",
        "37 35 0:50 / /var/lib/orch/volumes rw - ext4 /dev/sdb rw\n",
        0o444,
    );
    assert_eq!(step.inspect().await.unwrap(), []);
}

#[tokio::test]
async fn an_nfs_agent_mounts_hard_and_synchronously() {
    let machine = Machine::fit();
    machine.files.put("/usr/sbin/mount.nfs4", "", 0o755);
    machine
        .commands
        .answer("systemctl enable --now var-lib-orch-volumes.mount", 0, "");
    let mut config = agent_config();
    config.storage.kind = StorageKind::Nfs;
    let step = MountStorage {
        context: machine.context(&config),
    };
    let recorder = Recorder::default();
    Runner::new(&recorder, false).run(&step).await.unwrap();
    let unit = machine
        .files
        .text("/etc/systemd/system/var-lib-orch-volumes.mount")
        .unwrap();
    assert!(
        unit.contains("What=192.168.56.10:/var/lib/orch/exported\n"),
        "{unit}"
    );
    assert!(unit.contains("nfsvers=4.2,hard,sync"), "{unit}");
}

/// A machine on which an NFS server can be installed and started.
fn nfs_server() -> Machine {
    let machine = Machine::fit();
    machine.commands.answer("apt-get ", 0, "");
    machine.commands.answer("systemctl enable --now ", 0, "");
    machine.commands.answer("exportfs", 0, "");
    machine
}

#[tokio::test]
async fn an_nfs_server_exports_to_its_agents_only() {
    let machine = nfs_server();
    let mut config = server_config();
    config.storage.kind = StorageKind::Nfs;
    config.storage.clients = vec!["192.168.56.0/24".parse().unwrap()];
    let step = MountStorage {
        context: machine.context(&config),
    };
    let recorder = Recorder::default();
    Runner::new(&recorder, false).run(&step).await.unwrap();
    assert_eq!(
        machine.files.text("/etc/exports.d/orch.exports").unwrap(),
        "# Written by orch-provision.\n/var/lib/orch/exported 192.168.56.0/24(rw,sync,no_subtree_check,no_root_squash)\n"
    );
}

#[tokio::test]
async fn an_nfs_server_mounts_its_own_export_after_it_serves_it() {
    let machine = nfs_server();
    let mut config = server_config();
    config.storage.kind = StorageKind::Nfs;
    let step = MountStorage {
        context: machine.context(&config),
    };
    let recorder = Recorder::default();
    Runner::new(&recorder, false).run(&step).await.unwrap();
    let unit = machine
        .files
        .text("/etc/systemd/system/var-lib-orch-volumes.mount")
        .unwrap();
    assert!(
        unit.contains("Requires=nfs-server.service\nBefore=k3s.service\n"),
        "{unit}"
    );
    let asked = machine.commands.asked_lines();
    let at = |text: &str| {
        asked
            .iter()
            .position(|line| line.starts_with(text))
            .unwrap()
    };
    assert!(at("exportfs -r") < at("systemctl enable --now var-lib-orch-volumes.mount"));
}

#[tokio::test]
async fn an_agent_waits_for_a_server_that_does_not_export_yet() {
    let machine = Machine::fit();
    machine.files.put("/usr/sbin/mount.nfs4", "", 0o755);
    machine.commands.answer(
        "systemctl enable --now var-lib-orch-volumes.mount",
        1,
        "refused",
    );
    let mut config = agent_config();
    config.storage.kind = StorageKind::Nfs;
    let step = MountStorage {
        context: machine.context(&config),
    };
    let recorder = Recorder::default();
    let report = StepReport::new(&recorder, "mount_storage");
    let mut mounting = Box::pin(step.mount(&report));
    let early = tokio::time::timeout(Duration::from_millis(200), &mut mounting).await;
    assert!(early.is_err(), "it gave up at once");
    machine
        .commands
        .answer("systemctl enable --now var-lib-orch-volumes.mount", 0, "");
    mounting.await.unwrap();
}
