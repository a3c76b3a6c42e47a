//! `orch-provision serve`: the join service, in the foreground.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use orch_contract::ExitCode;
use orch_runner::{ExitCoded, StepFailure};
use orch_ssh::keys::KeyError;
use orch_ssh::server::{Audit, JoinService, Limits, SummedAudit};
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

use super::{interruptible, load_config};
use crate::cli::ServeArgs;
use crate::join_service::{JournalAudit, KeyFiles, SharedMint, ThisMachine, TokenMint};
use crate::system::Processes;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 128;

/// Why the join service does not run.
#[derive(Debug, thiserror::Error)]
enum ServeError {
    #[error("the join service's key cannot be used")]
    Key(#[from] KeyError),
    #[error("cannot listen at {address}")]
    Listen {
        address: SocketAddr,
        source: io::Error,
    },
}

impl ExitCoded for ServeError {
    fn exit_code(&self) -> ExitCode {
        ExitCode::Join
    }
}

pub(crate) async fn run(arguments: ServeArgs) -> Result<(), StepFailure> {
    let config = load_config(&arguments.config)?;
    let keys = KeyFiles::new(&config.join).map_err(ServeError::Key)?;
    let listener = listen(config.own_server().join_port)?;
    let audit: Arc<dyn Audit> = Arc::new(SummedAudit::new(JournalAudit));
    let mint = Arc::new(TokenMint::new(Processes, &config, Arc::clone(&audit)));
    let service = JoinService::new(
        Limits::default(),
        Arc::new(SharedMint(Arc::clone(&mint))),
        Arc::new(ThisMachine::default()),
        Arc::new(keys),
        audit,
    );
    interruptible(async {
        tokio::join!(service.run(listener), mint.look_after());
        Ok(())
    })
    .await
    .or_else(|failure| match failure.exit_code {
        // Being stopped is how a service ends.
        ExitCode::Interrupted => Ok(()),
        _ => Err(failure),
    })
}

/// Every interface, because a node's address may come up later than this service does; both families
/// on one socket, or IPv4 alone where the kernel has no other.
fn listen(port: u16) -> Result<TcpListener, ServeError> {
    let failed = |address: SocketAddr| move |source| ServeError::Listen { address, source };
    let both = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match TcpSocket::new_v6() {
        Ok(socket) => set_ipv6_v6only(&socket, false)
            .map_err(io::Error::from)
            .and_then(|()| bind(socket, both))
            .map_err(failed(both)),
        Err(_) => {
            let ipv4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            TcpSocket::new_v4()
                .and_then(|socket| bind(socket, ipv4))
                .map_err(failed(ipv4))
        }
    }
}

fn bind(socket: TcpSocket, address: SocketAddr) -> io::Result<TcpListener> {
    // A restart finds the connections of the service before it still closing.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}
