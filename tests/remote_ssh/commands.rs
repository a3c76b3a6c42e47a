//! Commands: their output, their end, and what happens when the other side goes away.

use orch::remote::{Command, Exit, Limits, Reason, Stream, connect};

use crate::support::Server;

#[tokio::test]
async fn output_input_and_status_of_many_commands_on_one_connection() {
    let server = Server::start("");
    let connection = server.connect().await;
    let command = Command::new("cat; echo warned >&2; exit 3").input("hello\n");
    let output = connection.run(&command).await.unwrap();
    assert_eq!(output.exit, Exit::Status(3));
    assert_eq!(output.text(), "hello");
    assert_eq!(output.stderr, b"warned\n");
    let error = connection.succeed(&command).await.unwrap_err();
    assert!(matches!(*error.reason, Reason::Failed { .. }));
    let text = error.to_string();
    assert!(text.starts_with("node node: `cat; echo warned"), "{text}");
    assert!(text.ends_with("exited with status 3\n    warned"), "{text}");

    let both = (0..8).map(async |number| {
        let script = format!("sleep 0.2; echo {number}");
        connection
            .succeed(&Command::new(&script))
            .await
            .unwrap()
            .text()
    });
    let texts = futures::future::join_all(both).await;
    assert_eq!(texts, ["0", "1", "2", "3", "4", "5", "6", "7"]);
    let words = ["printf", "%s|", "a b", "it's", r"\", "$HOME", "line\nbreak"];
    let text = connection
        .succeed(&Command::program(words))
        .await
        .unwrap()
        .text();
    assert_eq!(text, "a b|it's|\\|$HOME|line\nbreak|");
    connection.close().await;
}

#[tokio::test]
async fn a_signal_is_told_by_name() {
    let server = Server::start("");
    let connection = server.connect().await;
    let output = connection
        .run(&Command::new("kill -KILL $$"))
        .await
        .unwrap();
    assert_eq!(output.exit, Exit::Signal("KILL".into()));
}

#[tokio::test]
async fn input_of_megabytes_comes_back_the_same() {
    let server = Server::start("");
    let connection = server.connect().await;
    let input: Vec<u8> = (0..5_000_000u32)
        .map(|number| (number % 251) as u8)
        .collect();
    let command = Command::new("sha256sum").input(input.clone());
    let sum = connection.succeed(&command).await.unwrap().text();
    let file = server.path("input");
    std::fs::write(&file, &input).unwrap();
    assert_eq!(
        sum.split(' ').next().unwrap(),
        orch::files::sha256_of(&file).unwrap()
    );
    // Input that nobody reads is no reason to wait.
    let unread = Command::new("exit 0").input(input);
    assert!(connection.run(&unread).await.unwrap().exit.success());
}

#[tokio::test]
async fn what_is_too_much_is_cut() {
    let server = Server::start("");
    let limits = Limits {
        output: 1000,
        line: 10,
        ..Limits::default()
    };
    let target = server.resolve(&server.wanted()).await;
    let connection = connect(&target, &limits).await.unwrap();
    let huge = Command::new("head -c 30000000 /dev/zero");
    let output = connection.run(&huge).await.unwrap();
    assert_eq!((output.stdout.len(), output.omitted), (1000, 29_999_000));
    let error = connection.succeed(&huge).await.unwrap_err();
    assert!(
        matches!(*error.reason, Reason::TooMuchOutput { .. }),
        "{error}"
    );

    let long =
        Command::new("head -c 10000000 /dev/zero | tr '\\0' x; echo; echo short; echo err >&2");
    let mut lines = Vec::new();
    let exit = connection
        .stream(&long, |stream, line| lines.push((stream, line.to_owned())))
        .await;
    assert!(exit.unwrap().success());
    let of = |wanted| {
        lines
            .iter()
            .filter(move |(stream, _)| *stream == wanted)
            .map(|(_, line)| line.as_str())
            .collect::<Vec<_>>()
    };
    assert_eq!(of(Stream::Stdout), ["xxxxxxxxxx [...]", "short"]);
    assert_eq!(of(Stream::Stderr), ["err"]);
}

#[tokio::test]
async fn a_connection_that_is_cut_ends_the_stream_with_an_error() {
    let mut server = Server::start("");
    let connection = server.connect().await;
    let mut first = None;
    let command = Command::new("echo started; sleep 1000");
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let stream = connection.stream(&command, |_, line| {
        first.get_or_insert(line.to_owned());
        sender.send(()).unwrap();
    });
    let killing = async {
        receiver.recv().await.unwrap();
        server.kill();
    };
    let (result, ()) = tokio::join!(stream, killing);
    let error = result.unwrap_err();
    assert!(matches!(*error.reason, Reason::Ended { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains("while `echo started; sleep 1000` ran"),
        "{error}"
    );
    assert_eq!(first.as_deref(), Some("started"));
    let error = connection.run(&Command::new("true")).await.unwrap_err();
    assert!(matches!(*error.reason, Reason::Ended { .. }), "{error}");
}

#[tokio::test]
async fn a_command_that_is_dropped_is_ended_there() {
    let server = Server::start("");
    let connection = server.connect().await;
    let file = server.path("alive");
    let script = format!(
        "while echo tick; do touch {}; sleep 0.1; done",
        file.display()
    );
    let command = Command::new(&script);
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let stream = connection.stream(&command, |_, _| sender.send(()).unwrap());
    tokio::select! {
        result = stream => panic!("it ended: {result:?}"),
        _ = receiver.recv() => {}
    }
    // Gone for longer than a tick: nobody makes it any more.
    let path = file.to_str().unwrap();
    let gone = r#"while rm -f "$1"; sleep 1; [ -e "$1" ]; do :; done"#;
    let gone = connection.succeed(&Command::script(gone, &[path])).await;
    gone.unwrap();
}

#[tokio::test]
async fn a_child_left_behind_with_the_output_open_is_not_waited_for() {
    let server = Server::start("");
    let connection = server.connect().await;
    let output = connection
        .run(&Command::new("sleep 1000 & echo $!"))
        .await
        .unwrap();
    assert!(output.exit.success());
    connection
        .succeed(&Command::program(["kill", &output.text()]))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_account_that_runs_nothing_is_an_error() {
    let server = Server::start("MaxSessions 1");
    let connection = server.connect().await;
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let holding = Command::new("echo; cat >/dev/null; sleep 1000");
    let stream = connection.stream(&holding, |_, _| sender.send(()).unwrap());
    let another = async {
        receiver.recv().await.unwrap();
        connection.run(&Command::new("true")).await.unwrap_err()
    };
    tokio::select! {
        result = stream => panic!("it ended: {result:?}"),
        error = another => {
            assert!(matches!(*error.reason, Reason::NoSession { .. }), "{error}");
            assert!(error.to_string().contains("MaxSessions"), "{error}");
        }
    }
}
