//! Uploads on a terminal: a bar for each layer on its way and one for all of them.
//!
//! Boundary: draws what it is told, below the step's own line; decides nothing about pushing.

use std::collections::BTreeMap;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

/// Below this size, in bytes, a blob is gone before its bar or line could be read; it counts in the total alone.
pub(super) const SHOWN_FROM: u64 = 1024 * 1024;

/// The blobs of one step. Two images may send blobs of equal content to two repositories, so a blob is named by both.
#[derive(Debug)]
pub(super) struct Uploads {
    bars: MultiProgress,
    below: ProgressBar,
    all: Option<ProgressBar>,
    blobs: BTreeMap<(String, String), Blob>,
}

#[derive(Debug)]
struct Blob {
    sent: u64,
    total: u64,
    bar: Option<ProgressBar>,
}

impl Uploads {
    /// Draws among `bars`, below the line `below`.
    pub(super) fn new(bars: MultiProgress, below: ProgressBar) -> Self {
        Self {
            bars,
            below,
            all: None,
            blobs: BTreeMap::new(),
        }
    }

    /// `sent` of `total` bytes of a blob have left.
    pub(super) fn update(&mut self, component: &str, digest: &str, sent: u64, total: u64) {
        let name = (component.to_owned(), digest.to_owned());
        let blob = self.blobs.entry(name).or_insert_with(|| Blob {
            sent: 0,
            total,
            bar: None,
        });
        blob.sent = sent;
        if sent >= total {
            if let Some(bar) = blob.bar.take() {
                bar.finish_and_clear();
            }
        } else if total >= SHOWN_FROM {
            let bar = blob.bar.get_or_insert_with(|| {
                let last = self.all.as_ref().unwrap_or(&self.below);
                let bar = self.bars.insert_after(last, ProgressBar::new(total));
                bar.set_style(style(
                    "    {prefix:<36!} {bar:20} {bytes:>10} of {total_bytes}",
                ));
                bar.set_prefix(format!("{component} {}", short(digest)));
                bar
            });
            bar.set_position(sent);
        }
        let (sent, total) = self.blobs.values().fold((0, 0), |(sent, total), blob| {
            (sent + blob.sent, total + blob.total)
        });
        let all = self.all.get_or_insert_with(|| {
            let bar = self.bars.insert_after(&self.below, ProgressBar::new(total));
            bar.set_style(style(
                "  {msg:<38!} {bar:20} {bytes:>10} of {total_bytes}, {bytes_per_sec}",
            ));
            bar
        });
        let waiting = self.blobs.values().filter(|blob| blob.sent < blob.total);
        all.set_length(total);
        all.set_position(sent);
        all.set_message(match waiting.count() {
            0 => "sent".to_owned(),
            1 => "sending 1 layer".to_owned(),
            count => format!("sending {count} layers"),
        });
    }

    /// Takes all bars off the terminal.
    pub(super) fn clear(&mut self) {
        let blobs = self.blobs.values_mut().filter_map(|blob| blob.bar.take());
        for bar in blobs.chain(self.all.take()) {
            bar.finish_and_clear();
        }
    }
}

/// A template that cannot be read would be a bar in indicatif's own style.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// `sha256:` and enough digits to tell layers apart.
pub(super) fn short(digest: &str) -> &str {
    digest.get(..19).unwrap_or(digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use indicatif::{InMemoryTerm, ProgressDrawTarget};

    fn on(terminal: &InMemoryTerm) -> Uploads {
        let target = ProgressDrawTarget::term_like(Box::new(terminal.clone()));
        let bars = MultiProgress::with_draw_target(target);
        let line = bars.add(ProgressBar::new_spinner().with_message("images"));
        line.tick();
        Uploads::new(bars, line)
    }

    #[test]
    fn each_large_layer_and_the_total_have_a_bar_until_they_are_sent() {
        let terminal = InMemoryTerm::new(20, 100);
        let mut uploads = on(&terminal);
        uploads.update("gateway", "sha256:aaaaaaaaaaaa0000", 1 << 20, 4 << 20);
        uploads.update("gateway", "sha256:cccccccccccc0000", 512, 512);
        uploads.update("billing", "sha256:bbbbbbbbbbbb0000", 3 << 20, 6 << 20);
        let seen = terminal.contents();
        assert!(seen.contains("gateway sha256:aaaaaaaaaaaa "), "{seen}");
        assert!(seen.contains("billing sha256:bbbbbbbbbbbb "), "{seen}");
        assert!(!seen.contains("cccc"), "{seen}");
        assert!(seen.contains("sending 2 layers"), "{seen}");
        assert!(seen.contains("4.00 MiB of 10.00 MiB"), "{seen}");
        uploads.update("gateway", "sha256:aaaaaaaaaaaa0000", 4 << 20, 4 << 20);
        let seen = terminal.contents();
        assert!(!seen.contains("aaaa"), "{seen}");
        assert!(seen.contains("sending 1 layer "), "{seen}");
        uploads.clear();
        assert!(!terminal.contents().contains("sending"));
    }
}
