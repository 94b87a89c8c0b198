//! The table: files of rows, a row an exchange. What the files look like is said in `rows/README`.

use std::collections::BTreeMap;

use anyhow::{Context, bail, ensure};

use super::text::{Pattern, Speech, filled};

/// An exchange.
#[derive(Clone, Debug)]
pub(super) struct Row {
    /// `group/name`, where a file is a group.
    pub(super) name: String,
    /// What happens, in this order.
    pub(super) steps: Vec<Step>,
    /// How the server behaves by itself.
    pub(super) server: Server,
    /// Where the mesh does something else on purpose.
    pub(super) differs: Option<Differs>,
    /// It does so where HTTP is declared alone: else what is said is no HTTP to it.
    pub(super) declared: bool,
    /// How what servers hear is compared.
    pub(super) servers: Servers,
    /// What servers hear of the trace's context is compared too.
    pub(super) traced: bool,
}

impl Row {
    /// As it is at a port that is declared as HTTP, or at one that nothing is said of.
    pub(super) fn at(&self, declared: bool) -> Self {
        let differs = self.differs.clone().filter(|_| declared || !self.declared);
        Self { differs, ..self.clone() }
    }
}

/// What the server does that no step says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Server {
    /// Nothing.
    #[default]
    Plain,
    /// It closes a connection on which it has answered when it is asked there again.
    OneAnswer,
    /// The same, with a reset.
    OneAnswerReset,
    /// It takes a connection when the one before it has ended, and ends those whose client did.
    OneConnection,
    /// It reads no more than the first head of a connection.
    HeadsAlone,
}

/// How what servers hear is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Servers {
    /// Connection by connection.
    Apart,
    /// As if all of it had come on one.
    Together,
    /// Not at all.
    Whatever,
}

/// A client by its number, or the server's connection on which that client was heard last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    Client(usize),
    Server(usize),
}

/// Something that one end does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) who: Who,
    pub(super) does: Does,
}

/// What it does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Does {
    /// Sends, and goes on once the other end has heard the last of it where `heard` says so.
    Say { what: Speech, heard: bool },
    /// Waits for this to come.
    Hear(Vec<u8>),
    /// Waits until the other end has ended; how is compared where `how` says so.
    HearEnd { how: bool },
    /// Ends its sending half.
    Shut,
    /// Closes: with a reset where there is something that it has not read.
    Close,
    /// Resets.
    Reset,
    /// Connects, where it does not by speaking.
    Connect,
}

/// What is heard through the mesh in place of what is heard without it.
#[derive(Clone, Debug)]
pub(super) struct Differs {
    /// Why, by its name in `docs/http.md`.
    pub(super) reason: String,
    /// By connection; those that are not here hear the same.
    pub(super) instead: BTreeMap<String, Vec<Pattern>>,
}

impl Differs {
    /// Whether `end` hears something else.
    pub(super) fn is_for(&self, end: &str) -> bool {
        self.instead.contains_key(end)
    }

    /// Whether this was heard in place of what is heard without the mesh.
    pub(super) fn fits(&self, ends: &BTreeMap<String, Vec<u8>>) -> bool {
        self.instead.iter().all(|(end, patterns)| {
            let heard = ends.get(end).map_or(&[][..], Vec::as_slice);
            patterns.iter().all(|pattern| pattern.fits(heard))
        })
    }
}

/// Reads the files of a table, each a group's name and its text.
pub(super) fn read(files: &[(&str, &str)]) -> anyhow::Result<Vec<Row>> {
    let mut rows = Vec::<Row>::new();
    for (group, text) in files {
        for row in Reader::default().group(group, text)? {
            ensure!(rows.iter().all(|other| other.name != row.name), "two rows {}", row.name);
            rows.push(row);
        }
    }
    Ok(rows)
}

/// What has a name in a file.
#[derive(Default)]
struct Reader<'a> {
    texts: BTreeMap<&'a str, &'a str>,
    forms: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Reader<'a> {
    fn group(mut self, group: &str, text: &'a str) -> anyhow::Result<Vec<Row>> {
        let mut rows = Vec::new();
        let mut lines = text.lines().enumerate().peekable();
        while let Some((number, line)) = lines.next() {
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let mut steps = Vec::new();
            while let Some((_, line)) = lines.next_if(|(_, line)| line.starts_with("  ")) {
                steps.push(line.trim());
            }
            let row = self.entry(line, steps);
            let row = row.with_context(|| format!("{group}, line {}: {line}", number + 1))?;
            rows.extend(row.map(|row| Row { name: format!("{group}/{}", row.name), ..row }));
        }
        Ok(rows)
    }

    /// One entry; a row, unless it only says what a name stands for.
    fn entry(&mut self, line: &'a str, steps: Vec<&'a str>) -> anyhow::Result<Option<Row>> {
        if let Some(rest) = line.strip_prefix("let ") {
            let (name, text) = rest.split_once(" = ").context("let NAME = TEXT")?;
            self.texts.insert(name.trim(), text.trim());
        } else if let Some(name) = line.strip_prefix("form ") {
            ensure!(!steps.is_empty(), "a form without steps");
            self.forms.insert(name.trim(), steps);
        } else if let Some(name) = line.strip_prefix("row ") {
            return self.row(name.trim(), &steps, &[]).map(Some);
        } else {
            let (form, rest) = line.split_once(": ").context("neither let, form nor row")?;
            let form = self.forms.get(form).context("no such form")?;
            let mut words = separated(rest).into_iter().map(str::trim);
            let name = words.next().context("a row without a name")?;
            let arguments: Vec<_> = words.collect();
            // What is behind it is this row's alone.
            let steps: Vec<_> = form.iter().copied().chain(steps).collect();
            return self.row(name, &steps, &arguments).map(Some);
        }
        Ok(None)
    }

    fn row(&self, name: &str, steps: &[&str], arguments: &[&str]) -> anyhow::Result<Row> {
        let mut row = Row {
            name: name.to_owned(),
            steps: Vec::new(),
            server: Server::Plain,
            differs: None,
            declared: false,
            servers: Servers::Apart,
            traced: false,
        };
        let meaning = |name: &str| match name.parse::<usize>() {
            Ok(number) => arguments.get(number.checked_sub(1)?).copied(),
            Err(_) => self.texts.get(name).copied(),
        };
        for line in steps {
            let line = filled(line, meaning)?;
            self.step(&mut row, &line).with_context(|| line.clone())?;
        }
        ensure!(!row.steps.is_empty(), "a row in which nothing happens");
        Ok(row)
    }

    fn step(&self, row: &mut Row, line: &str) -> anyhow::Result<()> {
        if let Some(option) = line.strip_prefix("option ") {
            match option {
                "servers together" => row.servers = Servers::Together,
                "servers whatever" => row.servers = Servers::Whatever,
                "differs where HTTP is declared" => row.declared = true,
                "traced" => row.traced = true,
                "server closes when asked again" => row.server = Server::OneAnswer,
                "server resets when asked again" => row.server = Server::OneAnswerReset,
                "server has one connection at a time" => row.server = Server::OneConnection,
                "server reads heads alone" => row.server = Server::HeadsAlone,
                _ => bail!("no such option"),
            }
            return Ok(());
        }
        if let Some(difference) = line.strip_prefix("! ") {
            let Some(differs) = &mut row.differs else {
                let reason = difference.to_owned();
                row.differs = Some(Differs { reason, instead: BTreeMap::new() });
                return Ok(());
            };
            let (end, pattern) = match difference.split_once(" never hears ") {
                Some((end, piece)) => (end, Pattern::without(piece)?),
                None => {
                    let parts = difference.split_once(" hears ").context("! END hears TEXT")?;
                    let heard = if parts.1 == "nothing" { "" } else { parts.1 };
                    (parts.0, Pattern::parse(heard)?)
                }
            };
            let end = match end {
                "client" => "client 1",
                "server" => "server 1",
                other => other,
            };
            differs.instead.entry(end.to_owned()).or_default().push(pattern);
            return Ok(());
        }
        row.steps.push(step(line)?);
        Ok(())
    }
}

/// The parts of a line between bars.
fn separated(line: &str) -> Vec<&str> {
    let bars = line.match_indices('|').map(|(at, _)| at);
    let bars = bars.filter(|&at| at == 0 || line.as_bytes()[at - 1] != b'\\');
    let mut parts = Vec::new();
    let mut from = 0;
    for at in bars.chain([line.len()]) {
        parts.push(&line[from..at]);
        from = at + 1;
    }
    parts
}

fn step(line: &str) -> anyhow::Result<Step> {
    let (number, rest) = match line.split_at_checked(1) {
        Some((digit, rest)) if digit.parse::<usize>().is_ok() => (digit.parse()?, rest),
        _ => (1, line),
    };
    for (sign, who) in [(">", Who::Client(number)), ("<", Who::Server(number))] {
        let Some(rest) = rest.strip_prefix(sign) else { continue };
        let (heard, text) = match rest.strip_prefix(sign) {
            Some(rest) => (false, rest),
            None => (true, rest),
        };
        let what = Speech::parse(text.strip_prefix(' ').context("no space behind the sign")?)?;
        return Ok(Step { who, does: Does::Say { what, heard } });
    }
    let mut words = line.splitn(3, ' ');
    let who = words.next().unwrap_or_default();
    let next = words.next().context("who does nothing")?;
    let (number, does) = match next.parse::<usize>() {
        Ok(number) => (number, words.next().context("does nothing")?),
        Err(_) => (1, line.split_once(' ').map_or("", |(_, rest)| rest)),
    };
    let who = match who {
        "client" => Who::Client(number),
        "server" => Who::Server(number),
        _ => bail!("neither client nor server"),
    };
    let does = match does {
        "shuts" => Does::Shut,
        "closes" => Does::Close,
        "resets" => Does::Reset,
        "connects" => Does::Connect,
        "hears the end" => Does::HearEnd { how: true },
        "hears any end" => Does::HearEnd { how: false },
        other => {
            let what = other.strip_prefix("hears ").context("no such step")?;
            Does::Hear(Speech::parse(what)?.bytes())
        }
    };
    Ok(Step { who, does })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(text: &str) -> Vec<Row> {
        read(&[("g", text)]).unwrap()
    }

    fn say(who: Who, text: &str, heard: bool) -> Step {
        Step { who, does: Does::Say { what: Speech::parse(text).unwrap(), heard } }
    }

    #[test]
    fn a_row_is_what_happens_in_its_order() {
        let text = "# why\nlet ok = 200¶\n\nrow a row\n  > a¶\n  2>> b\n  < {ok}\n  2<< c\n  \
                    server 2 shuts\n  client hears 2 x\n  client hears the end\n  \
                    client 2 hears any end\n  client resets\n  \
                    option servers together\n";
        let [row] = &rows(text)[..] else { panic!() };
        assert_eq!(row.name, "g/a row");
        let expected = [
            say(Who::Client(1), "a¶", true),
            say(Who::Client(2), "b", false),
            say(Who::Server(1), "200¶", true),
            say(Who::Server(2), "c", false),
            Step { who: Who::Server(2), does: Does::Shut },
            Step { who: Who::Client(1), does: Does::Hear("2 x".into()) },
            Step { who: Who::Client(1), does: Does::HearEnd { how: true } },
            Step { who: Who::Client(2), does: Does::HearEnd { how: false } },
            Step { who: Who::Client(1), does: Does::Reset },
        ];
        assert_eq!(row.steps, expected);
        assert!(row.servers == Servers::Together && row.differs.is_none());
    }

    #[test]
    fn a_form_makes_a_row_of_a_line() {
        let text = "form get\n  > GET {1} {2}\nget: a | /a\\|b | 1\nget: c | /c | 2\n  < x\n";
        let [a, c] = &rows(text)[..] else { panic!() };
        assert_eq!((&*a.name, &*c.name), ("g/a", "g/c"));
        assert_eq!(a.steps, [say(Who::Client(1), "GET /a\\|b 1", true)]);
        assert_eq!(c.steps[1], say(Who::Server(1), "x", true));
    }

    #[test]
    fn a_difference_has_a_reason_and_says_who_hears_what() {
        let text = "row a\n  > a\n  ! Two lengths\n  ! client hears 400…\n  \
                    ! client 1 never hears 1\n  ! server hears nothing\n";
        let differs = rows(text).pop().unwrap().differs.unwrap();
        assert_eq!(differs.reason, "Two lengths");
        let fits = |end: &str, heard: &[u8]| {
            differs.instead[end].iter().map(|pattern| pattern.fits(heard)).collect::<Vec<_>>()
        };
        assert_eq!(fits("client 1", b"400 No"), [true, true]);
        assert_eq!(fits("client 1", b"400 1"), [true, false]);
        assert_eq!(fits("server 1", b""), [true]);
    }

    #[test]
    fn what_is_no_table_is_refused_with_its_line() {
        for (text, why) in [
            ("row a\n", "nothing happens"),
            ("\nrow a\n  jumps\n", "line 2: row a"),
            ("row a\n  > {b}\n", "stands for nothing"),
            ("get: a | b\n", "no such form"),
            ("row a\n  > a\nrow a\n  > a\n", "two rows g/a"),
            ("row a\n  > a\n  option what\n", "no such option"),
            ("row a\n  >a\n", "no space"),
        ] {
            let error = format!("{:#}", read(&[("g", text)]).unwrap_err());
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }
}
