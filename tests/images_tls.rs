//! TLS to the real registry: whose certificates are trusted, what a refusal says, and where plain HTTP is spoken.
//!
//! The registry listens on the bridge's address, because loopback is spoken to in the clear.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

#[allow(
    dead_code,
    unreachable_pub,
    reason = "shared with tests that use more of it"
)]
mod images_registry;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
};

/// A CA, a registry's certificate and a client's, as files.
fn certificates(folder: &Path, address: &str) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
        .distinguished_name
        .push(DnType::CommonName, "CA of a test");
    let key = KeyPair::generate().unwrap();
    let authority = params.self_signed(&key).unwrap();
    std::fs::write(folder.join("ca.pem"), authority.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for (name, usage) in [
        ("server", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let mut params = CertificateParams::new(vec![address.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages.push(usage);
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(folder.join(format!("{name}.pem")), certificate.pem()).unwrap();
        std::fs::write(folder.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
    // The registry runs as a user of its own.
    std::fs::set_permissions(folder, PermissionsExt::from_mode(0o755)).unwrap();
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o644)).unwrap();
    }
}

struct Registry {
    container: String,
    address: String,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = Command::new("docker")
            .args(["rm", "--force", "--volumes", &self.container])
            .output();
    }
}

fn docker(arguments: &[&str]) -> String {
    let output = Command::new("docker").args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn bridge() -> String {
    let format = "{{(index .IPAM.Config 0).Gateway}}";
    docker(&["network", "inspect", "bridge", "--format", format])
}

impl Registry {
    fn start(options: &[&str]) -> Self {
        let publish = format!("{}:0:5000", bridge());
        let image = images_registry::image();
        let mut arguments = vec!["run", "--detach", "--rm", "--publish", &publish];
        arguments.extend(options);
        arguments.push(&image);
        let container = docker(&arguments);
        let address = docker(&["port", &container, "5000/tcp"]);
        let registry = Self { container, address };
        for _ in 0..200 {
            // The engine's proxy accepts before the registry listens; only the registry answers.
            let probe = Command::new("curl")
                .args(["--silent", "--noproxy", "*", "--http0.9", "--max-time", "2"])
                .arg(format!("http://{}/v2/", registry.address))
                .output()
                .unwrap();
            if probe.status.success() {
                return registry;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("the registry at {} does not answer", registry.address);
    }

    fn over_tls(certificates: &Path, options: &[&str]) -> Self {
        let volume = format!("{}:/certs:ro", certificates.display());
        let mut all = vec!["--volume", &volume];
        all.extend([
            "--env",
            "REGISTRY_HTTP_TLS_CERTIFICATE=/certs/server.pem",
            "--env",
            "REGISTRY_HTTP_TLS_KEY=/certs/server.key",
        ]);
        all.extend(options);
        Self::start(&all)
    }
}

struct Project(tempfile::TempDir);

impl Project {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let component = folder.path().join("Dockerfiles/app");
        std::fs::create_dir_all(&component).unwrap();
        std::fs::write(component.join("Dockerfile"), "FROM scratch\n").unwrap();
        Self(folder)
    }

    /// Lists the registry's tags, which takes one connection.
    fn ask(
        &self,
        registry: &str,
        arguments: &[&str],
        environment: &[(&str, &Path)],
    ) -> (i32, String) {
        let output: Output = Command::new(assert_cmd::cargo::cargo_bin("orch"))
            .args(["images", "gc", "--no-git", "--registry", registry])
            .args(["--namespace", "me"])
            .args(arguments)
            .current_dir(self.0.path())
            .env_remove("ORCH_FILE")
            .env_remove("ORCH_CA_FILE")
            .env_remove("SSL_CERT_FILE")
            .env("HOME", self.0.path())
            .env("DOCKER_CONFIG", self.0.path())
            .env("ORCH_CACHE", self.0.path().join("cache"))
            .env("NO_PROXY", "*")
            .envs(environment.iter().copied())
            .output()
            .unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    }
}

#[test]
fn a_ca_is_named_in_any_of_four_ways_and_nothing_less_will_do() {
    let (right, wrong) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(right.path(), &bridge());
    certificates(wrong.path(), &bridge());
    let registry = Registry::over_tls(right.path(), &[]);
    let project = Project::new();
    let address = registry.address.as_str();
    let (ca, other) = (right.path().join("ca.pem"), wrong.path().join("ca.pem"));

    for refused in [
        project.ask(address, &[], &[]),
        project.ask(address, &["--ca-file", other.to_str().unwrap()], &[]),
        project.ask(address, &[], &[("SSL_CERT_FILE", &other)]),
    ] {
        let (code, text) = refused;
        assert_eq!(code, 7, "{text}");
        for hint in [
            address,
            "--ca-file",
            "SSL_CERT_FILE",
            &format!("/etc/docker/certs.d/{address}/ca.crt"),
        ] {
            assert!(text.contains(hint), "{hint}: {text}");
        }
        assert!(!text.contains("again in"), "it is not tried again: {text}");
    }
    let (code, text) = project.ask(address, &["--ca-file", "/nonexistent.pem"], &[]);
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("/nonexistent.pem"), "{text}");

    for accepted in [
        project.ask(address, &["--ca-file", ca.to_str().unwrap()], &[]),
        project.ask(address, &[], &[("ORCH_CA_FILE", &ca)]),
        project.ask(address, &[], &[("SSL_CERT_FILE", &ca)]),
    ] {
        assert_eq!(accepted.0, 0, "{}", accepted.1);
    }
    let folder = project
        .0
        .path()
        .join(".config/docker/certs.d")
        .join(address);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(&ca, folder.join("ca.crt")).unwrap();
    let (code, text) = project.ask(address, &[], &[]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_registry_that_wants_a_certificate_of_ours_gets_it() {
    let files = tempfile::tempdir().unwrap();
    certificates(files.path(), &bridge());
    let wants = ["--env", "REGISTRY_HTTP_TLS_CLIENTCAS=[/certs/ca.pem]"];
    let registry = Registry::over_tls(files.path(), &wants);
    let project = Project::new();
    let address = registry.address.as_str();
    let folder = project
        .0
        .path()
        .join(".config/docker/certs.d")
        .join(address);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(files.path().join("ca.pem"), folder.join("ca.crt")).unwrap();
    let (code, text) = project.ask(address, &[], &[]);
    // Its reason may be lost: in TLS 1.3 it comes when the request is on its way already.
    assert_eq!(code, 7, "{text}");
    for (from, to) in [("client.pem", "client.cert"), ("client.key", "client.key")] {
        std::fs::copy(files.path().join(from), folder.join(to)).unwrap();
    }
    let (code, text) = project.ask(address, &[], &[]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn beyond_loopback_plain_http_is_spoken_only_when_asked_for() {
    let registry = Registry::start(&[]);
    let project = Project::new();
    let (code, text) = project.ask(&registry.address, &[], &[]);
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("--plain-http"), "{text}");
    let (code, text) = project.ask(&registry.address, &["--plain-http"], &[]);
    assert_eq!(code, 0, "{text}");
}
