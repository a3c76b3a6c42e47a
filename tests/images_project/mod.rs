//! A project in a folder of its own, and orch as it runs there for somebody who has set up nothing.

#![allow(dead_code, reason = "each test uses its part of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub(crate) struct Project(tempfile::TempDir);

impl Project {
    /// With these files: path and text.
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        let project = Self(tempfile::tempdir().unwrap());
        for (path, text) in files {
            project.write(path, text);
        }
        project
    }

    /// With one component called `app`.
    pub(crate) fn of_one_component() -> Self {
        Self::new(&[("Dockerfiles/app/Dockerfile", "FROM scratch\n")])
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path
    }

    pub(crate) fn read(&self, path: &str) -> String {
        std::fs::read_to_string(self.path().join(path)).unwrap()
    }

    /// orch with no settings but the project's.
    pub(crate) fn orch(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(assert_cmd::cargo::cargo_bin("orch"));
        for variable in [
            "ORCH_FILE",
            "ORCH_BUILDER",
            "ORCH_CA_FILE",
            "DOCKER_HUB_USERNAME",
            "SSL_CERT_FILE",
        ] {
            command.env_remove(variable);
        }
        command
            .args(arguments)
            .current_dir(self.path())
            .env("DOCKER_CONFIG", self.path().join(".docker"))
            .env("ORCH_CACHE", self.path().join(".cache"))
            .stdin(Stdio::null());
        command
    }
}

/// A project whose images the engine forgets when it goes.
pub(crate) struct Foreign {
    project: Project,
    pub(crate) namespace: String,
}

impl Drop for Foreign {
    fn drop(&mut self) {
        let tags = Command::new("docker")
            .args(["image", "ls", "--format", "{{.Repository}}:{{.Tag}}"])
            .output()
            .unwrap();
        let part = format!("/{}/", self.namespace);
        for tag in String::from_utf8_lossy(&tags.stdout).lines() {
            if tag.contains(&part) {
                let _ = Command::new("docker").args(["rmi", tag]).output();
            }
        }
    }
}

impl Foreign {
    pub(crate) fn new(name: &str, files: &[(&str, &str)]) -> Self {
        Self {
            project: Project::new(files),
            namespace: format!("{name}-{}", std::process::id()),
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.project.path()
    }

    pub(crate) fn read(&self, path: &str) -> String {
        self.project.read(path)
    }

    /// Options for a namespace of its own at this registry, and manifests in `deploy`.
    pub(crate) fn at<'a>(&'a self, registry: &'a str) -> [&'a str; 6] {
        [
            "--registry",
            registry,
            "--namespace",
            &self.namespace,
            "--manifests",
            "deploy",
        ]
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.project.orch(arguments)
    }

    pub(crate) fn orch(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// With base images that earlier runs made on this host, and builders that work as root in a container, too.
    pub(crate) fn orch_of_everyday(&self, arguments: &[&str]) -> Output {
        self.command(arguments)
            .env("ORCH_CACHE", orch::project::cache_directory())
            .env("BUILDAH_ISOLATION", "chroot")
            .output()
            .unwrap()
    }

    /// What a command that must succeed wrote to stdout.
    pub(crate) fn done(&self, arguments: &[&str]) -> String {
        stdout(self.orch(arguments))
    }
}

/// What a program that must have succeeded wrote to stdout.
pub(crate) fn stdout(output: Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// All that a program wrote.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.as_slice(), &output.stderr].concat()).unwrap()
}
