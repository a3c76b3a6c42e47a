//! A stack that is applied by the test itself, and the objects that stacks are made of.

use std::fs;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use orch::commands::apply::{ApplyError, ApplyOutcome, ApplySettings, StackSettings, run};
use orch::images::pin::Kept;
use orch::kube::{ApplyEvent, Patience, Reporter};

use crate::api_server;

pub(crate) const IMAGE: &str = "127.0.0.1:5000/orch/test@sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// Keeps the events.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Vec<ApplyEvent>>);

impl Reporter for Recorder {
    fn report(&self, event: ApplyEvent) {
        self.0.lock().unwrap().push(event);
    }
}

/// A stack in a folder and a namespace of its own.
pub(crate) struct Fixture {
    folder: tempfile::TempDir,
    pub(crate) namespace: String,
    pub(crate) settings: ApplySettings,
    pub(crate) recorder: Recorder,
    pub(crate) client: kube::Client,
}

impl Fixture {
    pub(crate) async fn new(namespace: &str) -> Self {
        let kubeconfig = api_server::kubeconfig();
        let folder = tempfile::tempdir().unwrap();
        let brief = Duration::from_secs(2);
        let settings = ApplySettings {
            stacks: vec![StackSettings {
                name: "test".into(),
                manifests: folder.path().to_owned(),
                namespace: namespace.into(),
            }],
            kubeconfig: kubeconfig.to_owned(),
            storage_class: None,
            kept: Kept::default(),
            dry_run: false,
            force_conflicts: false,
            timeout: Duration::from_secs(90),
            settle: Duration::from_secs(60),
            patience: Patience {
                image_missing: brief,
                image_pull: brief,
                crash_loop: brief,
                configuration: brief,
                mount: brief,
                unschedulable: brief,
                creation: brief,
            },
        };
        let fixture = Self {
            folder,
            namespace: namespace.into(),
            settings,
            recorder: Recorder::default(),
            client: orch::kube::connect(kubeconfig).await.unwrap(),
        };
        fixture.write(
            "namespace.yaml",
            &format!("apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n"),
        );
        fixture
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) async fn run(&self) -> Result<ApplyOutcome, ApplyError> {
        run(&self.settings, &self.recorder).await
    }

    /// `KIND NAME RESULT` of every object, in order.
    pub(crate) async fn apply(&self) -> Vec<String> {
        match self.run().await.unwrap() {
            ApplyOutcome::Applied { stacks, .. } => stacks[0]
                .objects
                .iter()
                .map(|object| format!("{} {} {}", object.kind, object.name, object.result))
                .collect(),
            ApplyOutcome::Planned { .. } => panic!("planned instead of applied"),
        }
    }

    /// The dry run's objects and its text for people.
    pub(crate) async fn plan(&mut self) -> (orch::kube::Plan, String) {
        self.settings.dry_run = true;
        let outcome = self.run().await.unwrap();
        self.settings.dry_run = false;
        let text = outcome.to_string();
        match outcome {
            ApplyOutcome::Planned { mut stacks } => (stacks.remove(0).plan, text),
            ApplyOutcome::Applied { .. } => panic!("applied instead of planned"),
        }
    }

    pub(crate) async fn failure(&self) -> (ApplyError, String) {
        let error = self.run().await.unwrap_err();
        let text = error.to_string();
        (error, text)
    }

    pub(crate) async fn has_namespace(&self) -> bool {
        let namespaces: Api<Namespace> = Api::all(self.client.clone());
        namespaces.get_opt(&self.namespace).await.unwrap().is_some()
    }

    pub(crate) fn events(&self) -> Vec<ApplyEvent> {
        self.recorder.0.lock().unwrap().clone()
    }
}

pub(crate) fn config_map(value: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: settings\ndata:\n  color: {value}\n"
    )
}

pub(crate) fn deployment(name: &str, replicas: u32, pod: &str) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  \
         selector: {{matchLabels: {{app: {name}}}}}\n  template:\n    metadata: {{labels: {{app: {name}}}}}\n    \
         spec: {{{pod}containers: [{{name: main, image: \"{IMAGE}\"}}]}}\n"
    )
}
