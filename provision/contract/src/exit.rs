//! Exit codes of `orch-provision`: what the host may decide on without reading text.

/// How `orch-provision` ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Everything is as the configuration says.
    Success = 0,
    /// A failure that none of the codes below names.
    Failure = 1,
    /// `plan` and other dry runs: something would be changed, and nothing was.
    Changes = 2,
    /// The configuration file is missing, unreadable or invalid.
    Config = 3,
    /// The machine cannot be a node: not root, a taken port, no disk, a wrong clock.
    Host = 4,
    /// K3s could not be had, or its checksum is wrong; nothing was installed.
    Acquire = 5,
    /// The join was refused or the join service could not be reached in time.
    Join = 6,
    /// K3s does not start; the journal's cause has been reported.
    Start = 7,
    /// K3s runs but the node did not become ready in time.
    NotReady = 8,
    /// The command line is wrong (EX_USAGE of sysexits.h; 2, which clap would use, says `Changes`).
    Usage = 64,
    /// Interrupted by SIGINT or SIGTERM (128 + SIGINT, as a shell reports it).
    Interrupted = 130,
}

impl ExitCode {
    pub const ALL: [ExitCode; 11] = [
        ExitCode::Success,
        ExitCode::Failure,
        ExitCode::Changes,
        ExitCode::Config,
        ExitCode::Host,
        ExitCode::Acquire,
        ExitCode::Join,
        ExitCode::Start,
        ExitCode::NotReady,
        ExitCode::Usage,
        ExitCode::Interrupted,
    ];

    pub const fn code(self) -> u8 {
        self as u8
    }

    /// The meaning of a process's exit status, where it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|exit| i32::from(exit.code()) == code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_its_own_inverse() {
        for exit in ExitCode::ALL {
            assert_eq!(ExitCode::from_code(i32::from(exit.code())), Some(exit));
        }
        assert_eq!(ExitCode::from_code(99), None);
    }
}
