//! The laws of pins, positions and sections hold for the inputs in `fuzz/`: those to begin with, and those that once
//! broke a law.

use std::fs;
use std::path::PathBuf;

use rocket_replicated::internals::laws;
use support::program::repository;

/// The files in the folders of a target, and what is in them.
fn inputs(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folders = ["seeds", "found"].map(|folder| repository().join("fuzz").join(folder).join(target));
    let files = folders.into_iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten();
    let inputs: Vec<_> = files
        .map(|file| {
            let path = file.unwrap().path();
            let input = fs::read(&path).unwrap();
            (path, input)
        })
        .collect();
    assert!(inputs.len() > 5, "{} inputs for {target}", inputs.len());
    inputs
}

/// Prints the file, so that a law that is broken says by which.
fn each(target: &str, law: impl Fn(&[u8])) {
    for (path, input) in inputs(target) {
        println!("{}", path.display());
        law(&input);
    }
}

#[test]
fn of_pins() {
    each("pin", laws::pin);
}

#[test]
fn of_positions() {
    each("positions", laws::positions);
}

#[test]
fn of_sections() {
    each("section", |input| laws::section(str::from_utf8(input).unwrap()));
}
