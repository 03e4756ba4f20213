//! The compiler's messages for users of `rocket_db_pools` who have not changed everything yet.
//!
//! The programs in `tests/diagnostics` do not compile. Lines of `//~` in each program say what the compiler's messages
//! must contain. The test runs the compiler itself, with the libraries that it was built with: a crate for such tests
//! would build all of them anew.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::program::repository;

/// The libraries that this test was built with, as Cargo names them. Cargo has nothing left to build, unless the test
/// was run with `--package`: the features may then differ.
fn libraries(names: &[&str]) -> Vec<(String, PathBuf)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["test", "--no-run", "--locked", "--message-format", "json", "--test", "programs"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    // The variables that Cargo sets for the test's package. Build scripts that depend on them would run again.
    let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_", "CARGO_PRIMARY_PACKAGE"];
    let told = std::env::vars().map(|(name, _)| name);
    for name in told.filter(|name| of_package.iter().any(|prefix| name.starts_with(prefix))) {
        cargo.env_remove(name);
    }
    let output = cargo.current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let messages = String::from_utf8(output.stdout).unwrap();
    let messages = messages.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let library = |message: Value| {
        let name = message["target"]["name"].as_str()?.to_owned();
        let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
        let file = files.map(PathBuf::from).find(|file| file.extension().is_some_and(|is| is == "rlib"))?;
        names.contains(&&*name).then_some((name, file))
    };
    messages.filter_map(library).collect()
}

/// The compiler's messages for a program.
fn messages(program: &Path, libraries: &[(String, PathBuf)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition", "2024", "--crate-type", "bin", "--emit", "metadata", "--out-dir"]);
    rustc.arg(folder.path()).arg("-L");
    rustc.arg(format!("dependency={}", libraries[0].1.parent().unwrap().display()));
    for (name, file) in libraries {
        rustc.arg("--extern").arg(format!("{name}={}", file.display()));
    }
    let output = rustc.arg(program).output().unwrap();
    let messages = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success(), "{}: it compiles\n{messages}", program.display());
    messages
}

/// The text with all line breaks and spaces reduced to single spaces.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn messages_lead_to_the_remedy() {
    const USED: [&str; 4] = ["rocket", "rocket_db_pools", "rocket_replicated", "sqlx"];

    let libraries = libraries(&USED);
    assert_eq!(libraries.len(), USED.len(), "{libraries:?}");
    let folder = repository().join("tests/diagnostics");
    let mut programs: Vec<_> = folder.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    programs.sort();
    assert!(programs.len() >= 5, "{programs:?}");
    let mut lacking = Vec::new();
    for program in programs {
        let source = std::fs::read_to_string(&program).unwrap();
        let expected: Vec<_> = source.lines().filter_map(|line| line.strip_prefix("//~ ")).collect();
        assert!(!expected.is_empty(), "{}", program.display());
        let messages = messages(&program, &libraries);
        let said = words(&messages);
        let unsaid: Vec<_> =
            expected.into_iter().filter(|expected| !said.contains(&words(expected))).collect();
        if !unsaid.is_empty() {
            lacking.push(format!("{}: nothing says {unsaid:#?}:\n{messages}", program.display()));
        }
    }
    assert!(lacking.is_empty(), "{}", lacking.join("\n"));
}
