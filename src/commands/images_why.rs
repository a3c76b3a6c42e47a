//! `orch images why` and `orch images hash`: how names come about, in words and for programs.

use std::path::Path;
use std::time::Instant;

use serde_json::json;

use super::images_text::Text;
use crate::cli::images::HashArgs;
use crate::images::context::stat_cache::StatCache;
use crate::images::context::{Context, ContextError};
use crate::images::execute::Explanation;

/// How many changed files are printed; JSON has all.
const FILES: usize = 100;

/// A component's name, its parts, and what changed since the last push.
pub(super) fn explain(explanation: &Explanation) -> Text {
    let Explanation {
        source,
        input,
        identities,
        locked,
        difference,
    } = explanation;
    let (bytes, files) = source.context.size();
    let changes = match locked {
        None => vec!["it was never pushed".to_owned()],
        Some(entry) if entry.input == input.hash.to_string() => {
            vec![format!("nothing; pushed as {}", entry.pinned())]
        }
        Some(_) => difference.phrases(FILES),
    };
    let mut plain = format!(
        "{}:{}\n  input       {}\n",
        source.component.name, input.tag, input.hash
    );
    for (part, hash) in &input.parts {
        plain.push_str(&format!("  {part:<11} {hash}\n"));
    }
    plain.push_str(&format!(
        "  files       {files}, {bytes} bytes, from {}\n",
        source.component.context.display()
    ));
    plain.push_str(&format!(
        "  platform    {}\n",
        source.component.platforms.join(", ")
    ));
    for (reference, identity) in identities {
        plain.push_str(&format!("  from        {reference} = {identity}\n"));
    }
    for change in &changes {
        plain.push_str(&format!("  changed     {change}\n"));
    }
    let json = json!({
        "component": source.component.name,
        "tag": input.tag,
        "input": input.hash.to_string(),
        "parts": input.parts,
        "files": files,
        "bytes": bytes,
        "platforms": source.component.platforms,
        "from": identities,
        "changed": changes.join(", "),
        "pushed": locked.as_ref().map(|entry| entry.pinned()),
        "changes": difference,
    });
    Text { plain, json }
}

/// A context's hash, and how much had to be read for it.
pub(super) fn hash(arguments: &HashArgs, cache: &Path, rehash: bool) -> Result<Text, ContextError> {
    let started = Instant::now();
    let folder = &arguments.folder;
    let dockerfile = match &arguments.dockerfile {
        Some(file) => file.clone(),
        None => folder.join("Dockerfile"),
    };
    let cache = StatCache::new(cache);
    let cache = if rehash { cache.rehash() } else { cache };
    let context = Context::scan(folder, &dockerfile)?;
    let contents = context.contents(Some(&cache))?;
    let (bytes, files) = context.size();
    let (bytes_read, files_read) = contents.read();
    let plain = format!(
        "{}  {} ({files} files, {bytes} bytes)\n",
        contents.hash(),
        folder.display()
    );
    let json = json!({
        "folder": folder,
        "context": contents.hash().to_string(),
        "files": files,
        "bytes": bytes,
        "files_read": files_read,
        "bytes_read": bytes_read,
        "seconds": started.elapsed().as_secs_f64(),
    });
    Ok(Text { plain, json })
}
