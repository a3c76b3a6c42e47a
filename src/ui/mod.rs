//! What people and programs see: bars on a terminal, plain lines in a pipe, JSON lines on request.
//!
//! Boundary: the only module that knows indicatif, and the only one that prints. Progress goes to
//! stderr; stdout carries results. Domains report through their own traits, which [`Step`]
//! implements.

mod describe;
mod uploads;

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::images::event::ImageEvent;
use crate::kube::{ApplyEvent, ApplyResult};
use crate::progress::Progress;

pub use describe::describe_node_event;
use uploads::{SHOWN_FROM, Uploads, short};

/// How results and progress are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Output {
    /// For people: bars on a terminal, lines elsewhere.
    #[default]
    Plain,
    /// For programs: one JSON object a line.
    Json,
}

enum Mode {
    Terminal(MultiProgress),
    Lines,
    Json,
}

/// The one writer of a run.
#[derive(Clone)]
pub struct Ui {
    mode: Arc<Mode>,
    started: Instant,
    phases: Arc<Mutex<Vec<Phase>>>,
}

/// A finished step and how long it took.
#[derive(Debug, Clone, Serialize)]
pub struct Phase {
    pub step: String,
    pub seconds: f64,
}

impl Ui {
    pub fn new(output: Output) -> Self {
        let bars = MultiProgress::new();
        let mode = match output {
            Output::Json => Mode::Json,
            // indicatif shows nothing at all, messages included, on a terminal that cannot move its cursor.
            Output::Plain if std::io::stderr().is_terminal() && !bars.is_hidden() => {
                Mode::Terminal(bars)
            }
            Output::Plain => Mode::Lines,
        };
        Self {
            mode: Arc::new(mode),
            started: Instant::now(),
            phases: Arc::default(),
        }
    }

    pub fn is_json(&self) -> bool {
        matches!(*self.mode, Mode::Json)
    }

    /// Seconds since the run began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The finished steps, in the order in which they finished.
    pub fn phases(&self) -> Vec<Phase> {
        self.phases
            .lock()
            .map(|phases| phases.clone())
            .unwrap_or_default()
    }

    /// Begins a step that people wait for.
    pub fn step(&self, name: &str) -> Arc<Step> {
        let bar = match &*self.mode {
            Mode::Terminal(bars) => {
                let bar = bars.add(ProgressBar::new_spinner());
                if let Ok(style) =
                    ProgressStyle::with_template("{spinner} {prefix:<12} {elapsed:>4} {wide_msg}")
                {
                    bar.set_style(style);
                }
                bar.set_prefix(name.to_owned());
                bar.enable_steady_tick(Duration::from_millis(120));
                Some(bar)
            }
            _ => None,
        };
        self.emit(name, "started", "");
        let uploads = match (&*self.mode, &bar) {
            (Mode::Terminal(bars), Some(bar)) => {
                Some(Mutex::new(Uploads::new(bars.clone(), bar.clone())))
            }
            _ => None,
        };
        let step = Arc::new(Step {
            ui: self.clone(),
            name: name.to_owned(),
            bar,
            uploads,
            started: Instant::now(),
            last_sample: Mutex::new(Instant::now()),
            last_said: Mutex::new(Some((Instant::now(), String::new()))),
        });
        if matches!(*self.mode, Mode::Lines)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(Step::break_silence(Arc::downgrade(&step)));
        }
        step
    }

    /// A line that belongs to no step.
    pub fn note(&self, text: &str) {
        self.emit("", "note", text);
    }

    /// A result, for stdout.
    pub fn result(&self, text: &str) {
        // A closed pipe is the reader's way to say that it has seen enough.
        let _ = writeln!(std::io::stdout().lock(), "{text}");
    }

    /// A result as one line of JSON, for stdout.
    pub fn result_json(&self, value: &impl Serialize) {
        if let Ok(text) = serde_json::to_string(value) {
            self.result(&text);
        }
    }

    /// The error that ends the run, with its chain of causes.
    pub fn error(&self, error: &anyhow::Error) {
        if self.is_json() {
            let causes: Vec<_> = error.chain().map(ToString::to_string).collect();
            self.line(&serde_json::json!({"event": "error", "causes": causes}).to_string());
            return;
        }
        let mut text = format!("error: {error}");
        for cause in error.chain().skip(1) {
            text.push_str(&format!(
                "\n  because: {}",
                cause.to_string().replace('\n', "\n  ")
            ));
        }
        self.line(&text);
    }

    fn emit(&self, step: &str, event: &str, text: &str) {
        match &*self.mode {
            Mode::Json => self.line(
                &serde_json::json!({
                    "event": event, "step": step, "text": text,
                    "elapsed_ms": u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
                })
                .to_string(),
            ),
            // The spinner itself says that a step runs; a pipe gets a line when there is something to say.
            _ if event == "started" => {}
            _ if step.is_empty() => self.line(text),
            _ => self.line(&format!("{step}: {text}")),
        }
    }

    /// An image's event as one object: its own fields, the step, the time, and the text that people would read.
    fn image_event(&self, step: &str, event: &ImageEvent) {
        let Ok(serde_json::Value::Object(mut fields)) = serde_json::to_value(event) else {
            return;
        };
        fields.insert("step".to_owned(), step.into());
        if let Some(text) = event.describe() {
            fields.insert("text".to_owned(), text.into());
        }
        let elapsed = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        fields.insert("elapsed_ms".to_owned(), elapsed.into());
        self.line(&serde_json::Value::Object(fields).to_string());
    }

    fn line(&self, text: &str) {
        match &*self.mode {
            Mode::Terminal(bars) => {
                let _ = bars.println(text);
            }
            _ => {
                let _ = writeln!(std::io::stderr().lock(), "{text}");
            }
        }
    }
}

/// A running step; dropping it without [`Step::done`] leaves its line as it was.
pub struct Step {
    ui: Ui,
    name: String,
    bar: Option<ProgressBar>,
    /// On a terminal alone.
    uploads: Option<Mutex<Uploads>>,
    started: Instant,
    /// When a log was last given one of many similar lines.
    last_sample: Mutex<Instant>,
    /// What was said last, and when; `None` once the step is done.
    last_said: Mutex<Option<(Instant, String)>>,
}

/// In a log, a step that says nothing for this long says that it still runs.
const SILENCE: Duration = Duration::from_secs(30);

impl Step {
    async fn break_silence(step: Weak<Self>) {
        loop {
            tokio::time::sleep(SILENCE / 6).await;
            let Some(step) = step.upgrade() else { return };
            let Ok(mut said) = step.last_said.lock() else {
                return;
            };
            let Some((when, text)) = said.as_mut() else {
                return;
            };
            if when.elapsed() >= SILENCE {
                *when = Instant::now();
                let seconds = step.started.elapsed().as_secs();
                let text = format!("{text} (still running, {seconds} s)");
                step.ui.emit(&step.name, "note", text.trim_start());
            }
        }
    }

    /// Shows one of many similar lines. A log is given one every few seconds, and the `last` of them: all of them would drown it.
    fn sample(&self, text: &str, last: bool) {
        const INTERVAL: Duration = Duration::from_secs(5);
        if let (None, Ok(mut sampled)) = (&self.bar, self.last_sample.lock()) {
            if !last && sampled.elapsed() < INTERVAL {
                return;
            }
            *sampled = Instant::now();
        }
        self.note(text);
    }

    /// Writes one line of this step.
    fn tell(&self, text: &str) {
        if let Ok(mut said) = self.last_said.lock()
            && said.is_some()
        {
            *said = Some((Instant::now(), text.to_owned()));
        }
        self.ui.emit(&self.name, "note", text);
    }

    /// Ends the step with one line that says what came of it.
    pub fn done(&self, text: &str) {
        let seconds = self.started.elapsed().as_secs_f64();
        self.clear();
        if let Ok(mut said) = self.last_said.lock() {
            *said = None;
        }
        if let Ok(mut phases) = self.ui.phases.lock() {
            phases.push(Phase {
                step: self.name.clone(),
                seconds,
            });
        }
        self.ui
            .emit(&self.name, "done", &format!("{text} ({seconds:.1} s)"));
    }

    fn clear(&self) {
        if let Some(Ok(mut uploads)) = self.uploads.as_ref().map(Mutex::lock) {
            uploads.clear();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Some bytes of a blob have left.
    fn upload(&self, component: &str, digest: &str, sent: u64, total: u64) {
        match self.uploads.as_ref().map(Mutex::lock) {
            Some(Ok(mut uploads)) => uploads.update(component, digest, sent, total),
            Some(Err(_)) => {}
            None if total < SHOWN_FROM => {}
            None => {
                let what = format!("{component}: sending {}", short(digest));
                self.bytes(&what, sent, Some(total));
            }
        }
    }

    /// Shows something that is worth a line of its own even on a terminal.
    pub fn say(&self, text: &str) {
        self.tell(text);
    }
}

impl Progress for Step {
    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.set_message(text.to_owned()),
            None => self.tell(text),
        }
    }

    fn bytes(&self, what: &str, done: u64, total: Option<u64>) {
        const MIB: u64 = 1024 * 1024;
        let text = match total {
            Some(total) => format!("{what}: {} of {} MiB", done / MIB, total / MIB),
            None => format!("{what}: {} MiB", done / MIB),
        };
        self.sample(&text, total == Some(done));
    }
}

impl crate::kube::Reporter for Step {
    fn report(&self, event: ApplyEvent) {
        match &event {
            ApplyEvent::Failed { .. } | ApplyEvent::Ready { .. } => self.say(&event.to_string()),
            ApplyEvent::Applying {
                result: ApplyResult::Unchanged,
                ..
            } => {}
            _ => self.note(&event.to_string()),
        }
    }
}

impl crate::images::event::Reporter for Step {
    fn event(&self, event: ImageEvent) {
        if self.ui.is_json() {
            self.ui.image_event(&self.name, &event);
            return;
        }
        if let ImageEvent::UploadProgress {
            component,
            digest,
            sent,
            total,
        } = &event
        {
            self.upload(component, digest, *sent, *total);
            return;
        }
        let Some(text) = event.describe() else {
            return;
        };
        match event {
            ImageEvent::Substituted { .. }
            | ImageEvent::BuildFinished { .. }
            | ImageEvent::Incomplete { .. }
            | ImageEvent::Unattested { .. }
            | ImageEvent::Pushed { .. } => {
                self.say(&text);
            }
            ImageEvent::BuildLine { line, .. } => {
                if !line.trim().is_empty() {
                    self.sample(&text, false);
                }
            }
            ImageEvent::Summary { .. } => {}
            _ => self.note(&text),
        }
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        self.clear();
    }
}
