//! How the program ends, as whoever runs it sees it.

use std::process::Command;

fn ends_with(arguments: &[&str]) -> std::io::Result<Option<i32>> {
    let program = env!("CARGO_BIN_EXE_orch-provision");
    let output = Command::new(program).args(arguments).output()?;
    Ok(output.status.code())
}

#[test]
fn a_wrong_command_line_is_not_taken_for_changes() {
    assert_eq!(ends_with(&["plan"]).unwrap(), Some(64));
    assert_eq!(ends_with(&["plan", "--role", "king"]).unwrap(), Some(64));
    assert_eq!(ends_with(&["plan", "--help"]).unwrap(), Some(0));
    assert_eq!(ends_with(&["--version"]).unwrap(), Some(0));
}

#[test]
fn a_plan_without_a_configuration_could_not_look() {
    let arguments = [
        "plan",
        "--role",
        "agent",
        "--config",
        "/nonexistent/node.json",
    ];
    assert_eq!(ends_with(&arguments).unwrap(), Some(3));
}
