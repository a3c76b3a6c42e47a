//! What the join service reads before anybody has authenticated: it ends, and it answers no request.
#![no_main]

use std::sync::{Arc, LazyLock};

use async_trait::async_trait;
use libfuzzer_sys::fuzz_target;
use orch_contract::{ClusterKeys, JoinResponse, NodeName};
use orch_ssh::keys::{ensure_cluster_keys, read_private_key};
use orch_ssh::server::{
    Audit, AuditEvent, AuditKind, FactsSource, Grantor, JoinService, KeySource, Limits,
};
use orch_ssh::{AuthorizedKeys, Member, PrivateKey};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

/// More than the service's own limit, so that nothing waits for a reader.
const BUFFER_BYTES: usize = 256 * 1024;

struct Nobody;

#[async_trait]
impl Grantor for Nobody {
    async fn grant(&self, member: &Member) -> JoinResponse {
        panic!(
            "{} was granted a token without having authenticated",
            member.name
        )
    }
}

#[async_trait]
impl FactsSource for Nobody {
    async fn facts(&self) -> Result<Vec<u8>, String> {
        panic!("facts were shown to somebody who has not authenticated")
    }
}

impl Audit for Nobody {
    fn record(&self, event: AuditEvent) {
        assert!(
            matches!(
                event.kind,
                AuditKind::KeyRejected | AuditKind::Unauthenticated
            ),
            "{event:?}"
        );
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

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    // Deadlines pass at once when nothing else is left to do.
    Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime")
});

static KEYS: LazyLock<Arc<Keys>> = LazyLock::new(|| {
    let directory = tempfile::tempdir().expect("a directory");
    let layout = ClusterKeys::new(directory.path());
    let nodes: [NodeName; 1] = ["agent".parse().expect("a name")];
    ensure_cluster_keys(&layout, &nodes).expect("keys");
    let text = std::fs::read_to_string(layout.authorized_keys()).expect("a list");
    Arc::new(Keys(
        read_private_key(&layout.host_key()).expect("a key"),
        AuthorizedKeys::parse(&text).expect("a list of keys"),
    ))
});

fuzz_target!(|bytes: &[u8]| {
    RUNTIME.block_on(async {
        let (theirs, mut ours) = tokio::io::duplex(BUFFER_BYTES);
        let service = JoinService::new(
            Limits::default(),
            Arc::new(Nobody),
            Arc::new(Nobody),
            Arc::clone(&*KEYS) as _,
            Arc::new(Nobody),
        );
        let peer = ([192, 0, 2, 1], 50_000).into();
        let send = async {
            // A service that has heard enough hangs up in the middle of it.
            let _ = ours.write_all(bytes).await;
            let _ = ours.shutdown().await;
        };
        tokio::join!(service.converse(theirs, peer), send);
    });
});
