//! Who builds: docker with or without buildx, podman, buildah. What differs between their command lines, and nothing else.

use std::path::Path;

use tokio::process::Command;

use super::Engine;
use crate::images::component::host_platform;

/// A program that builds images and keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builder {
    /// Docker's engine through buildx.
    Buildx,
    /// Docker's engine through `docker build` without BuildKit.
    Classic,
    /// Podman, which needs no engine.
    Podman,
    /// Buildah, which builds and cannot run.
    Buildah,
}

/// Which builder is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Docker if its engine answers, else podman, else buildah.
    #[default]
    Auto,
    /// Docker, with buildx if it is there.
    Docker,
    /// Docker without buildx and BuildKit.
    Classic,
    /// Podman.
    Podman,
    /// Buildah.
    Buildah,
}

impl Builder {
    /// The program, where it is not docker's.
    pub(super) fn program(self) -> Option<&'static str> {
        match self {
            Self::Buildx | Self::Classic => None,
            Self::Podman => Some("podman"),
            Self::Buildah => Some("buildah"),
        }
    }

    /// Are images kept by docker's engine?
    pub fn is_docker(self) -> bool {
        self.program().is_none()
    }
}

/// One build, as every builder understands it.
#[derive(Debug)]
pub(crate) struct Build<'a> {
    /// What to call the image.
    pub(crate) tag: &'a str,
    pub(crate) platform: &'a str,
    /// The Dockerfile. Beside it lies a file of the same name and `.dockerignore`.
    pub(crate) file: &'a Path,
    pub(crate) context: &'a Path,
    /// Where the builder writes the image's ID.
    pub(crate) identity: Option<&'a Path>,
    /// `NAME=VALUE`, or `NAME` to take the value from the environment.
    pub(crate) arguments: Vec<String>,
    /// A file that RUN may ask for as the secret `ca`.
    pub(crate) ca: Option<&'a str>,
    pub(crate) target: Option<&'a str>,
    /// Do not use results of earlier builds.
    pub(crate) cold: bool,
}

impl Engine {
    /// The command of a build.
    pub(crate) async fn build(&self, build: &Build<'_>) -> Command {
        let builder = self.builder().await;
        let mut command = match builder {
            // Attestations would give an unchanged image a new digest with every build.
            Builder::Buildx => {
                self.command(&[
                    "buildx",
                    "build",
                    "--progress=plain",
                    "--provenance=false",
                    "--sbom=false",
                    "--load",
                ])
                .await
            }
            Builder::Classic => {
                let mut command = self.command(&["build"]).await;
                command.env("DOCKER_BUILDKIT", "0");
                command
            }
            // Docker's format, because the other one knows no HEALTHCHECK. What is there is not asked for at a registry.
            Builder::Podman | Builder::Buildah => {
                let mut command = self
                    .command(&[
                        "build",
                        "--layers",
                        "--format=docker",
                        "--identity-label=false",
                        "--pull=false",
                    ])
                    .await;
                let mut ignore = build.file.as_os_str().to_owned();
                ignore.push(".dockerignore");
                command.arg("--ignorefile").arg(ignore);
                command
            }
        };
        if builder == Builder::Buildx {
            self.use_own_builder(&mut command).await;
        }
        if let Some(identity) = build.identity {
            command.arg("--iidfile").arg(identity);
        }
        command.args(["--tag", build.tag]);
        // Old engines take the option only where it is no experiment.
        if builder != Builder::Classic || build.platform != host_platform() {
            command.args(["--platform", build.platform]);
        }
        command.arg("--file").arg(build.file);
        for argument in &build.arguments {
            command.args(["--build-arg", argument]);
        }
        // `RUN --mount` is BuildKit's and its followers'.
        if let Some(ca) = build.ca.filter(|_| builder != Builder::Classic) {
            command.arg(format!("--secret=id=ca,src={ca}"));
        }
        if let Some(target) = build.target {
            command.args(["--target", target]);
        }
        if build.cold {
            command.arg("--no-cache");
        }
        command.arg(build.context);
        command
    }

    /// The command that writes an image as an archive in docker's format to stdout.
    pub(crate) async fn save(&self, image: &str) -> Command {
        match self.builder().await {
            Builder::Buildx | Builder::Classic => self.command(&["save", image]).await,
            Builder::Podman => {
                self.command(&["save", "--quiet", "--format=docker-archive", image])
                    .await
            }
            Builder::Buildah => {
                let push = ["push", "--quiet", image, "docker-archive:/dev/stdout"];
                let mut command = self.command(&push).await;
                // A file needs no login, and one that is not there would be an error.
                command.env_remove("DOCKER_CONFIG");
                command
            }
        }
    }
}

/// Finds out who there is. Nobody answers: docker, whose error then says what to do.
pub(super) async fn find(docker: &str, wanted: Wanted) -> Builder {
    match wanted {
        Wanted::Podman => return Builder::Podman,
        Wanted::Buildah => return Builder::Buildah,
        Wanted::Classic => return Builder::Classic,
        Wanted::Docker | Wanted::Auto => {}
    }
    let format = ["version", "--format", "{{.Server.Version}}"];
    if wanted == Wanted::Docker || answers(docker, &format).await {
        return if answers(docker, &["buildx", "version"]).await {
            Builder::Buildx
        } else {
            Builder::Classic
        };
    }
    for builder in [Builder::Podman, Builder::Buildah] {
        if let Some(program) = builder.program()
            && answers(program, &["info"]).await
        {
            return builder;
        }
    }
    Builder::Buildx
}

async fn answers(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null());
    super::child::output(command).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_engine_without_buildx_builds_the_classic_way() {
        let folder = tempfile::tempdir().unwrap();
        let engine = |name: &str, script: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir(&path).unwrap();
            Engine::script(&path, script).program().to_owned()
        };
        let with = engine("with", "exit 0");
        let without = engine("without", "test $1 = version");
        assert_eq!(find(&with, Wanted::Auto).await, Builder::Buildx);
        assert_eq!(find(&without, Wanted::Auto).await, Builder::Classic);
        assert_eq!(find(&without, Wanted::Docker).await, Builder::Classic);
        assert_eq!(find(&with, Wanted::Buildah).await, Builder::Buildah);
    }
}
