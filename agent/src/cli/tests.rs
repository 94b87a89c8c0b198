//! What is installed is started with options that there are.

use std::{collections::BTreeSet, env, fs, path::PathBuf};

use clap::{CommandFactory, Parser};
use serde_json::Value;

use super::Cli;

fn deployed(file: &str) -> String {
    // Of the clone that is tested, which need not be the one that was compiled.
    let agent = env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs the tests");
    let path = PathBuf::from(agent).join("../deploy").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_manifests_start_programs_with_options_that_are_understood() {
    let objects: Vec<Value> =
        serde_saphyr::from_multiple(&deployed("manifests/sluice.yaml")).unwrap();
    let pods = objects.iter().map(|object| &object["spec"]["template"]["spec"]);
    let lists = pods.flat_map(|pod| [&pod["initContainers"], &pod["containers"]]);
    let mut started = Vec::new();
    for container in lists.filter_map(Value::as_array).flatten() {
        let arguments = container["args"].as_array().unwrap().iter();
        let arguments = arguments.map(|argument| argument.as_str().unwrap());
        started.push(container["name"].as_str().unwrap());
        if let Err(error) = Cli::try_parse_from(["sluice"].into_iter().chain(arguments)) {
            panic!("{}: {error}", started.last().unwrap());
        }
    }
    assert_eq!(started, ["check", "agent", "ca"]);
}

/// The manifests hold the defaults; a template may have more.
#[test]
fn the_charts_templates_name_flags_that_there_are() {
    for (template, programs) in
        [("agent-daemonset.yaml", ["agent", "check"].as_slice()), ("ca-deployment.yaml", &["ca"])]
    {
        let cli = Cli::command();
        let commands = programs.iter().map(|program| cli.find_subcommand(program).unwrap());
        let known: BTreeSet<_> = commands
            .flat_map(|command| command.get_arguments())
            .filter_map(|a| a.get_long())
            .collect();
        let text = deployed(&format!("chart/templates/{template}"));
        let named: BTreeSet<_> = text.split_whitespace().filter_map(flag).collect();
        assert!(!named.is_empty(), "{template} names no flag");
        let unknown: Vec<_> = named.difference(&known).collect();
        assert!(unknown.is_empty(), "{template}: {unknown:?}");
    }
}

/// The flag that a word of a template sets: `--log-format={{` or `"--log=%s"`.
fn flag(word: &str) -> Option<&str> {
    word.trim_start_matches('"').strip_prefix("--")?.split('=').next()
}
