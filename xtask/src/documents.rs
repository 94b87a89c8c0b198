//! What documents say of tests is so: `docs/security.md` names those that prove its promises.

use std::{collections::BTreeMap, fs, path::PathBuf};

use crate::cargo;

const SECURITY: &str = "docs/security.md";
/// Where tests are.
const FOLDERS: [&str; 5] = ["agent/src", "agent-common/src", "tests", "deploy", "xtask/src"];

/// The text of every Rust file in which there may be tests, by its path without its end: `tests.rs`
/// in a folder `config` is `…/config/tests`.
fn sources() -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders: Vec<PathBuf> =
        FOLDERS.iter().map(|folder| cargo::root().join(folder)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Some(name) = path.to_str().and_then(|path| path.strip_suffix(".rs")) {
                let name = name.strip_suffix("/mod").unwrap_or(name).to_owned();
                found.insert(name, fs::read_to_string(&path).unwrap());
            }
        }
    }
    found
}

/// The names of tests in a text: `module::test`, in backquotes.
fn named(text: &str) -> Vec<&str> {
    let is_of_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
    let quoted = text.split('`').skip(1).step_by(2);
    quoted.filter(|word| word.contains("::") && word.chars().all(is_of_name)).collect()
}

/// Whether there is such a test.
fn exists(sources: &BTreeMap<String, String>, test: &str) -> bool {
    let Some((module, function)) = test.rsplit_once("::") else { return false };
    let file = format!("/{}", module.replace("::", "/"));
    let signature = format!("fn {function}(");
    sources.iter().filter(|(path, _)| path.ends_with(&file)).any(|(_, text)| {
        let before = text.split_once(&signature).map_or("", |(before, _)| before);
        // The attribute is right before the function.
        let attribute = before.trim_end_matches("async ").trim_end().lines().next_back();
        attribute.is_some_and(|line| line.trim().starts_with("#[") && line.contains("test"))
    })
}

fn security() -> String {
    fs::read_to_string(cargo::root().join(SECURITY)).unwrap()
}

/// What is below a heading, without the headings of its own level or a higher one.
fn below<'a>(text: &'a str, heading: &str) -> &'a str {
    let (_, rest) = text.split_once(&format!("{heading}\n")).unwrap();
    rest.split_once("\n## ").map_or(rest, |(own, _)| own)
}

#[test]
fn every_test_that_is_named_exists() {
    let (text, sources) = (security(), sources());
    let names = named(&text);
    assert!(names.len() > 100, "{} names: are they in another form?", names.len());
    let missing: Vec<_> = names.into_iter().filter(|name| !exists(&sources, name)).collect();
    assert!(missing.is_empty(), "{SECURITY} names tests that are not there: {missing:#?}");
}

#[test]
fn every_promise_has_a_test_beside_it() {
    let text = security();
    let promises = below(&text, "# What is promised").split("\n\n");
    let promises = promises.filter(|paragraph| !paragraph.trim().is_empty());
    let attempts = below(&text, "## What a pod can try").lines();
    let is_row = |line: &&str| line.starts_with("| ") && !line.ends_with("| Tests |");
    for promise in promises.chain(attempts.filter(is_row)) {
        assert!(!named(promise).is_empty(), "no test beside: {promise}");
    }
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let text = "#[test]\nfn one() {}\n\nfn helper() {}\n#[tokio::test]\nasync fn two() {}\n";
    let sources = BTreeMap::from([("/a/b/tests".to_owned(), text.to_owned())]);
    for name in ["tests::one", "b::tests::two"] {
        assert!(exists(&sources, name), "{name}");
    }
    for name in ["tests::helper", "tests::three", "c::tests::one", "ests::one"] {
        assert!(!exists(&sources, name), "{name}");
    }
    assert_eq!(named("`a::b`, `SO_MARK`, `a b::c` and `d::e_2`"), ["a::b", "d::e_2"]);
}
