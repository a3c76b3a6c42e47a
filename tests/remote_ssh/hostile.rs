//! Servers that do not behave: every answer is an error with a reason, none a panic, and none gets what it was not given.

use std::io::Write;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use orch::remote::{
    Command, Connection, Environment, HostKeyPin, Limits, Reason, Wanted, connect, resolve_in,
};
use russh::keys::{Algorithm, HashAlg, PrivateKey};
use russh::server::{
    Auth, ChannelOpenHandle, Config, Handle, Handler, Msg, Session, VerifiedPublicKey,
};
use russh::{Channel, ChannelId, Disconnect};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::support::{Server, run};

/// How it answers to a command.
#[derive(Debug, Clone, Copy)]
enum Manner {
    /// The channel is closed, and nothing is said of how the command ended.
    NoStatus,
    /// The request is refused.
    Refuses,
    /// Nothing at all.
    Silent,
    /// The session ends, with something for the terminal.
    Disconnects,
    /// Numbers and names that nobody knows.
    Strange,
    /// Success before and after the end, data behind it.
    Babbles,
    /// It asks for channels of its own.
    AsksBack,
}

struct Rude {
    manner: Manner,
    asked_back: UnboundedSender<Vec<&'static str>>,
}

impl Handler for Rude {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: VerifiedPublicKey<'_>,
    ) -> Result<Auth, russh::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), russh::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        channel: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), russh::Error> {
        match self.manner {
            Manner::NoStatus => {
                session.channel_success(channel)?;
                session.data(channel, "half an answer")?;
                session.close(channel)
            }
            Manner::Refuses => session.channel_failure(channel),
            Manner::Silent => Ok(()),
            Manner::Disconnects => {
                session.disconnect(Disconnect::ByApplication, "\u{1b}[31mgo\naway", "en")
            }
            Manner::Strange => {
                session.channel_success(channel)?;
                session.extended_data(channel, 77, "neither stdout nor stderr")?;
                session.exit_signal_request(
                    channel,
                    russh::Sig::Custom("\u{1b}]0;USR9".into()),
                    false,
                    "",
                    "",
                )?;
                session.close(channel)
            }
            Manner::Babbles => {
                session.channel_success(channel)?;
                session.exit_status_request(channel, 4_000_000_000)?;
                session.channel_success(channel)?;
                session.channel_failure(channel)?;
                session.eof(channel)?;
                session.data(channel, "after the end")?;
                session.close(channel)
            }
            Manner::AsksBack => {
                session.channel_success(channel)?;
                let (handle, sender) = (session.handle(), self.asked_back.clone());
                tokio::spawn(async move {
                    // Nobody listens any more if the test has failed.
                    let _ = sender.send(ask_back(&handle).await);
                    handle.exit_status_request(channel, 0).await.unwrap();
                    handle.close(channel).await.unwrap();
                });
                Ok(())
            }
        }
    }
}

/// Everything that a server can open; what was granted.
async fn ask_back(handle: &Handle) -> Vec<&'static str> {
    let mut granted = Vec::new();
    let mut note = |what, opened: Result<Channel<Msg>, russh::Error>| {
        if opened.is_ok() {
            granted.push(what);
        }
    };
    note("agent", handle.channel_open_agent().await);
    note("session", handle.channel_open_session().await);
    note(
        "tcp",
        handle
            .channel_open_direct_tcpip("127.0.0.1", 22, "127.0.0.1", 1)
            .await,
    );
    note(
        "socket",
        handle
            .channel_open_direct_streamlocal("/run/docker.sock")
            .await,
    );
    note(
        "forwarded",
        handle
            .channel_open_forwarded_tcpip("127.0.0.1", 22, "127.0.0.1", 1)
            .await,
    );
    note(
        "forwarded socket",
        handle
            .channel_open_forwarded_streamlocal("/run/docker.sock")
            .await,
    );
    note("X11", handle.channel_open_x11("127.0.0.1", 1).await);
    granted
}

/// A rude server for one connection, connected to.
async fn met(manner: Manner) -> (Connection, UnboundedReceiver<Vec<&'static str>>) {
    let folder = tempfile::tempdir().unwrap();
    let identity = folder.path().join("key");
    run(&[
        "ssh-keygen",
        "-q",
        "-t",
        "ed25519",
        "-N",
        "",
        "-f",
        identity.to_str().unwrap(),
    ]);
    let config = folder.path().join("config");
    std::fs::write(
        &config,
        "UserKnownHostsFile none\nGlobalKnownHostsFile none\n",
    )
    .unwrap();
    let key = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
    let pin: HostKeyPin = key
        .fingerprint(HashAlg::Sha256)
        .to_string()
        .parse()
        .unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (sender, receiver) = unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let config = Arc::new(Config {
            keys: vec![key],
            ..Config::default()
        });
        let handler = Rude {
            manner,
            asked_back: sender,
        };
        let session = russh::server::run_stream(config, stream, handler)
            .await
            .unwrap();
        // It ends as the manner has it.
        let _ = session.await;
    });
    let wanted = Wanted {
        name: "node".into(),
        host: "127.0.0.1".into(),
        port: Some(port),
        user: Some("root".into()),
        identity: Some(identity),
        host_key: Some(pin),
        ssh_config: Some(config),
        ..Wanted::default()
    };
    let environment = Environment {
        home: None,
        user: "root".into(),
        agent: None,
        ssh: Some("/usr/bin/ssh".into()),
    };
    let target = resolve_in(&wanted, &environment).await.unwrap();
    let mut limits = Limits::default();
    if matches!(manner, Manner::Silent) {
        limits.answer = Duration::from_secs(2);
    }
    (connect(&target, &limits).await.unwrap(), receiver)
}

async fn answer_of(manner: Manner) -> Result<orch::remote::Output, Reason> {
    let (connection, _receiver) = met(manner).await;
    let command = Command::new("true").input("something");
    connection
        .run(&command)
        .await
        .map_err(|error| *error.reason)
}

#[tokio::test]
async fn an_end_that_nobody_told_is_an_error() {
    let reason = answer_of(Manner::NoStatus).await.unwrap_err();
    assert!(matches!(reason, Reason::Ended { .. }), "{reason}");
    let reason = answer_of(Manner::Refuses).await.unwrap_err();
    assert!(matches!(reason, Reason::NotExecuted { .. }), "{reason}");
    let reason = answer_of(Manner::Silent).await.unwrap_err();
    assert!(matches!(reason, Reason::Silent { .. }), "{reason}");
}

#[tokio::test]
async fn what_a_server_says_does_not_reach_the_terminal_as_it_is() {
    let reason = answer_of(Manner::Disconnects).await.unwrap_err();
    assert!(
        reason
            .to_string()
            .ends_with("the other side said: [31mgoaway"),
        "{reason}"
    );
    let output = answer_of(Manner::Strange).await.unwrap();
    assert_eq!((output.stdout, output.stderr), (vec![], vec![]));
    assert_eq!(output.exit.to_string(), "was ended by the signal ]0;USR9");
    let output = answer_of(Manner::Babbles).await.unwrap();
    assert_eq!(output.exit.to_string(), "exited with status 4000000000");
}

#[tokio::test]
async fn a_server_that_asks_for_channels_gets_none() {
    let (connection, mut asked_back) = met(Manner::AsksBack).await;
    connection.succeed(&Command::new("true")).await.unwrap();
    assert_eq!(asked_back.recv().await.unwrap(), Vec::<&str>::new());
}

/// Not SSH, almost SSH, and SSH's greeting with noise behind it.
#[tokio::test]
async fn noise_is_no_panic() {
    let server = Server::start("");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let wanted = Wanted {
        port: Some(listener.local_addr().unwrap().port()),
        ..server.wanted()
    };
    let target = server.resolve(&wanted).await;
    let limits = Limits {
        handshake: Duration::from_secs(2),
        ..Limits::default()
    };
    let greeting = b"SSH-2.0-noise\r\n".to_vec();
    let noise: Vec<u8> = (0..40_000u32)
        .map(|number| (number.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let with = |behind: &[u8]| [&greeting, behind].concat();
    let all = [
        Vec::new(),
        b"SSH-1.5-old\r\n".to_vec(),
        vec![b'x'; 100_000],
        b"SSH-2.0-".to_vec(),
        with(&noise),
        with(&[0xff; 4096]),
        with(&[0; 4096]),
        // A packet of the right form with the number of a key exchange and nothing in it.
        with(&[0, 0, 0, 12, 10, 20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        with(&[&[0, 0, 1, 0, 4, 20][..], &noise[..251]].concat()),
    ];
    for said in all {
        let bytes = said.clone();
        let accepting = listener.try_clone().unwrap();
        let speaking = std::thread::spawn(move || {
            let (mut stream, _) = accepting.accept().unwrap();
            // The client may have had enough.
            let _ = stream.write_all(&bytes);
            let _ = stream.shutdown(std::net::Shutdown::Write);
        });
        let error = connect(&target, &limits).await.unwrap_err();
        let length = said.len();
        assert!(
            matches!(
                *error.reason,
                Reason::Handshake { .. } | Reason::Silent { .. }
            ),
            "{length}: {error}"
        );
        speaking.join().unwrap();
    }
}
