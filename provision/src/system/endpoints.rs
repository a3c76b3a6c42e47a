//! Local endpoints: whether a port answers, and what a health check says.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const TIMEOUT: Duration = Duration::from_secs(3);
const MAX_ANSWER_BYTES: u64 = 4096;

/// Asks endpoints of this machine.
#[async_trait]
pub(crate) trait Endpoints: Send + Sync {
    /// The status line of a plain HTTP GET.
    async fn http_status(&self, address: SocketAddr, path: &str) -> io::Result<String>;
}

/// Real sockets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sockets;

#[async_trait]
impl Endpoints for Sockets {
    async fn http_status(&self, address: SocketAddr, path: &str) -> io::Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(address).await?;
            let request = format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n");
            stream.write_all(request.as_bytes()).await?;
            let mut answer = Vec::new();
            stream
                .take(MAX_ANSWER_BYTES)
                .read_to_end(&mut answer)
                .await?;
            let answer = String::from_utf8_lossy(&answer);
            let status = answer.lines().next().unwrap_or_default();
            let (_, status) = status.split_once(' ').unwrap_or_default();
            Ok(status.to_owned())
        };
        tokio::time::timeout(TIMEOUT, exchange)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

#[cfg(test)]
pub(crate) use fake::FakeEndpoints;

#[cfg(test)]
mod fake {
    use std::sync::Mutex;

    use super::*;

    /// Answers everything alike; nothing listens until an answer is set.
    #[derive(Debug, Default)]
    pub(crate) struct FakeEndpoints {
        pub(crate) status: Mutex<Option<String>>,
    }

    #[async_trait]
    impl Endpoints for FakeEndpoints {
        async fn http_status(&self, _: SocketAddr, _: &str) -> io::Result<String> {
            let status = self.status.lock().unwrap().clone();
            status.ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_status_is_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serve = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            request.truncate(length);
            stream
                .write_all(b"HTTP/1.0 200 OK\r\n\r\nok")
                .await
                .unwrap();
            request
        };
        let (status, request) = tokio::join!(Sockets.http_status(address, "/healthz"), serve);
        assert_eq!(status.unwrap(), "200 OK");
        assert!(request.starts_with(b"GET /healthz HTTP/1.0\r\n"));
    }
}
