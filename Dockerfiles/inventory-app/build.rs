//! Tells cargo that the embedded migrations are input too.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
