//! What a child writes, line by line as it comes, to its end.

use std::collections::VecDeque;
use std::process::ExitStatus;

use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Child;
use tokio::sync::mpsc;

/// Lines of output that an error keeps.
const LAST_LINES: usize = 20;

/// Which of a program's outputs a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout,
    Stderr,
}

/// What a program left behind.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    /// The end of what it wrote to stdout and stderr.
    pub last_lines: VecDeque<String>,
}

/// Gives each line of a child's outputs, as far as they are pipes, and waits until it has ended.
pub async fn read_lines(
    child: &mut Child,
    mut on_line: impl FnMut(Stream, &str),
) -> std::io::Result<Finished> {
    let (sender, mut receiver) = mpsc::channel(64);
    if let Some(stdout) = child.stdout.take() {
        tokio::spawn(forward(Stream::Stdout, stdout, sender.clone()));
    }
    if let Some(stderr) = child.stderr.take() {
        tokio::spawn(forward(Stream::Stderr, stderr, sender.clone()));
    }
    drop(sender);
    let mut last_lines = VecDeque::with_capacity(LAST_LINES);
    while let Some((stream, line)) = receiver.recv().await {
        on_line(stream, &line);
        if last_lines.len() == LAST_LINES {
            last_lines.pop_front();
        }
        last_lines.push_back(line);
    }
    let status = child.wait().await?;
    Ok(Finished { status, last_lines })
}

async fn forward(
    stream: Stream,
    reader: impl AsyncRead + Unpin,
    sender: mpsc::Sender<(Stream, String)>,
) {
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line).await {
            // One that is cut off has nothing more to say.
            Ok(0) | Err(_) => return,
            Ok(_) => {
                // Not every program writes UTF-8.
                let text = String::from_utf8_lossy(&line);
                let text = text.trim_end_matches(['\n', '\r']).to_owned();
                if sender.send((stream, text)).await.is_err() {
                    return;
                }
            }
        }
    }
}
