//! A real RabbitMQ of the test's own, on loopback ports, as an unprivileged user.

use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use lapin::uri::{AMQPAuthority, AMQPQueryString, AMQPScheme, AMQPUri, AMQPUserInfo};
use lapin::{Connection, ConnectionProperties};

use super::process::{OwnedDirectory, Process, free_port, is_free, unprivileged};
use super::service::Variables;
use super::wait::until;

const USER: &str = "rabbitmq";
/// Not Debian's wrapper in /usr/sbin: that one insists on the system's own data directory.
const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";
pub(crate) const PASSWORD: &str = "rabbit-password-of-the-test";

pub(crate) struct RabbitMq {
    directory: OwnedDirectory,
    port: u16,
    distribution_port: u16,
    epmd_port: u16,
    server: Mutex<Option<Process>>,
    /// Erlang's name service; a private one, in the foreground, so that it ends with the test.
    _epmd: Process,
}

impl RabbitMq {
    /// A broker that every test running at the same time may use, with queues of its own. It ends
    /// with the last of them.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<RabbitMq>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        let broker = shared.upgrade().unwrap_or_else(|| Arc::new(Self::start()));
        *shared = Arc::downgrade(&broker);
        broker
    }

    /// A broker for a test that will stop, kill or freeze it.
    pub(crate) fn start() -> Self {
        let broker = Self::prepare();
        broker.launch();
        broker
    }

    /// All but the server itself, for a test that needs it to be absent first.
    pub(crate) fn prepare() -> Self {
        let directory = OwnedDirectory::new(USER);
        let (port, epmd_port) = (free_port(), free_port());
        let configuration = format!(
            "listeners.tcp.1 = 127.0.0.1:{port}\ndefault_user = orders\ndefault_pass = {PASSWORD}\n"
        );
        std::fs::write(directory.join("rabbitmq.conf"), configuration).unwrap();
        std::fs::write(directory.join("plugins"), "[].\n").unwrap();
        directory.give_to(USER);
        let mut epmd = unprivileged(USER, Path::new("epmd"));
        epmd.args(["-address", "127.0.0.1", "-port", &epmd_port.to_string()]);
        Self {
            _epmd: Process::start(&mut epmd, &directory.join("epmd.log")),
            directory,
            port,
            distribution_port: free_port(),
            epmd_port,
            server: Mutex::new(None),
        }
    }

    pub(crate) fn launch(&self) {
        let at = |name: &str| self.directory.join(name);
        let mut command: Command = unprivileged(USER, Path::new(SERVER));
        command
            .env("HOME", at(""))
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("ERL_EPMD_PORT", self.epmd_port.to_string())
            .env("RABBITMQ_NODENAME", format!("test{}@localhost", self.port))
            .env("RABBITMQ_DIST_PORT", self.distribution_port.to_string())
            .env("RABBITMQ_CONFIG_FILE", at("rabbitmq.conf"))
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", at("plugins"))
            .env("RABBITMQ_MNESIA_BASE", at("data"))
            .env("RABBITMQ_LOG_BASE", at("log"))
            .env("RABBITMQ_LOGS", "-")
            .current_dir(at(""));
        *self.server.lock().unwrap() = Some(Process::start(&mut command, &at("server.log")));
    }

    /// Ends it at once, as a lost node does.
    pub(crate) fn kill(&self) {
        self.server.lock().unwrap().take();
        // It may have left children that take a moment longer.
        while !is_free(self.port) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal to the server, such as STOP and CONT.
    pub(crate) fn signal(&self, name: &str) {
        self.server.lock().unwrap().as_ref().unwrap().signal(name);
    }

    /// What a service needs to know to use this broker and this queue.
    pub(crate) fn variables(&self, queue: &str) -> Variables {
        vec![
            ("RABBITMQ_HOST", "127.0.0.1".to_owned()),
            ("RABBITMQ_PORT", self.port.to_string()),
            ("RABBITMQ_USER", "orders".to_owned()),
            ("RABBITMQ_PASSWORD", PASSWORD.to_owned()),
            ("RABBITMQ_QUEUE", queue.to_owned()),
        ]
    }

    /// Connects as soon as the broker lets us.
    pub(crate) async fn connect(&self) -> Connection {
        let uri = AMQPUri {
            scheme: AMQPScheme::AMQP,
            authority: AMQPAuthority {
                userinfo: AMQPUserInfo {
                    username: "orders".to_owned(),
                    password: PASSWORD.to_owned(),
                },
                host: "127.0.0.1".to_owned(),
                port: self.port,
            },
            vhost: "/".to_owned(),
            query: AMQPQueryString::default(),
        };
        until("RabbitMQ accepts connections", async || {
            self.assert_running();
            Connection::connect_uri(uri.clone(), ConnectionProperties::default())
                .await
                .ok()
        })
        .await
    }

    fn assert_running(&self) {
        let running = self.server.lock().unwrap().as_mut().unwrap().is_running();
        let log = || std::fs::read_to_string(self.directory.join("server.log")).unwrap();
        assert!(running, "RabbitMQ ended: {}", log());
    }
}
