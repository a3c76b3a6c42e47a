//! The pin editor: any text has images or an error, and putting names in and taking them out again gives the same bytes.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orch::images::pin::edit_text;

fuzz_target!(|text: &str| {
    let mut before = Vec::new();
    let Ok(same) = edit_text(text, |image| {
        before.push(text[image.span.clone()].to_owned());
        None
    }) else {
        return;
    };
    assert_eq!(same, text, "nothing was asked for");
    let pin = format!("docker.io/me/app:in-0123456789ab@sha256:{}", "0".repeat(64));
    // What cannot be replaced without changing more is refused, which is an answer.
    let Ok(pinned) = edit_text(text, |_| Some(pin.clone())) else {
        return;
    };
    let mut count = 0;
    let again = edit_text(&pinned, |image| {
        assert_eq!(image.value, pin);
        count += 1;
        Some(pin.clone())
    });
    assert_eq!(again.as_ref(), Ok(&pinned), "pinning again changes nothing");
    assert_eq!(count, before.len());
});
