//! What naming a context costs, per byte and per file: cold, with a stat cache, and for a large file.
#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on has failed"
)]

use std::fs;
use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use orch::images::context::stat_cache::StatCache;
use orch::images::context::{Contents, Context};

const FILES: u64 = 10_000;
const FILE: u64 = 8 * 1024;
const LARGE: usize = 256 * 1024 * 1024;

fn name(root: &Path, cache: Option<&StatCache>) -> Contents {
    let context = Context::scan(root, &root.join("Dockerfile")).unwrap();
    context.contents(cache).unwrap()
}

fn small_files(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("context");
    let bytes = vec![7; usize::try_from(FILE).unwrap()];
    for file in 0..FILES {
        let folder = root.join(format!("{}/{}", file % 10, file % 100));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(file.to_string()), &bytes).unwrap();
    }
    // What was written a moment ago is not believed.
    std::thread::sleep(Duration::from_secs(4));
    let mut group = criterion.benchmark_group("10,000 files of 8 KiB");
    group.sample_size(20);
    group.throughput(Throughput::Bytes(FILES * FILE));
    group.bench_function("cold", |bencher| {
        bencher.iter(|| name(black_box(&root), None))
    });
    group.throughput(Throughput::Elements(FILES));
    let cache = StatCache::new(&folder.path().join("cache"));
    name(&root, Some(&cache));
    assert_eq!(name(&root, Some(&cache)).read(), (0, 0));
    group.bench_function("stat cache", |bencher| {
        bencher.iter(|| name(black_box(&root), Some(&cache)));
    });
    let named = name(&root, None);
    group.bench_function("lines for the lock", |bencher| {
        bencher.iter(|| black_box(&named).fingerprints(1000));
    });
    group.finish();
}

fn large_file(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("large"), vec![7; LARGE]).unwrap();
    let mut group = criterion.benchmark_group("one file of 256 MiB");
    group.sample_size(10);
    group.throughput(Throughput::Bytes(LARGE as u64));
    group.bench_function("cold", |bencher| {
        bencher.iter(|| name(black_box(folder.path()), None));
    });
    group.finish();
}

criterion_group!(benches, small_files, large_file);
criterion_main!(benches);
