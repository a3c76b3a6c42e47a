//! A real join service on the loopback interface that grants everything, at once or late, or refuses everything, and counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use orch_contract::{
    ClusterKeys, JOIN_SCHEMA, JoinGrant, JoinRefusal, JoinResponse, JoinToken, RefusalReason,
};
use orch_ssh::keys::read_private_key;
use orch_ssh::server::{Audit, AuditEvent, FactsSource, Grantor, JoinService, KeySource, Limits};
use orch_ssh::{AuthorizedKeys, Member, PrivateKey};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// Whether a request is refused, by its number from 0.
type Refusal = dyn Fn(u32) -> Option<(RefusalReason, &'static str)> + Send + Sync;

struct Granting {
    asked: AtomicU32,
    granted: Arc<AtomicU32>,
    refusal: Box<Refusal>,
}

#[async_trait]
impl Grantor for Granting {
    async fn grant(&self, member: &Member) -> JoinResponse {
        if let Some((reason, words)) = (self.refusal)(self.asked.fetch_add(1, Ordering::SeqCst)) {
            return JoinResponse::Refused(JoinRefusal::new(reason, words));
        }
        self.granted.fetch_add(1, Ordering::SeqCst);
        JoinResponse::Granted(JoinGrant {
            schema: JOIN_SCHEMA,
            node: member.name.clone(),
            server_url: "https://127.0.0.1:6443".to_owned(),
            token: JoinToken::parse("K10abc::id.topsecret").unwrap(),
            role: member.role,
            expires_at: Some(Timestamp::now() + SignedDuration::from_secs(600)),
        })
    }
}

struct Keys(PrivateKey, AuthorizedKeys);

impl KeySource for Keys {
    fn host_key(&self) -> Result<PrivateKey, String> {
        Ok(self.0.clone())
    }

    fn authorized_keys(&self) -> Result<AuthorizedKeys, String> {
        Ok(self.1.clone())
    }
}

struct NoFacts;

#[async_trait]
impl FactsSource for NoFacts {
    async fn facts(&self) -> Result<Vec<u8>, String> {
        Err("no facts".to_owned())
    }
}

struct NoAudit;

impl Audit for NoAudit {
    fn record(&self, _: AuditEvent) {}
}

/// A join service that ends with this value.
pub(crate) struct Grants {
    pub(crate) port: u16,
    granted: Arc<AtomicU32>,
    task: JoinHandle<()>,
}

impl Grants {
    pub(crate) async fn serve(layout: &ClusterKeys) -> Self {
        Self::answering(layout, |_| None).await
    }

    /// Refuses everybody.
    pub(crate) async fn refusing(layout: &ClusterKeys, reason: RefusalReason) -> Self {
        Self::answering(layout, move |_| Some((reason, "not here"))).await
    }

    /// Not ready the first time, then grants.
    pub(crate) async fn late(layout: &ClusterKeys) -> Self {
        let starting = (RefusalReason::NotReady, "K3s is starting");
        Self::answering(layout, move |number| (number == 0).then_some(starting)).await
    }

    async fn answering(
        layout: &ClusterKeys,
        refusal: impl Fn(u32) -> Option<(RefusalReason, &'static str)> + Send + Sync + 'static,
    ) -> Self {
        let granted = Arc::new(AtomicU32::new(0));
        let authorized = std::fs::read_to_string(layout.authorized_keys()).unwrap();
        let service = JoinService::new(
            Limits::default(),
            Arc::new(Granting {
                asked: AtomicU32::new(0),
                granted: Arc::clone(&granted),
                refusal: Box::new(refusal),
            }),
            Arc::new(NoFacts),
            Arc::new(Keys(
                read_private_key(&layout.host_key()).unwrap(),
                AuthorizedKeys::parse(&authorized).unwrap(),
            )),
            Arc::new(NoAudit),
        );
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            port: listener.local_addr().unwrap().port(),
            granted,
            task: tokio::spawn(service.run(listener)),
        }
    }

    pub(crate) fn granted(&self) -> u32 {
        self.granted.load(Ordering::SeqCst)
    }
}

impl Drop for Grants {
    fn drop(&mut self) {
        self.task.abort();
    }
}
