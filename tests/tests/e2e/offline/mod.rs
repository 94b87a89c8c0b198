//! What the program says about YAML that no agent has.

use std::process::{Command, Output, Stdio};

use sluice_tests::agent_program;

const APPLICATION: &str = include_str!("application.yaml");
const MISTAKES: &str = include_str!("mistakes.yaml");
const SECURITY: &str = include_str!("security.yaml");
const SHOP: &str = include_str!("shop.yaml");
const TRAFFIC: &str = include_str!("traffic.yaml");

/// Files in a directory of their own, where the program runs.
struct Files(tempfile::TempDir);

impl Files {
    fn of(files: &[(&str, &str)]) -> anyhow::Result<Self> {
        let dir = tempfile::tempdir()?;
        for (name, text) in files {
            std::fs::write(dir.path().join(name), text)?;
        }
        Ok(Self(dir))
    }

    fn run(&self, arguments: &[&str]) -> anyhow::Result<Output> {
        let mut command = Command::new(agent_program()?);
        command.current_dir(self.0.path()).args(arguments).stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// What it prints, and the code it ends with.
    fn says(&self, arguments: &[&str]) -> anyhow::Result<(String, Option<i32>)> {
        let ended = self.run(arguments)?;
        Ok((String::from_utf8(ended.stdout)?, ended.status.code()))
    }
}

#[test]
fn the_traffic_of_the_reference_is_told_to_be_not_obeyed_and_its_misplaced_fields_are_shown()
-> anyhow::Result<()> {
    let files = Files::of(&[("application.yaml", APPLICATION), ("traffic.yaml", TRAFFIC)])?;
    let (said, code) = files.says(&["validate", "-f", "application.yaml", "-f", "traffic.yaml"])?;
    let expected = include_str!("traffic.txt");
    assert_eq!((said.as_str(), code), (expected, Some(0)));
    Ok(())
}

#[test]
fn there_is_nothing_to_say_against_the_security_of_the_reference() -> anyhow::Result<()> {
    let files = Files::of(&[("application.yaml", APPLICATION), ("security.yaml", SECURITY)])?;
    let (said, code) = files.says(&["validate", "-f", "."])?;
    let expected = "\
read: 1 AuthorizationPolicy, 1 PeerAuthentication, 1 Service
looked at for their pods: 3 Deployment
0 errors, 0 warnings, 2 files
";
    assert_eq!((said.as_str(), code), (expected, Some(0)));
    Ok(())
}

#[test]
fn ten_mistakes_that_people_make_are_shown_where_they_are() -> anyhow::Result<()> {
    let files = Files::of(&[("shop.yaml", SHOP), ("mistakes.yaml", MISTAKES)])?;
    let (said, code) = files.says(&["validate", "-f", "shop.yaml", "-f", "mistakes.yaml"])?;
    let expected = include_str!("mistakes.txt");
    assert_eq!((said.as_str(), code), (expected, Some(1)));
    let (json, code) = files.says(&["validate", "-f", "mistakes.yaml", "-o", "json"])?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let first = &json["findings"][0];
    assert_eq!((first["line"].as_u64(), first["severity"].as_str()), (Some(10), Some("error")));
    assert_eq!(code, Some(1));
    Ok(())
}

#[test]
fn standard_input_is_read_and_a_path_that_leads_nowhere_is_named() -> anyhow::Result<()> {
    let files = Files::of(&[("mistakes.yaml", MISTAKES)])?;
    let mut command = Command::new(agent_program()?);
    command.args(["validate", "-f", "-"]);
    command.stdin(std::fs::File::open(files.0.path().join("mistakes.yaml"))?);
    let said = String::from_utf8(command.output()?.stdout)?;
    assert!(said.starts_with("stdin:10:9: error: "), "{said}");
    let ended = files.run(&["validate", "-f", "nowhere.yaml"])?;
    let expected = "error: nowhere.yaml does not exist (hint: name a file, a directory, or `-` for \
                    standard input)\n";
    assert_eq!(String::from_utf8(ended.stderr)?, expected);
    Ok(())
}
