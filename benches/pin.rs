//! What pinning costs per byte: a file of 50 MB with many documents, read, pinned, and read again when it is pinned already.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on has failed"
)]

use std::fmt::Write as _;
use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orch::images::pin::edit_text;

const SIZE: usize = 50_000_000;
const REFERENCE: &str = "docker.io/me/web:in-0123456789ab@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/// Deployments with two images each, with a Service and a ConfigMap for every other one.
fn manifests(image: &str) -> String {
    let mut text = String::with_capacity(SIZE + 4096);
    let mut number = 0;
    while text.len() < SIZE {
        number += 1;
        write!(
            text,
            "---\napiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: web-{number}\n  labels: {{app: web-{number}, tier: 'front'}} # flow\n\
             spec:\n  replicas: 2\n  selector:\n    matchLabels:\n      app: web-{number}\n  template:\n    metadata:\n      labels:\n        \
             app: web-{number}\n    spec:\n      initContainers:\n      - name: migrate\n        image: \"{image}\" # keep\n        \
             args: [\"--wait\", \"60s\"]\n      containers:\n      - name: web\n        image: {image}\n        ports:\n        \
             - containerPort: 8080\n          name: http\n        env:\n        - name: DATABASE_URL\n          valueFrom:\n            \
             secretKeyRef:\n              name: database\n              key: url\n        resources:\n          requests: {{cpu: 100m, memory: 128Mi}}\n"
        )
        .unwrap();
        if number % 2 == 0 {
            write!(
                text,
                "---\nkind: Service\nmetadata:\n  name: web-{number}\nspec:\n  ports:\n  - port: 80\n    targetPort: http\n\
                 ---\nkind: ConfigMap\nmetadata:\n  name: web-{number}\ndata:\n  settings.yaml: |\n    listen: 0.0.0.0:8080\n    \
                 upstreams:\n    - name: inventory\n      url: http://inventory:8080/api/v1\n"
            )
            .unwrap();
        }
    }
    text
}

fn pin(criterion: &mut Criterion) {
    let (bare, pinned) = (manifests("web"), manifests(REFERENCE));
    let mut group = criterion.benchmark_group("50 MB of manifests");
    group.sample_size(10);
    for (name, text) in [("pin", &bare), ("pinned already", &pinned)] {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let new = edit_text(black_box(text), |image| {
                    (image.value != REFERENCE).then(|| REFERENCE.to_owned())
                });
                new.unwrap()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, pin);
criterion_main!(benches);
