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
    } in found
    {
        if first == second {
            let line = format!("{component} {platform}: both builds are {first}\n");
            plain.push_str(&line);
            continue;
        }
        exit = Exit::NotReproducible;
        let line = format!("{component} {platform}: {first} and {second} differ\n");
        plain.push_str(&line);
        for difference in differences {
            plain.push_str(&format!("  {}\n", difference.describe()));
        }
    }
    (exit, plain, json!(found))
}
