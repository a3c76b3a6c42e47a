//! The container engine on this machine, through its command line: `docker`, or what `DOCKER` names, or a [`builder`] that needs
//! no engine.
//!
//! Children die with the future that waits for them, so an interrupted run leaves no build behind.

pub mod build;
pub mod builder;
pub mod child;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::OnceCell;

use builder::{Build, Builder, Wanted};

/// How often images are listed where others remove some meanwhile, and how long to wait in between.
const LOOKS: usize = 10;
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);

/// The engine did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such program.
    #[error("cannot run `{program}`: install it and make sure that it is in PATH")]
    Start {
        /// The program.
        program: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It ran and failed.
    #[error("`{command}` failed ({status}): {output}")]
    Failed {
        /// The command, ready to be pasted.
        command: String,
        /// Its exit status.
        status: String,
        /// The end of what it wrote.
        output: String,
    },
    /// Reading from it failed.
    #[error("cannot read what `{command}` writes")]
    Read {
        /// The command.
        command: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// The engine.
#[derive(Debug, Clone)]
pub struct Engine {
    program: String,
    wanted: Wanted,
    found: Arc<OnceCell<Builder>>,
}

impl Default for Engine {
    fn default() -> Self {
        Self::new(std::env::var("DOCKER").unwrap_or_else(|_| "docker".to_owned()))
    }
}

impl Engine {
    /// Docker with buildx, whose command line is `program`.
    pub fn new(program: impl Into<String>) -> Self {
        Self {
            program: program.into(),
            wanted: Wanted::Docker,
            found: Arc::new(OnceCell::new_with(Some(Builder::Buildx))),
        }
    }

    /// What `wanted` comes to on this machine, which is found out when it is first needed.
    pub fn choose(wanted: Wanted) -> Self {
        Self {
            wanted,
            found: Arc::default(),
            ..Self::default()
        }
    }

    /// Who builds.
    pub async fn builder(&self) -> Builder {
        let find = || builder::find(&self.program, self.wanted);
        *self.found.get_or_init(find).await
    }

    /// A command of the engine that dies with its future.
    pub(crate) async fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.builder().await.program().unwrap_or(&self.program));
        command
            .args(arguments)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs a command to its end and gives what it wrote to stdout.
    pub async fn run(&self, arguments: &[&str]) -> Result<String, EngineError> {
        child::output(self.command(arguments).await).await
    }

    /// Makes a `buildx` command use the builder that sees this engine's images: the docker driver's, which is called like the
    /// context. Whichever `docker buildx use` selected may run in a container of its own.
    pub(crate) async fn use_own_builder(&self, command: &mut Command) {
        // An engine without contexts has no other builders either.
        if let Ok(context) = self.run(&["context", "show"]).await {
            command.env("BUILDX_BUILDER", context.trim());
        }
    }

    /// The ID of an image, if the engine has it.
    pub async fn image_id(&self, reference: &str) -> Result<Option<String>, EngineError> {
        let inspect: &[&str] = match self.builder().await {
            Builder::Buildah => &["inspect", "--type=image", "--format={{.FromImageID}}"],
            _ => &["image", "inspect", "--format={{.Id}}"],
        };
        let none = ["no such image", "image not known"];
        match self.run(&[inspect, &[reference]].concat()).await {
            // Not everybody says which kind of digest it is.
            Ok(output) => Ok(Some(format!(
                "sha256:{}",
                output.trim().trim_start_matches("sha256:")
            ))),
            Err(EngineError::Failed { output, .. })
                if none
                    .iter()
                    .any(|words| output.to_ascii_lowercase().contains(words)) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// All tagged images: `repository:tag` -> ID. One call however many are asked about.
    pub async fn image_ids(&self) -> Result<BTreeMap<String, String>, EngineError> {
        let list = ["image", "ls", "--no-trunc", "--format"];
        let output = match self.builder().await {
            Builder::Buildah => {
                let list = [
                    "images",
                    "--no-trunc",
                    "--format={{.Name}}:{{.Tag}} {{.ID}}",
                ];
                settled(async || self.run(&list).await).await?
            }
            _ => {
                let format = ["{{.Repository}}:{{.Tag}} {{.ID}}"];
                self.run(&[&list[..], &format].concat()).await?
            }
        };
        let pairs = output.lines().filter_map(|line| line.split_once(' '));
        Ok(pairs
            .map(|(name, id)| (familiar(name).to_owned(), id.to_owned()))
            .collect())
    }

    /// Makes an image of one layer from an archive.
    pub async fn import(
        &self,
        archive: &Path,
        reference: &str,
        changes: &[&str],
    ) -> Result<(), EngineError> {
        if self.builder().await == Builder::Buildah {
            return self.build_from(archive, reference, changes).await;
        }
        let archive = archive.to_string_lossy();
        let mut arguments = vec!["import"];
        for change in changes {
            arguments.extend(["--change", change]);
        }
        arguments.extend([archive.as_ref(), reference]);
        self.run(&arguments).await.map(|_| ())
    }

    /// [`Engine::import`] for a builder without such a command. The changes are lines of a Dockerfile as they are.
    async fn build_from(
        &self,
        archive: &Path,
        reference: &str,
        changes: &[&str],
    ) -> Result<(), EngineError> {
        let failed = |source| EngineError::Read {
            command: format!("import {}", archive.display()),
            source,
        };
        let folder = tempfile::tempdir().map_err(failed)?;
        let file = folder.path().join("Dockerfile");
        let name = archive.file_name().unwrap_or_default().to_string_lossy();
        let lines = changes.join("\n");
        std::fs::write(
            &file,
            format!("FROM scratch\nADD [{name:?}, \"/\"]\n{lines}\n"),
        )
        .and_then(|()| {
            let ignore = folder.path().join("Dockerfile.dockerignore");
            std::fs::write(ignore, format!("*\n!{name}\n"))
        })
        .map_err(failed)?;
        let build = Build {
            tag: reference,
            platform: &super::component::host_platform(),
            file: &file,
            context: archive.parent().unwrap_or(Path::new(".")),
            identity: None,
            arguments: Vec::new(),
            ca: None,
            target: None,
            cold: true,
        };
        child::output(self.build(&build).await).await.map(|_| ())
    }
}

/// What buildah lists. It looks again at each image that it has found, and fails where somebody has removed one in between.
async fn settled(
    look: impl AsyncFn() -> Result<String, EngineError>,
) -> Result<String, EngineError> {
    for _ in 1..LOOKS {
        match look().await {
            Err(EngineError::Failed { output, .. }) if output.contains("not known") => {
                tokio::time::sleep(BETWEEN_LOOKS).await;
            }
            listed => return listed,
        }
    }
    look().await
}

#[cfg(test)]
impl Engine {
    pub(crate) fn program(&self) -> &str {
        &self.program
    }

    /// A shell script as the engine, kept in `folder`.
    pub(crate) fn script(folder: &Path, commands: &str) -> Self {
        let (text, program) = (folder.join("engine.sh"), folder.join("engine"));
        std::fs::write(&text, format!("#!/bin/sh\n{commands}\n")).unwrap();
        // By another process: a test that forks right now would keep the program open for writing here, and so not executable.
        let install = std::process::Command::new("install")
            .args([&text, &program])
            .status();
        assert!(install.unwrap().success());
        Self::new(program.to_string_lossy())
    }
}

/// How a reference is called in the engine's own listing: without `docker.io/` and `library/`.
pub fn familiar(reference: &str) -> &str {
    let short = reference.strip_prefix("docker.io/").unwrap_or(reference);
    short.strip_prefix("library/").unwrap_or(short)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn images_that_others_remove_are_looked_for_again_and_other_failures_are_not() {
        let failing = async |times: usize, words: &str| {
            let looks = AtomicUsize::new(0);
            let listed = settled(async || match looks.fetch_add(1, Ordering::Relaxed) {
                look if look < times => Err(EngineError::Failed {
                    command: "buildah images".to_owned(),
                    status: Default::default(),
                    output: words.to_owned(),
                }),
                _ => Ok("a 1".to_owned()),
            });
            let listed = listed.await;
            (listed, looks.into_inner())
        };
        let gone = "locating image with ID \"ec42\": image not known";
        assert!(matches!(failing(3, gone).await, (Ok(_), 4)));
        assert!(matches!(failing(99, gone).await, (Err(_), LOOKS)));
        assert!(matches!(failing(1, "no space left").await, (Err(_), 1)));
    }
}
