//! Root's rights: real users, real sudo.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use orch::files::sha256_of;
use orch::remote::{
    Command, Connection, PrivateFile, Privilege, Reason, SudoPassword, Uploaded, Wanted,
};
use zeroize::Zeroizing;

use crate::support::{Server, User};

const PASSWORD: &str = "korrekt-pferd-batterie";

fn password(text: &str) -> SudoPassword {
    SudoPassword::new(Zeroizing::new(text.to_owned())).unwrap()
}

async fn connect_as(server: &Server, user: &User) -> Connection {
    let wanted = Wanted {
        user: Some(user.name.clone()),
        ..server.wanted()
    };
    let connected = server.try_connect(&wanted).await;
    connected.unwrap_or_else(|error| panic!("{error}\n{}", server.text("log")))
}

async fn who(connection: &Connection, privilege: &Privilege) -> String {
    let command = Command::new("id -un; cat")
        .input("the input\n")
        .as_root(privilege);
    connection.succeed(&command).await.unwrap().text()
}

#[tokio::test]
async fn root_needs_nothing() {
    let server = Server::start("");
    let connection = server.connect().await;
    let privilege = connection
        .privilege(Some(&password("unused")))
        .await
        .unwrap();
    assert!(matches!(privilege, Privilege::Root));
    assert_eq!(who(&connection, &privilege).await, "root\nthe input");
}

#[tokio::test]
async fn sudo_without_a_password() {
    let (server, user) = (Server::start(""), User::new(None));
    user.may("NOPASSWD: ALL");
    let connection = connect_as(&server, &user).await;
    let privilege = connection.privilege(None).await.unwrap();
    assert!(matches!(privilege, Privilege::Sudo));
    assert_eq!(who(&connection, &privilege).await, "root\nthe input");
}

#[tokio::test]
async fn sudo_with_a_password_leaves_the_input_to_the_command() {
    let (server, user) = (Server::start(""), User::new(Some(PASSWORD)));
    user.may("ALL");
    let connection = connect_as(&server, &user).await;

    let error = connection.privilege(None).await.unwrap_err();
    assert!(
        matches!(*error.reason, Reason::SudoPasswordNeeded { .. }),
        "{error}"
    );
    assert!(error.to_string().contains("NOPASSWD"), "{error}");
    let error = connection
        .privilege(Some(&password("falsch-falsch")))
        .await
        .unwrap_err();
    assert!(
        matches!(*error.reason, Reason::SudoPasswordWrong { .. }),
        "{error}"
    );
    assert!(!format!("{error} {error:?}").contains("falsch-falsch"));

    let privilege = connection
        .privilege(Some(&password(PASSWORD)))
        .await
        .unwrap();
    assert_eq!(who(&connection, &privilege).await, "root\nthe input");
    // Also when sudo would remember it, and when it has come to ask for none.
    assert_eq!(who(&connection, &privilege).await, "root\nthe input");
    user.may("NOPASSWD: ALL");
    assert_eq!(who(&connection, &privilege).await, "root\nthe input");
}

#[tokio::test]
async fn files_are_roots_own_whoever_logged_in() {
    let (server, user) = (Server::start(""), User::new(Some(PASSWORD)));
    user.may("ALL");
    let connection = connect_as(&server, &user).await;
    let privilege = connection
        .privilege(Some(&password(PASSWORD)))
        .await
        .unwrap();
    // Nobody but root gets in here.
    let folder = server.path("closed");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    let local = server.path("local");
    // With what looks like the end of a password in it.
    let content = [
        b"orch: the input begins\n\0\n".repeat(1000),
        vec![0xff; 500_000],
    ]
    .concat();
    fs::write(&local, &content).unwrap();
    let sum = sha256_of(&local).unwrap();
    let remote = folder.join("uploaded");
    let upload = async || {
        let path = remote.to_str().unwrap();
        connection
            .upload_if_changed(&privilege, &local, &sum, path, 0o755)
            .await
            .unwrap()
    };
    assert_eq!(upload().await, Uploaded::Written);
    assert_eq!(upload().await, Uploaded::Unchanged);
    // Equal, but another's, who could change it afterwards.
    std::os::unix::fs::chown(&remote, Some(65534), Some(65534)).unwrap();
    assert_eq!(upload().await, Uploaded::Written);
    let file = PrivateFile {
        name: "secret".into(),
        content: Zeroizing::new(content.clone()),
    };
    connection
        .write_private(&privilege, &[file], folder.to_str().unwrap())
        .await
        .unwrap();
    for (path, mode) in [(&remote, 0o755), (&folder.join("secret"), 0o600)] {
        let metadata = fs::metadata(path).unwrap();
        assert_eq!(fs::read(path).unwrap(), content);
        assert_eq!(
            (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777),
            (0, 0, mode)
        );
    }
}

#[tokio::test]
async fn no_secret_is_in_any_argument_or_environment_while_it_is_used() {
    let (server, user) = (Server::start(""), User::new(Some(PASSWORD)));
    user.may("ALL");
    let connection = connect_as(&server, &user).await;
    let privilege = connection
        .privilege(Some(&password(PASSWORD)))
        .await
        .unwrap();
    let secret = b"sehr-geheimer-inhalt\n".to_vec();
    // Looks at all processes while itself, sudo and the shells between them still run. The patterns do not find themselves.
    let script = "cat > /dev/null; for f in /proc/[0-9]*/cmdline /proc/[0-9]*/environ; do tr '\\0' ' ' < \"$f\" 2>/dev/null; echo; done";
    let command = Command::new(script)
        .secret_input(Zeroizing::new(secret))
        .as_root(&privilege);
    let seen = connection.succeed(&command).await.unwrap().text();
    assert!(seen.contains("sudo -k -S"), "{seen}");
    for secret in [PASSWORD, "sehr-geheimer-inhalt"] {
        assert!(!seen.contains(secret), "{seen}");
        assert!(!server.text("log").contains(secret));
    }
}

#[tokio::test]
async fn whom_sudo_refuses_and_where_there_is_none() {
    let (server, user) = (Server::start(""), User::new(Some(PASSWORD)));
    let connection = connect_as(&server, &user).await;
    let error = connection
        .privilege(Some(&password(PASSWORD)))
        .await
        .unwrap_err();
    assert!(
        matches!(*error.reason, Reason::SudoRefused { .. }),
        "{error}"
    );
    assert!(
        error.to_string().contains("not in the sudoers file"),
        "{error}"
    );

    // A machine without sudo, as far as this user can see.
    let bin = server.path("bin");
    fs::create_dir(&bin).unwrap();
    for program in ["sh", "id"] {
        std::os::unix::fs::symlink(format!("/usr/bin/{program}"), bin.join(program)).unwrap();
    }
    let server = Server::start(&format!("SetEnv PATH={}", bin.display()));
    let connection = connect_as(&server, &user).await;
    let error = connection.privilege(None).await.unwrap_err();
    assert!(matches!(*error.reason, Reason::NoSudo { .. }), "{error}");
}
