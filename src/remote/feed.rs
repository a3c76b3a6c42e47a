//! A command's input, on its way: bounded in memory, stopped where the node takes in no more, and its channel closed when
//! nobody waits for the command any longer.

use std::time::Duration;

use bytes::Bytes;
use russh::client::{Handle, Msg};
use russh::{ChannelWriteHalf, Sig};
use tokio::io::AsyncReadExt;

use super::command::{Command, Input};
use super::error::Reason;
use super::session::Verifier;

/// Bytes that are handed on at a time.
const PIECE: usize = 64 * 1024;
/// Bytes after which the node is asked whether it has them. The library would take in as many as the node's window has
/// room for, several times over, and keep that memory.
const UNCONFIRMED: usize = 256 * 1024;

/// The writing half of a command's channel.
pub(super) struct Feed<'a> {
    channel: Closing,
    handle: &'a Handle<Verifier>,
    stall: Duration,
}

impl<'a> Feed<'a> {
    pub(super) fn new(
        write: ChannelWriteHalf<Msg>,
        handle: &'a Handle<Verifier>,
        stall: Duration,
    ) -> Self {
        Self {
            channel: Closing(Some(write)),
            handle,
            stall,
        }
    }

    /// Asks for the command. The answer comes with the channel's other messages.
    pub(super) async fn start(&self, line: &str) -> Result<(), Reason> {
        self.channel
            .get()?
            .exec(true, line)
            .await
            .map_err(|_| closed())
    }

    /// Sends what the command reads. That it reads no more of it is its own business.
    pub(super) async fn send(&self, command: &Command) -> Result<(), Reason> {
        let mut unconfirmed = 0;
        if let Some(password) = &command.password {
            self.send_bytes(password.before_input(), &mut unconfirmed)
                .await?;
        }
        match &command.input {
            Input::Bytes(bytes) => self.send_bytes(bytes.clone(), &mut unconfirmed).await?,
            Input::File(path) => {
                let unreadable = |source| Reason::LocalFile {
                    path: path.clone(),
                    source,
                };
                let mut file = tokio::fs::File::open(path).await.map_err(unreadable)?;
                loop {
                    let mut piece = Vec::with_capacity(PIECE);
                    let read = (&mut file).take(PIECE as u64).read_to_end(&mut piece).await;
                    if read.map_err(unreadable)? == 0 {
                        break;
                    }
                    self.send_bytes(piece.into(), &mut unconfirmed).await?;
                }
            }
        }
        // A channel that is gone has an end already.
        let _ = self.channel.get()?.eof().await;
        Ok(())
    }

    async fn send_bytes(&self, mut bytes: Bytes, unconfirmed: &mut usize) -> Result<(), Reason> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE));
            *unconfirmed += piece.len();
            let sending = async {
                // A channel or a session that is gone is told of by the reading half.
                let _ = self.channel.get()?.data_bytes(piece).await;
                if *unconfirmed >= UNCONFIRMED {
                    *unconfirmed = 0;
                    let _ = self.handle.send_ping().await;
                }
                Ok(())
            };
            let sent = tokio::time::timeout(self.stall, sending).await;
            sent.unwrap_or_else(|_| {
                Err(Reason::Silent {
                    what: "it took in nothing of what it was sent".into(),
                    after: self.stall,
                })
            })?;
        }
        Ok(())
    }
}

/// A channel that is closed when it is dropped; the library does not do that.
struct Closing(Option<ChannelWriteHalf<Msg>>);

impl Closing {
    fn get(&self) -> Result<&ChannelWriteHalf<Msg>, Reason> {
        self.0.as_ref().ok_or_else(closed)
    }
}

fn closed() -> Reason {
    Reason::Ended {
        during: "before a command ran".into(),
        why: "its channel is closed".into(),
    }
}

impl Drop for Closing {
    fn drop(&mut self) {
        let (Some(write), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        runtime.spawn(async move {
            // sshd sends signals only where it has a process without privileges for the session, so not to root's commands:
            // those end when they next read or write.
            let _ = write.signal(Sig::TERM).await;
            let _ = write.close().await;
        });
    }
}
