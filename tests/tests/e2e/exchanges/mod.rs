//! Whatever HTTP works without the mesh works with it: a table of exchanges, each of which is made
//! directly and through the mesh, where both ends have to hear the same.
//!
//! The table is in `rows`, a file a group; what a row can say is in `rows/README`. A row says what is
//! sent and when, and nothing of what is to be heard: the direct connection shows that. Where the mesh
//! does something else on purpose, the row says what, with a reason of `docs/http.md`.
//! `EXCHANGES=targets cargo xtask test --e2e --debug exchanges` plays the rows alone that have
//! `targets` in their names.

mod play;
mod programs;
mod table;
mod text;
mod trace;
mod ways;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
};

use anyhow::{Context, ensure};
use futures_util::{StreamExt, stream};

use play::{Transcript, play};
use table::Row;
use ways::{Ground, Way};

const ROWS: [(&str, &str); 10] = [
    ("targets", include_str!("rows/targets.txt")),
    ("methods", include_str!("rows/methods.txt")),
    ("fields", include_str!("rows/fields.txt")),
    ("framing", include_str!("rows/framing.txt")),
    ("responses", include_str!("rows/responses.txt")),
    ("interim", include_str!("rows/interim.txt")),
    ("endings", include_str!("rows/endings.txt")),
    ("reuse", include_str!("rows/reuse.txt")),
    ("upgrades", include_str!("rows/upgrades.txt")),
    ("tracing", include_str!("rows/tracing.txt")),
];
/// What the mesh does to HTTP on purpose.
const DOCUMENT: &str = include_str!("../../../../docs/http.md");
/// How many exchanges there are at once.
const AT_ONCE: usize = 16;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_hear_through_the_mesh_what_they_hear_without_it() -> anyhow::Result<()> {
    let mut rows = table::read(&ROWS)?;
    let chosen = env::var("EXCHANGES").ok();
    rows.retain(|row| chosen.as_ref().is_none_or(|chosen| row.name.contains(chosen)));
    ensure!(!rows.is_empty(), "no row has {chosen:?} in its name");
    let ground = &Ground::lay(rows.len()).await?;
    let direct = heard(ground, &rows, Way::Direct).await?;
    for (row, direct) in rows.iter().zip(&direct) {
        let stopped = direct.stopped.as_deref();
        assert_eq!(stopped, None, "{} directly: {}", row.name, shown(direct));
    }
    let mut wrong = rows.iter().map(|_| Vec::new()).collect::<Vec<_>>();
    for way in Way::MESH {
        let rows: Vec<_> = rows.iter().map(|row| row.at(way.is_declared())).collect();
        let through = heard(ground, &rows, way).await?;
        for (((row, direct), mesh), wrong) in rows.iter().zip(&direct).zip(through).zip(&mut wrong)
        {
            if let Err(why) = as_it_should_be(row, direct, &mesh) {
                wrong.push((way, why, mesh));
            }
        }
    }
    let (mut failures, mut list) = (String::new(), String::new());
    for ((row, direct), wrong) in rows.iter().zip(&direct).zip(wrong) {
        if !wrong.is_empty() {
            let ways: Vec<_> = wrong.iter().map(|(way, ..)| way.name()).collect();
            writeln!(list, "{}: {}", row.name, ways.join(", "))?;
            failures += &told(row, direct, &wrong);
        }
    }
    assert!(failures.is_empty(), "{failures}\n== all that fail:\n{list}");
    Ok(())
}

/// What was heard in a row, ways that are alike together.
fn told(row: &Row, direct: &Transcript, wrong: &[(Way, String, Transcript)]) -> String {
    let mut told = format!("\n== {}\n  directly{}", row.name, shown(direct));
    let mut kinds = Vec::<(&str, &Transcript, Vec<&str>)>::new();
    for (way, why, mesh) in wrong {
        match kinds.iter_mut().find(|(_, other, _)| *other == mesh) {
            Some((.., ways)) => ways.push(way.name()),
            None => kinds.push((why, mesh, vec![way.name()])),
        }
    }
    for (why, mesh, ways) in kinds {
        told += &format!("\n  {}: {why}{}", ways.join(", "), shown(mesh));
    }
    told + "\n"
}

/// What both ends of all rows heard on a way.
async fn heard(ground: &Ground, rows: &[Row], way: Way) -> anyhow::Result<Vec<Transcript>> {
    let play = |(number, row)| async move { (number, one(ground, row, number, way).await) };
    let played = stream::iter(rows.iter().enumerate().map(play)).buffer_unordered(AT_ONCE);
    let played: BTreeMap<_, _> = played.collect().await;
    played.into_values().collect()
}

async fn one(ground: &Ground, row: &Row, number: usize, way: Way) -> anyhow::Result<Transcript> {
    let (from, to, server, port) = ground.ends(way, number);
    let listener = server.listen(port)?;
    let played = play(row, from, to, listener).await;
    played.with_context(|| format!("{}, {}", row.name, way.name()))
}

/// Whether the ends heard through the mesh what they should have.
fn as_it_should_be(row: &Row, direct: &Transcript, mesh: &Transcript) -> Result<(), String> {
    let nothing = Vec::new();
    let instead = row.differs.as_ref().map(|differs| &differs.instead);
    let mut names: BTreeSet<_> = direct.ends.keys().chain(mesh.ends.keys()).collect();
    names.extend(instead.into_iter().flat_map(BTreeMap::keys));
    let mut wrong = Vec::new();
    for name in names {
        let heard = mesh.ends.get(name).unwrap_or(&nothing);
        let is_right = match instead.and_then(|instead| instead.get(name)) {
            Some(patterns) => patterns.iter().all(|pattern| pattern.fits(heard)),
            None => direct.ends.get(name).unwrap_or(&nothing) == heard,
        };
        if !is_right {
            wrong.push(name.as_str());
        }
    }
    match (&mesh.stopped, wrong.is_empty()) {
        (None, true) => Ok(()),
        (Some(_), true) if row.differs.is_some() => Ok(()),
        (Some(stopped), true) => Err(format!("it stops at {stopped}")),
        (stopped, false) => {
            let stops = stopped.as_ref().map_or(String::new(), |at| format!("; it stops at {at}"));
            Err(format!("{} should hear something else{stops}", wrong.join(", ")))
        }
    }
}

fn shown(transcript: &Transcript) -> String {
    let ends = transcript.ends.iter();
    ends.map(|(name, heard)| format!("\n    {name}: {}", text::shown(heard))).collect()
}

#[test]
fn every_difference_is_documented_and_every_documented_one_has_a_row() -> anyhow::Result<()> {
    let rows = table::read(&ROWS)?;
    let reasons: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| row.differs.as_ref())
        .map(|differs| &*differs.reason)
        .collect();
    let (_, differences) =
        DOCUMENT.split_once("\n## What is different\n").context("no differences")?;
    let differences = differences.split_once("\n## ").map_or(differences, |(own, _)| own);
    let lines = differences.lines().filter_map(|line| line.strip_prefix("- **"));
    let documented: BTreeSet<_> =
        lines.filter_map(|line| line.split_once(".**")).map(|(name, _)| name).collect();
    assert_eq!(reasons, documented);
    Ok(())
}
