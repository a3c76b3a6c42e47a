//! A stream that ends when whoever needed it is gone, also in the middle of a handshake, which the library would go on with.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot::{self, Receiver, Sender};

/// Kept by whoever needs the stream.
pub(super) struct Leash {
    /// That it is dropped is all it says.
    _end: Sender<()>,
}

pub(super) struct Leashed<S> {
    stream: S,
    held: Option<Receiver<()>>,
}

pub(super) fn leash<S>(stream: S) -> (Leash, Leashed<S>) {
    let (sender, receiver) = oneshot::channel();
    let held = Some(receiver);
    (Leash { _end: sender }, Leashed { stream, held })
}

impl<S> Leashed<S> {
    fn is_held(&mut self, cx: &mut Context<'_>) -> bool {
        // Nothing is ever sent: it is ready when the other end is dropped.
        let gone = self
            .held
            .as_mut()
            .is_some_and(|held| Pin::new(held).poll(cx).is_ready());
        if gone {
            self.held = None;
        }
        self.held.is_some()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Leashed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.is_held(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Leashed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        // One task polls both halves, so it does not matter which of them it is woken for.
        if !self.is_held(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
