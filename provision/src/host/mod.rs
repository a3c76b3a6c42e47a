//! What a machine is: its addresses, ports and kernel. Pure readings of other programs' output.

pub(crate) mod cgroups;
pub(crate) mod interfaces;
pub(crate) mod listeners;
pub(crate) mod mounts;
