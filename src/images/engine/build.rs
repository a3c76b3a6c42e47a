//! One build over a normalised copy of the context.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use super::builder::Build;
use super::{Engine, EngineError, child};
use crate::images::component::{Component, host_platform};
use crate::images::context::stage::Stage;
use crate::images::context::{Context, ContextError, SOURCE_DATE_EPOCH};
use crate::images::event::{ImageEvent, Reporter};
use crate::images::hash::Sha256Digest;

/// Where hosts keep the certificates they trust. The first that exists is offered to builds as the secret `ca`.
const CA_BUNDLES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// Proxy settings that are handed on by name, so that a password in one is not in the process list.
const PROXIES: [&str; 8] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
];

/// A build did not give an image.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The builder says no.
    #[error(
        "building {component} from {dockerfile} failed. The last lines of the build:\n{output}"
    )]
    Failed {
        /// The component.
        component: String,
        /// Its Dockerfile.
        dockerfile: PathBuf,
        /// The end of the builder's output.
        output: String,
    },
    /// A program of another architecture was to run.
    #[error(
        "building {component} for {platform}: {dockerfile} runs programs of that architecture, and this host cannot. Let it: \
         `apt-get install qemu-user-static binfmt-support`, or \
         `docker run --privileged --rm tonistiigi/binfmt --install all`; or build in a stage `FROM --platform=$BUILDPLATFORM` \
         and only COPY into the last one. The last lines of the build:\n{output}"
    )]
    Foreign {
        /// The component.
        component: String,
        /// The platform.
        platform: String,
        /// Its Dockerfile.
        dockerfile: PathBuf,
        /// The end of the builder's output.
        output: String,
    },
    /// The builder says yes, but names no image.
    #[error(
        "building {component}: the builder reported no image ID; is the buildx driver able to load images?"
    )]
    NoImage {
        /// The component.
        component: String,
    },
    /// The engine cannot be used.
    #[error("building {component}: the container engine cannot be used")]
    Engine {
        /// The component.
        component: String,
        /// The engine's error.
        #[source]
        source: EngineError,
    },
    /// The context cannot be read or copied.
    #[error("building {component}: the build context cannot be used")]
    Context {
        /// The component.
        component: String,
        /// The reason.
        #[source]
        source: ContextError,
    },
    /// No room for the copy.
    #[error("building {component}: cannot write the build's temporary files")]
    Temporary {
        /// The component.
        component: String,
        /// The operating system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// What to build.
#[derive(Debug)]
pub struct Request<'a> {
    /// The component.
    pub component: &'a Component,
    /// For which of its platforms.
    pub platform: &'a str,
    /// Its context as it was hashed.
    pub context: &'a Context,
    /// The context's hash: a copy that hashes otherwise is not built.
    pub context_hash: Sha256Digest,
    /// The Dockerfile with its bases resolved.
    pub dockerfile: String,
    /// What to call the image in the engine.
    pub tag: &'a str,
    /// Do not use results of earlier builds.
    pub refresh: bool,
}

/// Builds and gives the image's ID.
pub async fn build(
    engine: &Engine,
    request: Request<'_>,
    reporter: &dyn Reporter,
) -> Result<String, BuildError> {
    let component = &request.component.name;
    let temporary = |source| BuildError::Temporary {
        component: component.clone(),
        source,
    };
    let folder = tempfile::Builder::new()
        .prefix("orch-build-")
        .tempdir()
        .map_err(temporary)?;
    let staged = stage(folder.path(), &request)?;
    let identity = folder.path().join("image-id");
    let command = command(engine, &request, folder.path(), &staged, &identity).await;
    let finished = child::lines(command, |line| {
        if !line.is_empty() {
            reporter.event(ImageEvent::BuildLine {
                component: component.clone(),
                line: line.to_owned(),
            });
        }
    });
    let finished = finished.await.map_err(|source| BuildError::Engine {
        component: component.clone(),
        source,
    })?;
    if !finished.status.success() {
        let output = Vec::from(finished.last_lines).join("\n");
        let dockerfile = request.component.dockerfile.clone();
        let foreign = request.platform != host_platform();
        // The kernel's words for a program that it has no interpreter for.
        if foreign && output.to_ascii_lowercase().contains("exec format error") {
            return Err(BuildError::Foreign {
                component: component.clone(),
                platform: request.platform.to_owned(),
                dockerfile,
                output,
            });
        }
        return Err(BuildError::Failed {
            component: component.clone(),
            dockerfile,
            output,
        });
    }
    match fs::read_to_string(&identity) {
        Ok(id) if !id.trim().is_empty() => Ok(format!(
            "sha256:{}",
            id.trim().trim_start_matches("sha256:")
        )),
        _ => Err(BuildError::NoImage {
            component: component.clone(),
        }),
    }
}

/// Copies the context and writes the Dockerfile beside it, where no COPY can reach it.
fn stage(folder: &Path, request: &Request<'_>) -> Result<PathBuf, BuildError> {
    let component = &request.component.name;
    let temporary = |source| BuildError::Temporary {
        component: component.clone(),
        source,
    };
    let failed = |source| BuildError::Context {
        component: component.clone(),
        source,
    };
    // BuildKit recognises a context by the folder's last name and trusts size and time then, which are fixed here. A name that
    // was never used before makes it read every byte.
    let unique = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let staged = folder.join(format!("{unique}-context"));
    fs::create_dir(&staged).map_err(temporary)?;
    let mut visitor = Stage::new(&staged);
    let hash = request.context.visit(&mut visitor).map_err(failed)?;
    visitor.finish().map_err(failed)?;
    if hash != request.context_hash {
        return Err(failed(ContextError::Changed {
            path: request.component.context.clone(),
        }));
    }
    let recipe = folder.join(format!("{unique}-dockerfile"));
    fs::create_dir(&recipe).map_err(temporary)?;
    fs::write(recipe.join("Dockerfile"), &request.dockerfile).map_err(temporary)?;
    // The copy is filtered already; an ignore file in it must not be applied a second time.
    fs::write(recipe.join("Dockerfile.dockerignore"), "").map_err(temporary)?;
    Ok(staged)
}

async fn command(
    engine: &Engine,
    request: &Request<'_>,
    folder: &Path,
    staged: &Path,
    identity: &Path,
) -> Command {
    let component = request.component;
    let unique = folder
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    let file = folder
        .join(format!("{unique}-dockerfile"))
        .join("Dockerfile");
    let ca = CA_BUNDLES.iter().find(|path| Path::new(path).exists());
    let build = Build {
        tag: request.tag,
        platform: request.platform,
        file: &file,
        context: staged,
        identity: Some(identity),
        arguments: arguments(&component.args, |name| std::env::var(name).ok()),
        ca: ca.copied(),
        target: component.target.as_deref(),
        cold: request.refresh,
    };
    engine.build(&build).await
}

/// What follows each `--build-arg`.
fn arguments(
    given: &BTreeMap<String, String>,
    environment: impl Fn(&str) -> Option<String>,
) -> Vec<String> {
    // The builder has the same environment. What stands there may be a secret, which a process list would show to everybody.
    let written =
        given.iter().map(
            |(name, value)| match environment(name).as_ref() == Some(value) {
                true => name.clone(),
                false => format!("{name}={value}"),
            },
        );
    // What is part of the image's name comes before what happens to be set here.
    let proxies = PROXIES
        .iter()
        .filter(|name| !given.contains_key(**name) && environment(name).is_some());
    std::iter::once(format!("SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH}"))
        .chain(written)
        .chain(proxies.map(|name| (*name).to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::event::Recorder;

    #[test]
    fn a_given_proxy_comes_before_the_environments_whose_values_are_not_written_out() {
        let environment = |name: &str| {
            let value = match name {
                "HTTP_PROXY" | "https_proxy" => "http://me:hush@proxy",
                "TOKEN" | "MOVED" => "hush",
                _ => return None,
            };
            Some(value.to_owned())
        };
        let given = [
            ("HTTP_PROXY", "http://other"),
            ("MOVED", "1"),
            ("PLAIN", "2"),
            ("TOKEN", "hush"),
        ];
        let given = given.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(
            arguments(&given.into(), environment),
            [
                format!("SOURCE_DATE_EPOCH={SOURCE_DATE_EPOCH}").as_str(),
                "HTTP_PROXY=http://other",
                "MOVED=1",
                "PLAIN=2",
                "TOKEN",
                "https_proxy",
            ]
        );
    }

    #[tokio::test]
    async fn the_builder_is_the_one_of_the_context() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("app");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("Dockerfile"), "FROM scratch\n").unwrap();
        let script = "if [ \"$1 $2\" = 'context show' ]; then echo remote; exit; fi\n\
                      echo \"builder is $BUILDX_BUILDER\"; exit 1";
        let engine = Engine::script(root.path(), script);
        let component = Component::from_folder(&folder, "linux/amd64").unwrap();
        let context = Context::scan(&folder, &component.dockerfile).unwrap();
        let request = Request {
            component: &component,
            platform: "linux/amd64",
            context: &context,
            context_hash: context.contents(None).unwrap().hash(),
            dockerfile: "FROM scratch\n".to_owned(),
            tag: "app:x",
            refresh: false,
        };
        let error = build(&engine, request, &Recorder::default())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("builder is remote"), "{error}");
    }
}
