//! A node that was logged in to: commands as root there, and files.

use std::path::Path;

use crate::remote::{self, Command, Connection, Exit, Privilege, Stream};

/// A connection, and how root's rights are had on it.
pub(super) struct Session {
    pub(super) connection: Connection,
    pub(super) privilege: Privilege,
}

impl Session {
    pub(super) async fn close(self) {
        self.connection.close().await;
    }

    pub(super) async fn upload(
        &self,
        file: &Path,
        sha256: &str,
        to: &str,
        mode: u32,
    ) -> Result<(), remote::RemoteError> {
        self.connection
            .upload_if_changed(&self.privilege, file, sha256, to, mode)
            .await
            .map(drop)
    }

    /// Gives each line as it comes; for commands that may take long.
    pub(super) async fn stream(
        &self,
        command: Command,
        on_line: impl FnMut(Stream, &str) + Send,
    ) -> Result<Exit, remote::RemoteError> {
        let command = command.as_root(&self.privilege);
        self.connection.stream(&command, on_line).await
    }

    pub(super) async fn succeed(
        &self,
        command: Command,
    ) -> Result<remote::Output, remote::RemoteError> {
        let command = command.as_root(&self.privilege);
        self.connection.succeed(&command).await
    }
}
