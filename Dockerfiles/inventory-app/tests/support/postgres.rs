//! A real PostgreSQL of the test's own, on a loopback port, as an unprivileged user.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use uuid::Uuid;

use super::process::{OwnedDirectory, Process, free_port, is_free, run, unprivileged};
use super::service::Variables;
use super::wait::until;

const USER: &str = "postgres";
/// Debian's place for one PostgreSQL per major version.
const VERSIONS: &str = "/usr/lib/postgresql";
pub(crate) const PASSWORD: &str = "database-password-of-the-test";

pub(crate) struct Postgres {
    directory: OwnedDirectory,
    port: u16,
    server: Mutex<Option<Process>>,
}

impl Postgres {
    /// A server that every test running at the same time may use, with databases of its own. It
    /// ends with the last of them.
    pub(crate) fn shared() -> Arc<Self> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        let mut shared = SHARED.lock().unwrap();
        let server = shared.upgrade().unwrap_or_else(|| {
            let server = Self::prepare();
            server.launch();
            Arc::new(server)
        });
        *shared = Arc::downgrade(&server);
        server
    }

    /// All but the server itself, for a test that stops and starts it.
    pub(crate) fn prepare() -> Self {
        let directory = OwnedDirectory::new(USER);
        std::fs::write(directory.join("password"), PASSWORD).unwrap();
        directory.give_to(USER);
        run(unprivileged(USER, &program("initdb"))
            .args(["--username=app", "--auth=scram-sha-256", "--encoding=UTF8"])
            .arg("--pwfile")
            .arg(directory.join("password"))
            .arg("--pgdata")
            .arg(directory.join("data"))
            .current_dir(directory.join("")));
        Self {
            directory,
            port: free_port(),
            server: Mutex::new(None),
        }
    }

    pub(crate) fn launch(&self) {
        let mut command: Command = unprivileged(USER, &program("postgres"));
        command
            .arg("-D")
            .arg(self.directory.join("data"))
            .args(["-h", "127.0.0.1", "-p", &self.port.to_string()])
            .arg("-k")
            .arg(self.directory.join(""))
            .current_dir(self.directory.join(""));
        let log = self.directory.join("server.log");
        *self.server.lock().unwrap() = Some(Process::start(&mut command, &log));
    }

    /// Ends it at once, as a lost node does.
    pub(crate) fn kill(&self) {
        self.server.lock().unwrap().take();
        // It may have left children that take a moment longer.
        while !is_free(self.port) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// A new database, and the variables by which a service finds it.
    pub(crate) async fn create_database(&self) -> (PgPool, Variables) {
        let name = format!("test_{}", Uuid::now_v7().simple());
        let server = self.connect("postgres").await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE DATABASE {name}")))
            .execute(&server)
            .await
            .unwrap();
        (self.connect(&name).await, self.variables(&name))
    }

    pub(crate) fn variables(&self, database: &str) -> Variables {
        vec![
            ("DB_HOST", "127.0.0.1".to_owned()),
            ("DB_PORT", self.port.to_string()),
            ("DB_NAME", database.to_owned()),
            ("DB_USER", "app".to_owned()),
            ("DB_PASSWORD", PASSWORD.to_owned()),
        ]
    }

    /// Connects as soon as the server lets us.
    async fn connect(&self, database: &str) -> PgPool {
        let options = PgConnectOptions::new_without_pgpass()
            .host("127.0.0.1")
            .port(self.port)
            .username("app")
            .password(PASSWORD)
            .database(database);
        until("PostgreSQL accepts connections", async || {
            let pool = PgPoolOptions::new().max_connections(2);
            pool.connect_with(options.clone()).await.ok()
        })
        .await
    }
}

/// A program of the newest PostgreSQL that is installed.
fn program(name: &str) -> PathBuf {
    let versions = std::fs::read_dir(Path::new(VERSIONS));
    let versions = versions.unwrap_or_else(|error| panic!("no PostgreSQL in {VERSIONS}: {error}"));
    let programs = versions.map(|version| version.unwrap().path().join("bin").join(name));
    let newest = programs.filter(|program| program.exists()).max();
    newest.unwrap_or_else(|| panic!("no {name} in {VERSIONS}"))
}
