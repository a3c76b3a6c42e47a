//! The stream under a session: TCP, a ProxyCommand, or a channel through a jump host.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use russh::ChannelMsg;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{
    AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, Join, ReadBuf, ReadHalf,
    SimplexStream, WriteHalf,
};
use tokio::net::{TcpSocket, TcpStream};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::task::JoinHandle;

use super::error::Reason;
use super::session::{Session, WINDOW};
use super::ssh_config::Family;
use super::target::{Hop, Limits};

/// What may wait between two sessions, one inside of the other. The inner one's windows bound what can be under way, and
/// sshd opens ten sessions at most, so this is never full; if it were, each session could wait for the other.
const INTO_INNER: usize = 16 * WINDOW as usize;
/// The other way, waiting is what it should do.
const OUT_OF_INNER: usize = 64 * 1024;

/// The inner session's end.
pub(super) type Inner = Join<ReadHalf<SimplexStream>, WriteHalf<SimplexStream>>;

/// Each address of the host in turn.
pub(super) async fn tcp(hop: &Hop, limits: &Limits) -> Result<TcpStream, Reason> {
    let limit = hop.connect_timeout.unwrap_or(limits.connect);
    let lookup = tokio::net::lookup_host((hop.host.as_str(), hop.port));
    let found = tokio::time::timeout(limits.answer, lookup).await;
    let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let no_address = |source| Reason::Lookup {
        host: hop.host.clone(),
        source,
    };
    let addresses: Vec<SocketAddr> = found
        .map_err(no_address)?
        .filter(|found| is_wanted(hop.family, found.ip()))
        .collect();
    if addresses.is_empty() {
        let why = io::Error::other(
            "none of its addresses is of the AddressFamily in ssh's configuration",
        );
        return Err(no_address(why));
    }
    let dialled = first_of(addresses, hop.bind_address, limit).await;
    dialled.map_err(|attempts| Reason::Connect {
        host: hop.host.clone(),
        port: hop.port,
        attempts,
    })
}

/// The first that answers, or what happened at each.
async fn first_of(
    addresses: Vec<SocketAddr>,
    from: Option<IpAddr>,
    limit: Duration,
) -> Result<TcpStream, Vec<String>> {
    let mut attempts = Vec::new();
    for address in addresses {
        match connect(address, from, limit).await {
            Ok(stream) => return Ok(stream),
            Err(error) => attempts.push(format!("{}: {error}", address.ip())),
        }
    }
    Err(attempts)
}

fn is_wanted(family: Family, address: IpAddr) -> bool {
    match family {
        Family::Any => true,
        Family::V4 => address.is_ipv4(),
        Family::V6 => address.is_ipv6(),
    }
}

async fn connect(
    address: SocketAddr,
    from: Option<IpAddr>,
    limit: Duration,
) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    if let Some(from) = from.filter(|from| from.is_ipv4() == address.is_ipv4()) {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    socket.set_nodelay(true)?;
    let connecting = tokio::time::timeout(limit, socket.connect(address));
    connecting.await.unwrap_or_else(|_| {
        let text = format!("no answer within {} s", limit.as_secs());
        Err(io::Error::new(io::ErrorKind::TimedOut, text))
    })
}

/// A stream to `next` through a session with a jump host.
pub(super) async fn through(jump: &Session, next: &Hop, limits: &Limits) -> Result<Inner, Reason> {
    let limit = next
        .connect_timeout
        .unwrap_or(limits.connect)
        .max(limits.answer);
    let opening =
        jump.handle
            .channel_open_direct_tcpip(&next.host, next.port.into(), "127.0.0.1", 0);
    let opened = tokio::time::timeout(limit, opening)
        .await
        .map_err(|_| Reason::Silent {
            what: format!("it did not reach {next}"),
            after: limit,
        })?;
    let channel = opened.map_err(|source| Reason::JumpRefused {
        host: next.host.clone(),
        port: next.port,
        source: Box::new(source),
    })?;
    let (read_by_inner, mut outgoing) = tokio::io::simplex(INTO_INNER);
    let (mut incoming, written_by_inner) = tokio::io::simplex(OUT_OF_INNER);
    let (mut from_jump, to_jump) = channel.split();
    // Reads at all times, also while the inner session only writes: a session that cannot hand on what it has read
    // does not read on, and then hears of no window to write into.
    tokio::spawn(async move {
        while let Some(message) = from_jump.wait().await {
            let written = match message {
                ChannelMsg::Data { data } => outgoing.write_all(&data).await,
                ChannelMsg::Eof | ChannelMsg::Close => break,
                _ => Ok(()),
            };
            if written.is_err() {
                return;
            }
        }
        // The inner session is gone if it does not hear of this.
        let _ = outgoing.shutdown().await;
    });
    tokio::spawn(async move {
        let mut writer = to_jump.make_writer();
        // Either end being gone is the inner session's news, not ours.
        let _ = tokio::io::copy(&mut incoming, &mut writer).await;
        let _ = to_jump.close().await;
    });
    Ok(tokio::io::join(read_by_inner, written_by_inner))
}

/// A program that is the connection. It is killed, with all that it has started, when nobody needs it any more.
pub(super) struct Proxy {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

/// The last line that a program wrote to stderr.
pub(super) struct LastWords {
    text: Arc<Mutex<String>>,
    heard: JoinHandle<()>,
}

impl LastWords {
    /// For a program that is ended: what it said may still be on its way, unless something that it started holds its stderr.
    pub(super) async fn get(self) -> String {
        let _ = tokio::time::timeout(Duration::from_secs(1), self.heard).await;
        self.text
            .lock()
            .map(|text| text.clone())
            .unwrap_or_default()
    }
}

impl Proxy {
    pub(super) fn start(command: &str) -> Result<(Self, LastWords), Reason> {
        let spawn = |source| Reason::ProxySpawn {
            command: command.to_owned(),
            source,
        };
        let shell = std::env::var_os("SHELL").filter(|shell| !shell.is_empty());
        let mut child = tokio::process::Command::new(shell.unwrap_or_else(|| "/bin/sh".into()))
            .arg("-c")
            .arg(format!("exec {command}"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(spawn)?;
        let lost = || spawn(io::ErrorKind::BrokenPipe.into());
        let input = child.stdin.take().ok_or_else(lost)?;
        let output = child.stdout.take().ok_or_else(lost)?;
        let errors = child.stderr.take().ok_or_else(lost)?;
        let text = Arc::new(Mutex::new(String::new()));
        let heard = tokio::spawn(listen(errors, Arc::clone(&text)));
        let proxy = Self {
            child,
            input,
            output,
        };
        Ok((proxy, LastWords { text, heard }))
    }
}

/// Keeps the last line; what is longer than a line of text is cut.
async fn listen(errors: tokio::process::ChildStderr, said: Arc<Mutex<String>>) {
    const LINE: u64 = 4096;
    let mut reader = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut limited = tokio::io::AsyncReadExt::take(&mut reader, LINE);
        match limited.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                let text: String = text
                    .trim_end()
                    .chars()
                    .filter(|c| !c.is_control())
                    .collect();
                if let Ok(mut last) = said.lock()
                    && !text.is_empty()
                {
                    *last = text;
                }
            }
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let id = self.child.id().and_then(|id| i32::try_from(id).ok());
        if let Some(id) = id.and_then(Pid::from_raw) {
            // It may have ended this very moment.
            let _ = kill_process_group(id, Signal::KILL);
        }
    }
}

impl AsyncRead for Proxy {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.output).poll_read(cx, buf)
    }
}

impl AsyncWrite for Proxy {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.input).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.input).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_address_is_tried() {
        let closed = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let open = listener.local_addr().unwrap();
        let limit = Duration::from_secs(30);
        let stream = first_of(vec![closed, open], None, limit).await.unwrap();
        assert_eq!(stream.peer_addr().unwrap(), open);
        let from = Some("127.0.0.9".parse().unwrap());
        let stream = first_of(vec![closed, open], from, limit).await.unwrap();
        assert_eq!(Some(stream.local_addr().unwrap().ip()), from);
        let attempts = first_of(vec![closed, closed], None, limit)
            .await
            .unwrap_err();
        assert_eq!(attempts.len(), 2, "{attempts:?}");
    }
}
