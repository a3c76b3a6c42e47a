//! What the running services were started with: the one thing that cannot be observed.

use std::collections::BTreeMap;
use std::path::Path;

use orch_contract::node_paths;
use serde::{Deserialize, Serialize};

use crate::system::{FileError, Files};

/// Digests by input, by service.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Applied {
    #[serde(default)]
    services: BTreeMap<String, Inputs>,
}

/// SHA-256 by input: a path, or another name.
pub(crate) type Inputs = BTreeMap<String, String>;

/// What a service is started with, as a step leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Prepared {
    pub(crate) inputs: Inputs,
    /// Those that were something else when the step looked: a service that runs may have read that.
    pub(crate) changed: Vec<String>,
}

impl Applied {
    /// A record that is missing or damaged knows nothing, which costs a restart and no more.
    pub(crate) fn load(files: &dyn Files) -> Result<Self, FileError> {
        Ok(files
            .read(Path::new(node_paths::APPLIED))?
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default())
    }

    pub(crate) fn services(&self) -> &BTreeMap<String, Inputs> {
        &self.services
    }

    /// The inputs that are not what the service was started with; None if it is not known.
    pub(crate) fn changed(&self, unit: &str, inputs: &Inputs) -> Option<Vec<String>> {
        let known = self.services.get(unit)?;
        let mut changed: Vec<String> = known
            .keys()
            .chain(inputs.keys())
            .filter(|name| known.get(*name) != inputs.get(*name))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        Some(changed)
    }

    /// Takes inputs out of the record, before they are put right: a run that is cut off in between leaves a service that
    /// the next run knows to have read something else.
    pub(crate) fn forget(
        files: &dyn Files,
        unit: &str,
        changed: &[String],
    ) -> Result<(), FileError> {
        let mut applied = Self::load(files)?;
        let Some(known) = applied.services.get_mut(unit) else {
            return Ok(());
        };
        let before = known.len();
        known.retain(|name, _| !changed.contains(name));
        if known.len() == before {
            return Ok(());
        }
        applied.store(files)
    }

    pub(crate) fn record(files: &dyn Files, unit: &str, inputs: &Inputs) -> Result<(), FileError> {
        let mut applied = Self::load(files)?;
        applied.services.insert(unit.to_owned(), inputs.clone());
        applied.store(files)
    }

    fn store(&self, files: &dyn Files) -> Result<(), FileError> {
        // Maps of strings always serialise; an empty record would only cost a restart.
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        files.write(Path::new(node_paths::APPLIED), text.as_bytes(), 0o600)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::MemoryFiles;

    fn inputs(pairs: &[(&str, &str)]) -> Inputs {
        pairs
            .iter()
            .map(|(name, sum)| ((*name).to_owned(), (*sum).to_owned()))
            .collect()
    }

    #[test]
    fn changes_are_named_and_services_kept_apart() {
        let files = MemoryFiles::default();
        Applied::record(&files, "a", &inputs(&[("x", "1"), ("y", "2")])).unwrap();
        Applied::record(&files, "b", &inputs(&[("x", "9")])).unwrap();
        let applied = Applied::load(&files).unwrap();
        assert_eq!(
            applied.changed("a", &inputs(&[("x", "1"), ("z", "3")])),
            Some(vec!["y".to_owned(), "z".to_owned()])
        );
        assert_eq!(applied.changed("b", &inputs(&[("x", "9")])), Some(vec![]));
        assert_eq!(applied.changed("c", &Inputs::new()), None);
    }

    #[test]
    fn what_is_forgotten_counts_as_changed() {
        let files = MemoryFiles::default();
        let known = inputs(&[("x", "1"), ("y", "2")]);
        Applied::record(&files, "a", &known).unwrap();
        files.take_writes();
        Applied::forget(&files, "a", &["z".to_owned()]).unwrap();
        Applied::forget(&files, "b", &["x".to_owned()]).unwrap();
        assert!(files.take_writes().is_empty());
        Applied::forget(&files, "a", &["x".to_owned()]).unwrap();
        let applied = Applied::load(&files).unwrap();
        assert_eq!(applied.changed("a", &known), Some(vec!["x".to_owned()]));
    }

    #[test]
    fn a_damaged_record_knows_nothing() {
        let files = MemoryFiles::with(&[("/var/lib/orch/applied.json", "{\"serv")]);
        assert_eq!(Applied::load(&files).unwrap(), Applied::default());
    }
}
