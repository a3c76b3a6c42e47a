//! New keys for a cluster, without a moment in which a node could not join.
//!
//! | stage | on the host | after its files have reached all nodes |
//! |---|---|---|
//! | introduce | new keys lie beside the old, `*.next`; both are on the lists | everybody accepts both |
//! | switch | the new keys have taken the old ones' place; both are on the lists | everybody shows the new ones |
//! | retire | only the new ones are on the lists | nobody accepts the old ones |
//!
//! Between two stages the caller brings every node its files, as it always does, and has that
//! confirmed. Which stage it is stands in one file, replaced whole; what a stage means for the files
//! is [`ensure_cluster_keys`](super::ensure_cluster_keys)' business, which can be cut off anywhere
//! and run again, by a rotation or by any other command.

use std::collections::BTreeSet;
use std::io;

use orch_contract::{ClusterKeys, NodeName};
use serde::{Deserialize, Serialize};

use super::cluster::{Roster, settle};
use super::store::{Disk, Store};
use super::{KeyError, read_bounded};

const SCHEMA: u32 = 1;

/// How far a rotation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Introduce,
    Switch,
    Retire,
}

impl Stage {
    const fn next(self) -> Option<Self> {
        match self {
            Stage::Introduce => Some(Stage::Switch),
            Stage::Switch => Some(Stage::Retire),
            Stage::Retire => None,
        }
    }
}

/// A rotation that is under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rotation {
    schema: u32,
    pub stage: Stage,
    /// Whether the join service and the host's operator get new keys.
    pub host: bool,
    /// The nodes that get a new key.
    pub nodes: BTreeSet<NodeName>,
}

/// The rotation that is under way, if there is one.
pub fn read_rotation(layout: &ClusterKeys) -> Result<Option<Rotation>, KeyError> {
    let path = layout.rotation();
    let text = match read_bounded(&path) {
        Ok(text) => text,
        Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    match serde_json::from_str::<Rotation>(&text) {
        Ok(rotation) if rotation.schema == SCHEMA => Ok(Some(rotation)),
        Ok(rotation) => Err(KeyError::RotationSchema {
            path,
            schema: rotation.schema,
        }),
        Err(source) => Err(KeyError::Rotation { path, source }),
    }
}

/// Begins to give the nodes in `of` new keys, and if `host` the join service and the operator. `nodes` are all of the
/// cluster. If a rotation is under way, that one is resumed, and what it was begun for counts.
pub fn begin_rotation<'a>(
    layout: &ClusterKeys,
    nodes: impl Into<Roster<'a>>,
    host: bool,
    of: &[NodeName],
) -> Result<Rotation, KeyError> {
    begin(layout, nodes, host, of, &Disk)
}

/// Goes on to the next stage; None: the rotation is over. To be called only when every node has the
/// files of the stage before.
pub fn advance_rotation<'a>(
    layout: &ClusterKeys,
    nodes: impl Into<Roster<'a>>,
) -> Result<Option<Rotation>, KeyError> {
    advance(layout, nodes, &Disk)
}

fn begin<'a>(
    layout: &ClusterKeys,
    nodes: impl Into<Roster<'a>>,
    host: bool,
    of: &[NodeName],
    store: &dyn Store,
) -> Result<Rotation, KeyError> {
    let rotation = match read_rotation(layout)? {
        Some(rotation) => rotation,
        None => {
            store.make_directory(layout.directory())?;
            let rotation = Rotation {
                schema: SCHEMA,
                stage: Stage::Introduce,
                host,
                nodes: of.iter().cloned().collect(),
            };
            record(layout, &rotation, store)?;
            rotation
        }
    };
    settle(layout, nodes, store)?;
    Ok(rotation)
}

fn advance<'a>(
    layout: &ClusterKeys,
    nodes: impl Into<Roster<'a>>,
    store: &dyn Store,
) -> Result<Option<Rotation>, KeyError> {
    let nodes: Roster<'_> = nodes.into();
    // A stage that was cut off is finished before the next one begins.
    settle(layout, nodes, store)?;
    let Some(mut rotation) = read_rotation(layout)? else {
        return Ok(None);
    };
    let Some(stage) = rotation.stage.next() else {
        store.remove(&layout.rotation())?;
        return Ok(None);
    };
    rotation.stage = stage;
    record(layout, &rotation, store)?;
    settle(layout, nodes, store)?;
    Ok(Some(rotation))
}

fn record(layout: &ClusterKeys, rotation: &Rotation, store: &dyn Store) -> Result<(), KeyError> {
    let path = layout.rotation();
    match serde_json::to_vec(rotation) {
        Ok(json) => store.write(&path, &json),
        Err(source) => Err(KeyError::Rotation { path, source }),
    }
}

#[cfg(test)]
mod tests;
