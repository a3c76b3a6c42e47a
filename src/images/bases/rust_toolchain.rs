//! An image with this host's own Rust toolchain, laid out like Docker's official `rust` image: `/usr/local/rustup`,
//! `/usr/local/cargo`, `cargo` and `rustc` in PATH, and the linker and C library headers they need.

use std::fs;
use std::path::PathBuf;

use tokio::process::Command;

use super::BaseError;
use super::recipe::Kitchen;
use crate::images::engine::builder::Build;
use crate::images::engine::child;
use crate::images::event::ImageEvent;

/// What the toolchain's folder holds and a build needs; documentation, sources and editors' tools stay behind.
const PARTS: [&str; 6] = [
    "bin/cargo",
    "bin/rustc",
    "bin/rustdoc",
    "lib/*.so*",
    "lib/rustlib/*/lib",
    "lib/rustlib/*/bin",
];

/// A Rust toolchain on this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Toolchain {
    /// `1.95.0`.
    pub(super) version: String,
    /// `x86_64-unknown-linux-gnu`.
    pub(super) host: String,
    /// Its folder.
    pub(super) sysroot: PathBuf,
}

impl Toolchain {
    /// The toolchain of this host that satisfies `version`, which may leave out the last numbers.
    pub(super) async fn find(version: &str, reference: &str) -> Result<Self, BaseError> {
        let mut seen = Vec::new();
        // rustup knows more toolchains than the one that is the default here.
        let full = if version.split('.').count() == 2 {
            format!("{version}.0")
        } else {
            version.to_owned()
        };
        for name in [Some(full.as_str()), Some(version), Some("stable"), None] {
            let mut command = Command::new("rustc");
            command
                .args(["--version", "--verbose"])
                .current_dir("/")
                .env("RUSTUP_AUTO_INSTALL", "0");
            match name {
                Some(name) => command.env("RUSTUP_TOOLCHAIN", name),
                None => command.env_remove("RUSTUP_TOOLCHAIN"),
            };
            let Ok(output) = child::output(command).await else {
                continue;
            };
            let Some((found, host)) = parse_version(&output) else {
                continue;
            };
            if !satisfies(&found, version) {
                seen.push(found);
                continue;
            }
            let mut command = Command::new("rustc");
            command
                .args(["--print", "sysroot"])
                .current_dir("/")
                .env("RUSTUP_AUTO_INSTALL", "0");
            match name {
                Some(name) => command.env("RUSTUP_TOOLCHAIN", name),
                None => command.env_remove("RUSTUP_TOOLCHAIN"),
            };
            if let Ok(sysroot) = child::output(command).await {
                return Ok(Self {
                    version: found,
                    host,
                    sysroot: sysroot.trim().into(),
                });
            }
        }
        let have = if seen.is_empty() {
            "none".to_owned()
        } else {
            seen.join(", ")
        };
        let reason = format!(
            "it needs Rust {version}, this host has {have}: run `rustup toolchain install {full}`"
        );
        Err(BaseError::Recipe {
            reference: reference.to_owned(),
            reason,
        })
    }
}

/// Release and host triple out of `rustc --version --verbose`.
fn parse_version(output: &str) -> Option<(String, String)> {
    let field = |name: &str| {
        output
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(|value| value.trim().to_owned())
    };
    Some((field("release:")?, field("host:")?))
}

fn satisfies(found: &str, wanted: &str) -> bool {
    found == wanted
        || found
            .strip_prefix(wanted)
            .is_some_and(|rest| rest.starts_with('.'))
}

/// Builds the image on `base`, from the toolchain's folder as the context.
pub(super) async fn make(
    kitchen: &Kitchen<'_>,
    toolchain: &Toolchain,
    base: &str,
    tag: &str,
) -> Result<(), BaseError> {
    let folder = tempfile::Builder::new()
        .prefix("orch-base-")
        .tempdir()
        .map_err(|source| kitchen.write_failed(&std::env::temp_dir(), source))?;
    let write = |name: &str, text: String| {
        let path = folder.path().join(name);
        fs::write(&path, text).map_err(|source| kitchen.write_failed(&path, source))
    };
    write("Dockerfile", dockerfile(toolchain, base))?;
    let kept = PARTS
        .iter()
        .map(|part| format!("!{part}\n"))
        .collect::<String>();
    write("Dockerfile.dockerignore", format!("*\n{kept}"))?;
    let file = folder.path().join("Dockerfile");
    let build = Build {
        tag,
        platform: kitchen.platform,
        file: &file,
        context: &toolchain.sysroot,
        identity: None,
        arguments: Vec::new(),
        ca: None,
        target: None,
        cold: kitchen.refresh,
    };
    let command = kitchen.engine.build(&build).await;
    let finished = child::succeed(command, |line| {
        let component = kitchen.reference.to_owned();
        kitchen.reporter.event(ImageEvent::BuildLine {
            component,
            line: line.to_owned(),
        });
    });
    finished.await.map_err(|error| kitchen.engine_failed(error))
}

fn dockerfile(toolchain: &Toolchain, base: &str) -> String {
    let Toolchain { version, host, .. } = toolchain;
    let home = format!("/usr/local/rustup/toolchains/{version}-{host}");
    format!(
        "FROM {base}\n\
         ENV RUSTUP_HOME=/usr/local/rustup CARGO_HOME=/usr/local/cargo RUST_VERSION={version} \\\n    \
         PATH=/usr/local/cargo/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         RUN apt-get update \\\n \
         && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends ca-certificates gcc libc6-dev \\\n \
         && rm -rf /var/lib/apt/lists/*\n\
         COPY . {home}/\n\
         RUN mkdir -p /usr/local/cargo/bin \\\n \
         && for tool in cargo rustc rustdoc; do ln -s {home}/bin/$tool /usr/local/cargo/bin/$tool; done \\\n \
         && rustc --version && cargo --version\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number_not_by_letter() {
        assert!(satisfies("1.95.0", "1.95"));
        assert!(satisfies("1.95.0", "1"));
        assert!(satisfies("1.95.0", "1.95.0"));
        assert!(!satisfies("1.95.0", "1.9"));
        assert!(!satisfies("1.95.0-nightly", "1.95.0"));
    }

    #[test]
    fn the_compiler_says_what_it_is() {
        let output = "rustc 1.95.0 (aaa 2026-01-01)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\nrelease: 1.95.0\n";
        assert_eq!(
            parse_version(output),
            Some(("1.95.0".to_owned(), "x86_64-unknown-linux-gnu".to_owned()))
        );
        assert_eq!(parse_version("something else"), None);
    }
}
