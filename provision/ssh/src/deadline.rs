//! A byte stream that ends: at a deadline, or after too many bytes.
//!
//! The SSH library has idle limits but none on a connection's whole life. Enforcing it on the
//! stream below it holds whatever state the library is in.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A moment that can be moved while the stream is in use.
#[derive(Debug, Clone)]
pub(crate) struct Deadline(Arc<Mutex<Instant>>);

impl Deadline {
    pub(crate) fn after(duration: Duration) -> Self {
        Self(Arc::new(Mutex::new(Instant::now() + duration)))
    }

    pub(crate) fn move_to(&self, duration: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now() + duration;
    }

    fn at(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fails reads and writes past the deadline, and reads past `remaining` bytes.
pub(crate) struct LimitedStream<S> {
    inner: S,
    deadline: Deadline,
    timer: Pin<Box<Sleep>>,
    remaining: u64,
}

impl<S> LimitedStream<S> {
    pub(crate) fn new(inner: S, deadline: Deadline, max_read_bytes: u64) -> Self {
        let timer = Box::pin(sleep_until(deadline.at()));
        Self {
            inner,
            deadline,
            timer,
            remaining: max_read_bytes,
        }
    }

    fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        while self.timer.as_mut().poll(context).is_ready() {
            let at = self.deadline.at();
            if at <= Instant::now() {
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(at);
        }
        Poll::Pending
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for LimitedStream<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.poll_expired(context) {
            return Poll::Ready(Err(error));
        }
        let before = buffer.filled().len();
        match Pin::new(&mut this.inner).poll_read(context, buffer) {
            Poll::Ready(Ok(())) => {
                let read = (buffer.filled().len() - before) as u64;
                match this.remaining.checked_sub(read) {
                    Some(remaining) => {
                        this.remaining = remaining;
                        Poll::Ready(Ok(()))
                    }
                    None => Poll::Ready(Err(io::Error::other("the peer sent too much"))),
                }
            }
            other => other,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for LimitedStream<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.poll_expired(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.inner).poll_write(context, data)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(error) = this.poll_expired(context) {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut this.inner).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_silent_peer_is_cut_off_at_the_deadline() {
        let (mine, _theirs) = duplex(64);
        let deadline = Deadline::after(Duration::from_millis(20));
        let mut stream = LimitedStream::new(mine, deadline, 1000);
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_deadline_that_was_moved_counts() {
        let (mine, mut theirs) = duplex(64);
        let deadline = Deadline::after(Duration::from_millis(20));
        let mut stream = LimitedStream::new(mine, deadline.clone(), 1000);
        deadline.move_to(Duration::from_secs(3600));
        let write = async {
            tokio::time::sleep(Duration::from_millis(60)).await;
            theirs.write_all(b"x").await.unwrap();
        };
        let (read, ()) = tokio::join!(stream.read_u8(), write);
        assert_eq!(read.unwrap(), b'x');
    }

    #[tokio::test]
    async fn a_peer_that_sends_too_much_is_cut_off() {
        let (mine, mut theirs) = duplex(64);
        let mut stream = LimitedStream::new(mine, Deadline::after(Duration::from_secs(3600)), 10);
        theirs.write_all(&[0; 11]).await.unwrap();
        assert!(stream.read_exact(&mut [0; 11]).await.is_err());
    }
}
