//! Replaces images' names in a text and proves that nothing else changed. Text in, text out: no files, no registries.

use std::ops::Range;

use super::error::{Fault, Problem};
use super::scan::{ImageScalar, Scan, scan};
use super::split::{Piece, split};

/// Texts from this size on are worth a second thread.
const PARALLEL: usize = 1 << 20;

/// A text with its images.
#[derive(Debug, Clone)]
pub(super) struct Parsed {
    documents: Vec<Document>,
}

/// A document that has images, by itself.
#[derive(Debug, Clone)]
struct Document {
    piece: Piece,
    /// Which of the text's images are its own.
    images: Range<usize>,
    meaning: [u8; 32],
}

/// What takes an image's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct New {
    /// The text.
    pub(super) text: String,
    /// The image's name that it must be read as; nothing if it may be any, because it stood there before.
    pub(super) says: Option<String>,
}

impl New {
    /// A name as it is to be written, in quotes if it would be no text without.
    pub(super) fn named(text: String) -> Self {
        let inside = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        let says = Some(inside.unwrap_or(&text).to_owned());
        Self { text, says }
    }
}

/// Replaces each image of `text` by what `choose` says, if it says anything.
pub fn edit_text(
    text: &str,
    mut choose: impl FnMut(&ImageScalar) -> Option<String>,
) -> Result<String, Fault> {
    let (parsed, images) = Parsed::new(text)?;
    let wanted: Vec<Option<New>> = images
        .iter()
        .map(|image| choose(image).map(New::named))
        .collect();
    parsed.replace(text, &images, &wanted)
}

impl Parsed {
    /// Reads all documents of `text`.
    pub(super) fn new(text: &str) -> Result<(Self, Vec<ImageScalar>), Fault> {
        let pieces = split(text);
        let scanned = in_parallel(text.len(), &pieces, |piece| {
            let part = text.get(piece.bytes.clone()).unwrap_or_default();
            scan(part, piece.bytes.start, piece.lines)
        });
        let (mut documents, mut images) = (Vec::new(), Vec::new());
        for (piece, scanned) in pieces.into_iter().zip(scanned) {
            let scanned = scanned?;
            if scanned.images.is_empty() {
                continue;
            }
            let first = images.len();
            images.extend(scanned.images);
            documents.push(Document {
                piece,
                images: first..images.len(),
                meaning: scanned.meaning,
            });
        }
        Ok((Self { documents }, images))
    }

    /// `text` with the images replaced for which something is `wanted`, in this order.
    ///
    /// Each document that changes is parsed again: everything in it but those images must mean what it meant.
    pub(super) fn replace(
        &self,
        text: &str,
        images: &[ImageScalar],
        wanted: &[Option<New>],
    ) -> Result<String, Fault> {
        let changed: Vec<&Document> = self
            .documents
            .iter()
            .filter(|document| wanted_of(document, wanted).iter().any(Option::is_some))
            .collect();
        let replaced = in_parallel(text.len(), &changed, |document| {
            let new = replace_in(document, text, images, wanted);
            verify(document, &new, images, wanted).map(|()| new)
        });
        let mut after = String::with_capacity(text.len() + text.len() / 8);
        let mut copied = 0;
        for (document, new) in changed.iter().zip(replaced) {
            after.push_str(
                text.get(copied..document.piece.bytes.start)
                    .unwrap_or_default(),
            );
            after.push_str(&new?);
            copied = document.piece.bytes.end;
        }
        after.push_str(text.get(copied..).unwrap_or_default());
        Ok(after)
    }
}

fn wanted_of<'all>(document: &Document, wanted: &'all [Option<New>]) -> &'all [Option<New>] {
    wanted.get(document.images.clone()).unwrap_or_default()
}

fn images_of<'all>(document: &Document, images: &'all [ImageScalar]) -> &'all [ImageScalar] {
    images.get(document.images.clone()).unwrap_or_default()
}

fn replace_in(
    document: &Document,
    text: &str,
    images: &[ImageScalar],
    wanted: &[Option<New>],
) -> String {
    let mut new = String::with_capacity(document.piece.bytes.len() * 2);
    let mut copied = document.piece.bytes.start;
    for (image, wanted) in images_of(document, images)
        .iter()
        .zip(wanted_of(document, wanted))
    {
        if let Some(wanted) = wanted {
            new.push_str(text.get(copied..image.span.start).unwrap_or_default());
            new.push_str(&wanted.text);
            copied = image.span.end;
        }
    }
    new.push_str(
        text.get(copied..document.piece.bytes.end)
            .unwrap_or_default(),
    );
    new
}

fn verify(
    document: &Document,
    new: &str,
    images: &[ImageScalar],
    wanted: &[Option<New>],
) -> Result<(), Fault> {
    let before = images_of(document, images);
    let refused = |image: &ImageScalar| Fault {
        line: image.line,
        column: image.column,
        problem: Problem::Refused {
            image: image.value.clone(),
        },
    };
    let changed = || before.iter().zip(wanted_of(document, wanted));
    let suspect = changed().find(|(_, wanted)| wanted.is_some());
    let after = scan(new, document.piece.bytes.start, document.piece.lines);
    if let Ok(Scan { images, meaning }) = &after {
        let wrong = changed()
            .zip(images)
            .find(|((image, wanted), now)| match wanted {
                Some(New { says: None, .. }) => false,
                Some(New {
                    says: Some(name), ..
                }) => now.value != *name,
                None => now.value != image.value,
            });
        if let Some(((image, _), _)) = wrong {
            return Err(refused(image));
        }
        if images.len() == before.len() && *meaning == document.meaning {
            return Ok(());
        }
    }
    suspect.map_or(Ok(()), |(image, _)| Err(refused(image)))
}

/// `work` done for all `items`, by all processors if it is much. Results keep their order.
fn in_parallel<T: Sync, R: Send>(
    bytes: usize,
    items: &[T],
    work: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    if bytes < PARALLEL || threads == 1 {
        return items.iter().map(work).collect();
    }
    // Several portions a thread, so that none waits long for the one with the largest documents.
    let portion = items.len().div_ceil(threads * 4).max(1);
    let portions: Vec<&[T]> = items.chunks(portion).collect();
    let next = std::sync::atomic::AtomicUsize::new(0);
    let mut done: Vec<(usize, Vec<R>)> = std::thread::scope(|scope| {
        let worker = || {
            let mut done = Vec::new();
            loop {
                let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                let Some(portion) = portions.get(index) else {
                    return done;
                };
                done.push((index, portion.iter().map(&work).collect()));
            }
        };
        let workers: Vec<_> = (1..threads).map(|_| scope.spawn(worker)).collect();
        let mut done = worker();
        for worker in workers {
            match worker.join() {
                Ok(more) => done.extend(more),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        done
    });
    done.sort_by_key(|(index, _)| *index);
    done.into_iter().flat_map(|(_, results)| results).collect()
}
