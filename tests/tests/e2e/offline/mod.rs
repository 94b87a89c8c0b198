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

#[test]
fn a_request_under_the_security_of_the_reference_is_explained_rule_by_rule() -> anyhow::Result<()> {
    let files = Files::of(&[("application.yaml", APPLICATION), ("security.yaml", SECURITY)])?;
    let ask =
        ["explain", "frontend", "go-app", "-f", ".", "--method", "DELETE", "--path", "/api/a"];
    let (said, code) = files.says(&ask)?;
    assert_eq!((said.as_str(), code), (include_str!("explained.txt"), Some(0)));
    let (json, _) = files.says(&[&ask[..], &["-o", "json"]].concat())?;
    let json: serde_json::Value = serde_json::from_str(&json)?;
    let judgement = &json["judgements"][0];
    assert_eq!(judgement["outcome"], "refused");
    assert_eq!(judgement["policy"], "default/go-app-authz");
    let miss = &judgement["policies"][0]["rules"][0]["outcome"]["misses"][0];
    assert_eq!(miss["place"], "to[0].operation.methods");
    assert_eq!(
        (&miss["wanted"], &miss["seen"]),
        (&serde_json::json!(["GET", "POST"]), &"DELETE".into())
    );
    Ok(())
}

#[test]
fn who_passes_under_the_security_of_the_reference_is_who_it_names() -> anyhow::Result<()> {
    let files = Files::of(&[("application.yaml", APPLICATION), ("security.yaml", SECURITY)])?;
    for (source, ask, outcome) in [
        (
            "frontend",
            "GET /api/a",
            "  allowed: by rule 0 of ALLOW AuthorizationPolicy default/go-app-authz",
        ),
        ("frontend", "GET /health", "  refused: no rule of ALLOW policies matches"),
        ("istio-system/prometheus", "GET /metrics", "  allowed: by rule 1 of ALLOW"),
        ("istio-system/prometheus", "GET /api/a", "  refused: no rule of ALLOW policies matches"),
        ("sa:shop/other", "GET /api/a", "  refused: no rule of ALLOW policies matches"),
        ("outside", "GET /api/a", "  refused: plaintext is refused: mutual TLS is STRICT by"),
    ] {
        let (method, path) = ask.split_once(' ').expect("a method and a path");
        let ask = ["explain", source, "go-app.default:8080", "--method", method, "--path", path];
        let (said, _) = files.says(&[&ask[..], &["-f", "."]].concat())?;
        assert!(said.contains(outcome), "{source} {path}: {said}");
    }
    Ok(())
}

#[test]
fn what_cannot_be_obeyed_is_not_explained() -> anyhow::Result<()> {
    let files = Files::of(&[("shop.yaml", SHOP), ("mistakes.yaml", MISTAKES)])?;
    let ended = files.run(&["explain", "shop/db", "order.shop", "-f", "."])?;
    let said = String::from_utf8(ended.stderr)?;
    assert!(said.contains("mistakes.yaml:10:9: ") && said.contains("`sluice validate`"), "{said}");
    assert_eq!(ended.status.code(), Some(1));
    Ok(())
}

#[test]
fn what_is_in_force_for_a_pod_is_listed() -> anyhow::Result<()> {
    let files = Files::of(&[("application.yaml", APPLICATION), ("security.yaml", SECURITY)])?;
    let (said, code) = files.says(&["policy", "go-app", "-f", "."])?;
    assert_eq!((said.as_str(), code), (include_str!("policies.txt"), Some(0)));
    Ok(())
}
