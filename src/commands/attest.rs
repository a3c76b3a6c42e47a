//! `orch images attest`, `sbom` and `verify`: settings from options, results in both formats.

use serde_json::json;

use super::images_exit::coded;
use super::images_text::Text;
use crate::cli::attest::{AttestArgs, AttestOptions, VerifyArgs};
use crate::cli::images::ImagesCommand;
use crate::exit::{Exit, WithExit as _};
use crate::images::attest::key::{KeyFile, PublicKey};
use crate::images::attest::{Attest, AttestError};
use crate::images::execute::{Pipeline, Verdict};

/// What this command attaches. `configured` is what orch.yaml says of every push.
pub(super) fn wanted(configured: Attest, command: &ImagesCommand) -> anyhow::Result<Attest> {
    match command {
        ImagesCommand::Push(push) => Ok(Attest {
            sbom: push.attest.sbom.unwrap_or(configured.sbom),
            provenance: push.attest.provenance.unwrap_or(configured.provenance),
            key: key(&push.attest, configured.key),
        }),
        ImagesCommand::Attest(arguments) => only(configured, arguments),
        _ => Ok(configured),
    }
}

/// Exactly what the options name; without any, what orch.yaml names; without that, both documents.
fn only(configured: Attest, arguments: &AttestArgs) -> anyhow::Result<Attest> {
    let AttestArgs { options, sign, .. } = arguments;
    // Only --sign or no option at all bring orch.yaml's key in.
    let named = [options.sbom, options.provenance].contains(&Some(true));
    let all = !named && !*sign;
    let key = key(options, configured.key.filter(|_| *sign || all));
    if *sign && key.is_none() {
        let missing = anyhow::anyhow!("name a private key with --key");
        return Err(missing).exit(Exit::Usage, "signing images");
    }
    let documents = !configured.sbom && !configured.provenance;
    Ok(Attest {
        sbom: (options.sbom).unwrap_or(all && (documents || configured.sbom)),
        provenance: (options.provenance).unwrap_or(all && (documents || configured.provenance)),
        key,
    })
}

/// The key of the options, otherwise that of orch.yaml; either with the password that the options name.
fn key(options: &AttestOptions, configured: Option<KeyFile>) -> Option<KeyFile> {
    let given = options.key.clone().map(|path| KeyFile {
        path,
        password_file: None,
    });
    let configured = configured.filter(|_| !options.no_key);
    given.or(configured).map(|key| KeyFile {
        password_file: options.password_file.clone().or(key.password_file),
        path: key.path,
    })
}

/// `orch images attest`.
pub(super) async fn attest(pipeline: Pipeline) -> anyhow::Result<(Exit, Text)> {
    let attested = coded(pipeline.attest().await)?;
    let line = |attested: &crate::images::execute::Attested| {
        let documents = attested
            .sbom
            .iter()
            .map(|digest| format!("  sbom        {digest}\n"))
            .chain(
                attested
                    .provenance
                    .iter()
                    .map(|digest| format!("  provenance  {digest}\n")),
            )
            .chain(attested.signed.then(|| "  signed\n".to_owned()));
        format!("{}\n{}", attested.reference, documents.collect::<String>())
    };
    let plain = attested.values().map(line).collect();
    let json = json!(attested);
    Ok((Exit::Success, Text { plain, json }))
}

/// `orch images sbom`.
pub(super) async fn sbom(pipeline: Pipeline, name: &str) -> anyhow::Result<(Exit, Text)> {
    let documents = coded(pipeline.sbom(name).await)?;
    let plain = documents
        .iter()
        .map(|bytes| String::from_utf8_lossy(bytes))
        .collect();
    let parsed: Result<Vec<serde_json::Value>, _> = documents
        .iter()
        .map(|bytes| serde_json::from_slice(bytes))
        .collect();
    let mut parsed = parsed.exit(Exit::Unexpected, "reading a list of packages again")?;
    // One document for an image of one platform, a list for others.
    let json = if parsed.len() == 1 {
        parsed.remove(0)
    } else {
        json!(parsed)
    };
    Ok((Exit::Success, Text { plain, json }))
}

/// `orch images verify`.
pub(super) async fn verify(
    pipeline: Pipeline,
    arguments: &VerifyArgs,
) -> anyhow::Result<(Exit, Text)> {
    let key = PublicKey::read(&arguments.key).map_err(AttestError::from);
    let key = coded(key.map_err(Into::into))?;
    let verified = coded(pipeline.verify(&key).await)?;
    let by = arguments.key.display();
    let line = |verified: &crate::images::execute::Verified| {
        let verdict = match verified.verdict {
            Verdict::Signed => format!("signed by {by}"),
            Verdict::OtherKey => format!("NOT signed by {by}, but by another key"),
            Verdict::Unsigned => {
                "NOT signed: run `orch images attest --sign --key FILE`".to_owned()
            }
        };
        format!("{}: {verdict}\n", verified.reference)
    };
    let all = verified
        .iter()
        .all(|verified| verified.verdict == Verdict::Signed);
    let plain = verified.iter().map(line).collect();
    let json = json!(verified);
    let exit = if all { Exit::Success } else { Exit::Unsigned };
    Ok((exit, Text { plain, json }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(sbom: bool, provenance: bool, sign: bool, key: Option<&str>) -> AttestArgs {
        AttestArgs {
            names: Vec::new(),
            options: AttestOptions {
                sbom: sbom.then_some(true),
                provenance: provenance.then_some(true),
                key: key.map(Into::into),
                no_key: false,
                password_file: None,
            },
            sign,
        }
    }

    fn configured(sbom: bool, key: Option<&str>) -> Attest {
        Attest {
            sbom,
            provenance: false,
            key: key.map(|path| KeyFile {
                path: path.into(),
                password_file: None,
            }),
        }
    }

    /// List of packages, provenance, key.
    fn wanted_of(configured: Attest, arguments: &AttestArgs) -> (bool, bool, Option<String>) {
        let wanted = only(configured, arguments).unwrap();
        let key = wanted.key.map(|key| key.path.display().to_string());
        (wanted.sbom, wanted.provenance, key)
    }

    #[test]
    fn options_say_what_is_attached_and_orch_yaml_what_nobody_says() {
        let none = arguments(false, false, false, None);
        let key = || Some("k".to_owned());
        assert_eq!(
            wanted_of(configured(false, None), &none),
            (true, true, None)
        );
        assert_eq!(
            wanted_of(configured(true, Some("k")), &none),
            (true, false, key())
        );
        let sign = arguments(false, false, true, Some("k"));
        assert_eq!(
            wanted_of(configured(true, None), &sign),
            (false, false, key())
        );
        let sign = arguments(false, false, true, None);
        assert_eq!(
            wanted_of(configured(true, Some("k")), &sign),
            (false, false, key())
        );
        assert!(only(configured(true, None), &sign).is_err());
        let sbom = arguments(true, false, false, None);
        assert_eq!(
            wanted_of(configured(false, Some("k")), &sbom),
            (true, false, None)
        );
    }
    #[test]
    fn options_take_back_what_orch_yaml_says() {
        let mut none = arguments(false, false, false, None);
        none.options.no_key = true;
        assert_eq!(
            wanted_of(configured(true, Some("k")), &none),
            (true, false, None)
        );
        none.options.sbom = Some(false);
        assert_eq!(
            wanted_of(configured(true, Some("k")), &none),
            (false, false, None)
        );
        let mut other = arguments(false, false, false, Some("other"));
        other.options.sbom = Some(false);
        assert_eq!(
            wanted_of(configured(true, Some("k")), &other),
            (false, false, Some("other".to_owned()))
        );
    }
}
