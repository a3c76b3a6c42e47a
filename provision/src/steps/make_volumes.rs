//! The directories that PersistentVolumes expect below the shared one, each owned by the user whose
//! service writes into it.

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use orch_contract::{Action, Change, ExitCode, Subject, VolumeDirectory};
use orch_runner::{Check, ExitCoded, Step, StepFailure, StepReport};

use super::Context;
use crate::system::{CommandError, Invocation};

/// Why a volume's directory is not there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MakeVolumesError {
    #[error("{} is a symbolic link or no directory; data must not leave the shared directory: remove it", path.display())]
    NotADirectory { path: PathBuf },
    #[error("cannot make {}; is the shared directory writable for root on this node?", path.display())]
    Make { path: PathBuf, source: CommandError },
}

impl ExitCoded for MakeVolumesError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Host
    }
}

pub(crate) struct MakeVolumes<'a> {
    pub(crate) context: Context<'a>,
}

impl MakeVolumes<'_> {
    /// The directories whose owner is not the wanted one, or that do not exist.
    async fn missing(&self) -> Result<Vec<(PathBuf, VolumeDirectory)>, MakeVolumesError> {
        let storage = &self.context.config.storage;
        let mut missing = Vec::new();
        for directory in &storage.directories {
            let path = storage.path.join(&directory.path);
            match self.stat(&path).await? {
                Some(found)
                    if found == format!("directory {}:{}", directory.uid, directory.gid) => {}
                Some(found) if !found.starts_with("directory ") => {
                    return Err(MakeVolumesError::NotADirectory { path });
                }
                _ => missing.push((path, directory.clone())),
            }
        }
        Ok(missing)
    }

    /// Kind and owner, `None` where nothing is. Links are not followed.
    async fn stat(&self, path: &Path) -> Result<Option<String>, MakeVolumesError> {
        let text = path.to_string_lossy();
        let finished = self
            .context
            .system
            .commands
            .run(&Invocation::new("stat", ["--format", "%F %u:%g", &text]))
            .await
            .map_err(|source| MakeVolumesError::Make {
                path: path.to_owned(),
                source,
            })?;
        Ok(finished
            .success()
            .then(|| finished.text().trim().to_owned()))
    }

    async fn make(&self, path: &Path, directory: &VolumeDirectory) -> Result<(), MakeVolumesError> {
        let storage = &self.context.config.storage;
        // Only root walks the way down; a container sees its own leaf through the kubelet's mount.
        let mut parent = storage.path.clone();
        for part in directory
            .path
            .parent()
            .into_iter()
            .flat_map(Path::components)
        {
            parent.push(part);
            if matches!(self.stat(&parent).await?, Some(found) if !found.starts_with("directory "))
            {
                return Err(MakeVolumesError::NotADirectory { path: parent });
            }
            self.install(&parent, 0, 0).await?;
        }
        self.install(path, directory.uid, directory.gid).await
    }

    /// Never recursive: what lies inside belongs to the service.
    async fn install(&self, path: &Path, uid: u32, gid: u32) -> Result<(), MakeVolumesError> {
        let (uid, gid, text) = (uid.to_string(), gid.to_string(), path.to_string_lossy());
        let arguments = ["-d", "-m", "0700", "-o", &uid, "-g", &gid, &text];
        self.context
            .system
            .commands
            .run_ok(&Invocation::new("install", arguments))
            .await
            .map(|_| ())
            .map_err(|source| MakeVolumesError::Make {
                path: path.to_owned(),
                source,
            })
    }
}

#[async_trait]
impl Step for MakeVolumes<'_> {
    type Output = ();

    fn name(&self) -> &'static str {
        "make_volumes"
    }

    fn title(&self) -> String {
        format!(
            "Make {} volume directories",
            self.context.config.storage.directories.len()
        )
    }

    async fn check(&self, _: &StepReport<'_>) -> Result<Check<()>, StepFailure> {
        let missing = self.missing().await?;
        let changes = missing.into_iter().map(|(path, directory)| {
            Change::new(
                Subject::Directory,
                path.display().to_string(),
                Action::Create,
                format!(
                    "is missing or not owned by {}:{}",
                    directory.uid, directory.gid
                ),
            )
        });
        Ok(Check::of(changes.collect(), || ()))
    }

    async fn apply(&self, _: &StepReport<'_>) -> Result<(), StepFailure> {
        for (path, directory) in self.missing().await? {
            self.make(&path, &directory).await?;
        }
        Ok(())
    }

    fn planned(&self) {}
}

#[cfg(test)]
mod tests {
    use orch_contract::NodeConfig;
    use orch_runner::{Recorder, Runner};

    use super::*;
    use crate::testing::{Machine, server_config};

    fn config() -> NodeConfig {
        let mut config = server_config();
        config.storage.directories = vec![VolumeDirectory {
            path: "movies/rabbitmq".into(),
            uid: 998,
            gid: 998,
        }];
        config
    }

    #[tokio::test]
    async fn a_directory_with_the_right_owner_is_left_alone() {
        let machine = Machine::fit();
        machine.commands.answer("stat", 0, "directory 998:998\n");
        let config = config();
        let step = MakeVolumes {
            context: machine.context(&config),
        };
        assert_eq!(step.missing().await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_missing_one_is_made_below_a_parent_that_only_root_enters() {
        let machine = Machine::fit();
        machine.commands.answer("stat", 1, "");
        machine.commands.answer("install", 0, "");
        let config = config();
        let step = MakeVolumes {
            context: machine.context(&config),
        };
        let recorder = Recorder::default();
        Runner::new(&recorder, false).run(&step).await.unwrap();
        let made: Vec<_> = machine
            .commands
            .asked_lines()
            .into_iter()
            .filter(|line| line.starts_with("install"))
            .collect();
        assert_eq!(
            made,
            [
                "install -d -m 0700 -o 0 -g 0 /var/lib/orch/volumes/movies",
                "install -d -m 0700 -o 998 -g 998 /var/lib/orch/volumes/movies/rabbitmq",
            ]
        );
    }

    #[tokio::test]
    async fn a_link_in_its_place_is_refused() {
        let machine = Machine::fit();
        machine.commands.answer("stat", 0, "symbolic link 0:0\n");
        let config = config();
        let step = MakeVolumes {
            context: machine.context(&config),
        };
        assert!(matches!(
            step.missing().await,
            Err(MakeVolumesError::NotADirectory { .. })
        ));
    }
}
