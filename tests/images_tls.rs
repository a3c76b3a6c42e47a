//! TLS to the real registry: whose certificates are trusted, what a refusal says, and where plain HTTP is spoken.
//!
//! The registry listens on the bridge's address, because loopback is spoken to in the clear.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test that cannot go on has failed"
)]

mod images_project;
mod images_registry;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use images_project::{Project, said};
use images_registry::{RealRegistry, docker};
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

fn bridge() -> String {
    let format = "{{(index .IPAM.Config 0).Gateway}}";
    docker(&["network", "inspect", "bridge", "--format", format])
}

fn over_tls(certificates: &Path, options: &[&str]) -> RealRegistry {
    let volume = format!("{}:/certs:ro", certificates.display());
    let tls = [
        "--volume",
        &volume,
        "--env",
        "REGISTRY_HTTP_TLS_CERTIFICATE=/certs/server.pem",
        "--env",
        "REGISTRY_HTTP_TLS_KEY=/certs/server.key",
    ];
    RealRegistry::start_on(&bridge(), &[&tls, options].concat())
}

/// Lists the registry's tags, which takes one connection.
fn ask(
    project: &Project,
    registry: &str,
    arguments: &[&str],
    environment: &[(&str, &Path)],
) -> (i32, String) {
    let output = project
        .orch(&["images", "gc", "--no-git", "--registry", registry])
        .args(["--namespace", "me"])
        .args(arguments)
        .env("HOME", project.path())
        .env("NO_PROXY", "*")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    (output.status.code().unwrap(), said(&output))
}

#[test]
fn a_ca_is_named_in_any_of_four_ways_and_nothing_less_will_do() {
    let (right, wrong) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    certificates(right.path(), &bridge());
    certificates(wrong.path(), &bridge());
    let registry = over_tls(right.path(), &[]);
    let project = Project::of_one_component();
    let address = registry.address.as_str();
    let (ca, other) = (right.path().join("ca.pem"), wrong.path().join("ca.pem"));

    for refused in [
        ask(&project, address, &[], &[]),
        ask(
            &project,
            address,
            &["--ca-file", other.to_str().unwrap()],
            &[],
        ),
        ask(&project, address, &[], &[("SSL_CERT_FILE", &other)]),
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
    let (code, text) = ask(&project, address, &["--ca-file", "/nonexistent.pem"], &[]);
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("/nonexistent.pem"), "{text}");

    for accepted in [
        ask(&project, address, &["--ca-file", ca.to_str().unwrap()], &[]),
        ask(&project, address, &[], &[("ORCH_CA_FILE", &ca)]),
        ask(&project, address, &[], &[("SSL_CERT_FILE", &ca)]),
    ] {
        assert_eq!(accepted.0, 0, "{}", accepted.1);
    }
    let folder = project.path().join(".config/docker/certs.d").join(address);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(&ca, folder.join("ca.crt")).unwrap();
    let (code, text) = ask(&project, address, &[], &[]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn a_registry_that_wants_a_certificate_of_ours_gets_it() {
    let files = tempfile::tempdir().unwrap();
    certificates(files.path(), &bridge());
    let wants = ["--env", "REGISTRY_HTTP_TLS_CLIENTCAS=[/certs/ca.pem]"];
    let registry = over_tls(files.path(), &wants);
    let project = Project::of_one_component();
    let address = registry.address.as_str();
    let folder = project.path().join(".config/docker/certs.d").join(address);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(files.path().join("ca.pem"), folder.join("ca.crt")).unwrap();
    let (code, text) = ask(&project, address, &[], &[]);
    // Its reason may be lost: in TLS 1.3 it comes when the request is on its way already.
    assert_eq!(code, 7, "{text}");
    for (from, to) in [("client.pem", "client.cert"), ("client.key", "client.key")] {
        std::fs::copy(files.path().join(from), folder.join(to)).unwrap();
    }
    let (code, text) = ask(&project, address, &[], &[]);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn beyond_loopback_plain_http_is_spoken_only_when_asked_for() {
    let registry = RealRegistry::start_on(&bridge(), &[]);
    let project = Project::of_one_component();
    let (code, text) = ask(&project, &registry.address, &[], &[]);
    assert_eq!(code, 7, "{text}");
    assert!(text.contains("--plain-http"), "{text}");
    let (code, text) = ask(&project, &registry.address, &["--plain-http"], &[]);
    assert_eq!(code, 0, "{text}");
}
