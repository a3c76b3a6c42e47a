//! `orch apply`'s command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

/// Apply a stack's manifests and wait until everything runs.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  orch apply                                    every stack of orch.yaml
  orch apply --dry-run                          what would change, asked of the API server
  orch apply --stack movies --timeout 10m
  orch apply --manifests ./k8s --kubeconfig ~/.kube/config
  orch apply --keep redis:7                     what orch.yaml keeps under images.keep needs no digest either
  orch apply --output json | jq .

Exit status:
  0    applied and ready; with --dry-run, planned
  3    a manifest or its Secrets cannot be used
  8    the API server refused an object, or a rollout failed
  130  interrupted; what was applied stays")]
pub struct ApplyArguments {
    /// Only this stack of orch.yaml; may be given several times.
    #[arg(long, value_name = "NAME", conflicts_with = "manifests")]
    pub stack: Vec<String>,
    /// A folder of manifests instead of orch.yaml's stacks.
    #[arg(long, value_name = "FOLDER")]
    pub manifests: Option<PathBuf>,
    /// Namespace of the objects that name none; only with --manifests.
    #[arg(
        long,
        value_name = "NAME",
        requires = "manifests",
        default_value = "default"
    )]
    pub namespace: String,
    /// The cluster to apply to.
    #[arg(
        long,
        value_name = "FILE",
        help = "The cluster to apply to; orch's own when left out"
    )]
    pub kubeconfig: Option<PathBuf>,
    /// Image in manifests that needs no digest, e.g. redis or redis:7; may be given several times. Adds to `images.keep`.
    #[arg(long, value_name = "IMAGE")]
    pub keep: Vec<String>,
    /// Print what would be created and changed; store nothing.
    #[arg(long)]
    pub dry_run: bool,
    /// Take over fields that other tools own.
    #[arg(long)]
    pub force_conflicts: bool,
    /// How long the rollouts may take: 90s, 5m, 1h.
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = parse_duration)]
    pub timeout: Duration,
}

/// A whole number with s, m or h.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let explain = || format!("{text:?} is no duration: write a number and s, m or h, such as 90s");
    let unit = text.chars().last().ok_or_else(explain)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        _ => return Err(explain()),
    };
    let count: u64 = text[..text.len() - unit.len_utf8()]
        .parse()
        .map_err(|_| explain())?;
    match count.checked_mul(seconds) {
        // A day is longer than any rollout, and keeps sums of instants away from their limit.
        Some(total @ 1..=86_400) => Ok(Duration::from_secs(total)),
        _ => Err(format!("{text:?} is out of range: from 1s to 24h")),
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        apply: ApplyArguments,
    }

    #[test]
    fn the_definition_is_consistent() {
        Command::command().debug_assert();
    }

    #[test]
    fn durations_have_a_unit_and_a_limit() {
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse_duration("5m"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_duration("24h"), Ok(Duration::from_secs(86_400)));
        for wrong in [
            "",
            "5",
            "m",
            "-1s",
            "1.5h",
            "0s",
            "25h",
            "5µ",
            "99999999999999999999s",
            "18446744073709551615h",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_folder_excludes_stack_names() {
        assert!(Command::try_parse_from(["apply", "--stack", "a", "--manifests", "b"]).is_err());
        assert!(Command::try_parse_from(["apply", "--namespace", "a"]).is_err());
        let parsed = Command::try_parse_from(["apply", "--manifests", "b"])
            .unwrap()
            .apply;
        assert_eq!(parsed.namespace, "default");
    }
}
