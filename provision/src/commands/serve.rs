//! `orch-provision serve`: the join service, in the foreground.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use orch_contract::ExitCode;
use orch_runner::{ExitCoded, StepFailure};
use orch_ssh::keys::{KeyError, read_private_key};
use orch_ssh::server::{JoinService, Limits};
use tokio::net::TcpListener;

use super::{interruptible, load_config};
use crate::cli::ServeArgs;
use crate::join_service::{AuthorizedKeysFile, JournalAudit, TokenMint};
use crate::system::Processes;

/// Why the join service does not run.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the join service's key cannot be used")]
    Key(#[from] KeyError),
    #[error("cannot listen at {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
}

impl ExitCoded for ServeError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Join
    }
}

pub(crate) async fn run(arguments: ServeArgs) -> Result<(), StepFailure> {
    let config = load_config(&arguments.config)?;
    let host_key = read_private_key(&config.join.host_key).map_err(ServeError::Key)?;
    // Every interface: a node's address may come up later than this service does.
    let any = match config.server.address {
        std::net::IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        std::net::IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let address = SocketAddr::new(any, config.server.join_port);
    let listener = TcpListener::bind(address)
        .await
        .map_err(|source| ServeError::Listen { address, source })?;
    let service = JoinService::new(
        host_key,
        Limits::default(),
        Arc::new(TokenMint::new(Processes, &config)),
        Arc::new(AuthorizedKeysFile::new(config.join.authorized_keys.clone())),
        Arc::new(JournalAudit),
    );
    interruptible(async {
        service.run(listener).await;
        Ok(())
    })
    .await
    .or_else(|failure| match failure.exit_code {
        // Being stopped is how a service ends.
        ExitCode::Interrupted => Ok(()),
        _ => Err(failure),
    })
}
