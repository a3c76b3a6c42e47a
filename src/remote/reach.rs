//! One hop: dialled, its host key verified, logged in; again where a server was only busy, or has another kind of key.

use std::io::ErrorKind;
use std::time::Duration;

use russh::keys::Algorithm;

use super::authenticate::authenticate;
use super::dial::{self, Proxy};
use super::error::Reason;
use super::host_keys::HostKeys;
use super::session::{self, Session};
use super::target::{Hop, Limits};

/// A server that many connect to at once turns some of them away (sshd's `MaxStartups`), and a jump host is one.
const ATTEMPTS: u32 = 6;
/// Between the first two; each time longer, and not the same for all who were turned away together.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) async fn reach(
    hop: &Hop,
    via: Option<&Session>,
    limits: &Limits,
) -> Result<Session, Reason> {
    let keys = HostKeys::of(hop).await?;
    let mut refused = None;
    for algorithms in keys.attempts() {
        match open_patiently(hop, via, &keys, algorithms, limits).await {
            Ok(mut session) => {
                authenticate(&mut session, hop, limits).await?;
                return Ok(session);
            }
            // The pinned key may be of another kind.
            Err(reason @ Reason::ChangedHostKey { .. }) => refused = Some(reason),
            Err(reason) if is_other_kind(&reason) => refused = refused.or(Some(reason)),
            Err(reason) => return Err(reason),
        }
    }
    Err(refused.unwrap_or(Reason::Handshake {
        host: hop.to_string(),
        hint: String::new(),
        source: Box::new(russh::Error::KexInit),
    }))
}

async fn open_patiently(
    hop: &Hop,
    via: Option<&Session>,
    keys: &HostKeys,
    algorithms: Vec<Algorithm>,
    limits: &Limits,
) -> Result<Session, Reason> {
    let mut attempt = 1;
    loop {
        let opened = open(hop, via, keys, algorithms.clone(), limits).await;
        match opened {
            Err(reason) if attempt < ATTEMPTS && was_turned_away(&reason) => {
                let pause = PAUSE.saturating_mul(attempt);
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.5))).await;
                attempt += 1;
            }
            opened => return opened,
        }
    }
}

async fn open(
    hop: &Hop,
    via: Option<&Session>,
    keys: &HostKeys,
    algorithms: Vec<Algorithm>,
    limits: &Limits,
) -> Result<Session, Reason> {
    match (via, &hop.proxy_command) {
        (Some(jump), _) => {
            let stream = dial::through(jump, hop, limits).await?;
            session::open(stream, hop, keys, algorithms, limits).await
        }
        (None, None) => {
            let stream = dial::tcp(hop, limits).await?;
            session::open(stream, hop, keys, algorithms, limits).await
        }
        (None, Some(command)) => {
            let (proxy, said) = Proxy::start(command)?;
            let opened = session::open(proxy, hop, keys, algorithms, limits).await;
            match opened {
                Err(reason) => Err(with_hint(reason, said.get().await)),
                opened => opened,
            }
        }
    }
}

/// Whether the connection ended before the server had shown a key. What a ProxyCommand said about it is the better answer.
fn was_turned_away(reason: &Reason) -> bool {
    let Reason::Handshake { source, hint, .. } = reason else {
        return false;
    };
    let closed = match &**source {
        russh::Error::Disconnect | russh::Error::HUP => true,
        russh::Error::IO(error) => matches!(
            error.kind(),
            ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe
        ),
        _ => false,
    };
    closed && hint.is_empty()
}

/// Whether the server has no key of the kind that it was asked for.
fn is_other_kind(reason: &Reason) -> bool {
    matches!(reason, Reason::Handshake { source, .. } if matches!(**source, russh::Error::NoCommonAlgo { .. }))
}

fn with_hint(reason: Reason, said: String) -> Reason {
    match reason {
        Reason::Handshake { host, source, .. } if !said.is_empty() => Reason::Handshake {
            host,
            hint: format!("; the ProxyCommand said: {said}"),
            source,
        },
        other => other,
    }
}
