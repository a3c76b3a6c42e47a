//! What `orch images reproduce` says and with which exit code.

use serde_json::json;

use crate::exit::Exit;
use crate::images::execute::reproduce::Reproduction;

/// Exit code, text and JSON.
pub(super) fn result(found: &[Reproduction]) -> (Exit, String, serde_json::Value) {
    let mut plain = String::new();
    let mut exit = Exit::Success;
    for Reproduction {
        component,
        platform,
        first,
        second,
        differences,
        kept_caches,
    } in found
    {
        if first == second {
            plain.push_str(&format!(
                "{component} {platform}: both builds are {first}\n"
            ));
        } else {
            exit = Exit::NotReproducible;
            plain.push_str(&format!(
                "{component} {platform}: {first} and {second} differ\n"
            ));
        }
        for difference in differences {
            plain.push_str(&format!("  {}\n", difference.describe()));
        }
        if !kept_caches.is_empty() {
            plain.push_str(&format!(
                "  not from nothing: both had what earlier builds left in cache mounts: {}\n",
                kept_caches.join(", ")
            ));
        }
    }
    (exit, plain, json!(found))
}
