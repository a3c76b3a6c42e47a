//! `orch kubectl`: kubectl against orch's cluster, whether or not it is installed.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why kubectl could not be started.
#[derive(Debug, thiserror::Error)]
pub enum KubectlError {
    #[error("{path} does not exist; `orch create` writes it, or name another kubeconfig")]
    NoKubeconfig { path: PathBuf },
    #[error(
        "kubectl is not on PATH and there is no K3s binary to stand in for it; install kubectl, or run `orch create` once"
    )]
    NotFound,
    #[error("cannot run {program}")]
    Run {
        program: PathBuf,
        source: std::io::Error,
    },
}

/// The command that [`exec`] becomes: kubectl on `search_path` (`PATH`'s value), or `k3s kubectl`.
fn command(
    kubeconfig: &Path,
    k3s: Option<&Path>,
    search_path: Option<OsString>,
    arguments: &[OsString],
) -> Result<Command, KubectlError> {
    if !kubeconfig.is_file() {
        return Err(KubectlError::NoKubeconfig {
            path: kubeconfig.to_owned(),
        });
    }
    let installed = search_path
        .iter()
        .flat_map(std::env::split_paths)
        .map(|directory| directory.join("kubectl"))
        .find(|candidate| is_executable(candidate));
    let mut command = match (installed, k3s) {
        (Some(kubectl), _) => Command::new(kubectl),
        (None, Some(k3s)) if is_executable(k3s) => {
            let mut command = Command::new(k3s);
            command.arg("kubectl");
            command
        }
        _ => return Err(KubectlError::NotFound),
    };
    command.args(arguments).env("KUBECONFIG", kubeconfig);
    Ok(command)
}

fn is_executable(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// Becomes kubectl: its output, signals and exit status are this process's own. `k3s` is a K3s binary
/// that serves where kubectl is not installed. Returns only when that fails.
pub fn exec(kubeconfig: &Path, k3s: Option<&Path>, arguments: &[OsString]) -> KubectlError {
    match command(kubeconfig, k3s, std::env::var_os("PATH"), arguments) {
        Ok(mut command) => KubectlError::Run {
            program: command.get_program().into(),
            source: command.exec(),
        },
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    /// A program that says how it was called, and ends with status 7.
    fn program(folder: &Path, name: &str) -> PathBuf {
        let path = folder.join(name);
        std::fs::write(
            &path,
            "#!/bin/sh\necho \"$(basename $0) $* $KUBECONFIG\"; exit 7\n",
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn run(command: Result<Command, KubectlError>) -> (String, Option<i32>) {
        let output = command.unwrap().output().unwrap();
        (
            String::from_utf8(output.stdout).unwrap(),
            output.status.code(),
        )
    }

    #[test]
    fn an_installed_kubectl_comes_first_and_k3s_stands_in() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("k3s.yaml");
        std::fs::write(&config, "").unwrap();
        let bin = folder.path().join("bin");
        std::fs::create_dir(&bin).unwrap();
        let k3s = program(folder.path(), "k3s");
        let arguments = ["get".into(), "nodes".into()];
        let search = || Some(OsString::from(&bin));

        let (output, code) = run(command(&config, Some(&k3s), search(), &arguments));
        assert_eq!(
            output,
            format!("k3s kubectl get nodes {}\n", config.display())
        );
        assert_eq!(code, Some(7));

        program(&bin, "kubectl");
        let (output, _) = run(command(&config, Some(&k3s), search(), &arguments));
        assert_eq!(output, format!("kubectl get nodes {}\n", config.display()));
    }

    #[test]
    fn what_is_missing_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("k3s.yaml");
        assert!(matches!(
            command(&config, None, None, &[]),
            Err(KubectlError::NoKubeconfig { .. })
        ));
        std::fs::write(&config, "").unwrap();
        assert!(matches!(
            command(&config, None, None, &[]),
            Err(KubectlError::NotFound)
        ));
    }
}
