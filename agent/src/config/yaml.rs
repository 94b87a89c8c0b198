//! YAML documents as trees in which every node knows its line and column.

use std::{fmt, thread};

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, SeqAccess},
};
use serde_saphyr::{DuplicateKeyPolicy, MessageFormatter, Spanned};

/// A line and column of a file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Position {
    pub(super) line: u64,
    pub(super) column: u64,
}

/// One YAML node.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) value: Value,
}

/// What a node holds. Scalars are what they look like, with `yes` and `no` as booleans, so that
/// a number or boolean where Kubernetes wants a string is refused here as it is by `kubectl`.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    /// Beyond [`Value::Integer`].
    Unsigned(u64),
    Float(f64),
    String(String),
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
}

/// One `key: value` of a mapping, in the order written.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) value: Node,
}

/// One step from a node to a node below.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Field(&'a str),
    Item(usize),
}

impl<'a> From<&'a str> for Step<'a> {
    fn from(field: &'a str) -> Self {
        Step::Field(field)
    }
}

impl From<usize> for Step<'_> {
    fn from(item: usize) -> Self {
        Step::Item(item)
    }
}

impl Node {
    /// The node `steps` below; `None` where there is none or it is null.
    pub(super) fn at(&self, steps: &[Step<'_>]) -> Option<&Node> {
        let node = steps.iter().try_fold(self, |node, step| node.step(*step))?;
        (!matches!(node.value, Value::Null)).then_some(node)
    }

    /// Where the node `steps` below is, or the nearest one above it that is there.
    pub(super) fn nearest_position(&self, steps: &[Step<'_>]) -> Position {
        let mut node = self;
        for step in steps {
            match node.step(*step) {
                Some(below) => node = below,
                None => break,
            }
        }
        node.position
    }

    /// The text of the field `name`, if it is text.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.field(name)?.as_text()
    }

    /// The text it is, if it is text.
    pub(super) fn as_text(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    /// What it is a sequence of; nothing where it is none.
    pub(super) fn items(&self) -> &[Node] {
        match &self.value {
            Value::Sequence(items) => items,
            _ => &[],
        }
    }

    /// What is in it by keys; nothing where it is no mapping.
    pub(super) fn entries(&self) -> &[Entry] {
        match &self.value {
            Value::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The node of its field `name`, if it has it.
    pub(super) fn field(&self, name: &str) -> Option<&Node> {
        self.at(&[name.into()])
    }

    fn step(&self, step: Step<'_>) -> Option<&Node> {
        match (&self.value, step) {
            (Value::Mapping(entries), Step::Field(name)) => {
                entries.iter().find(|entry| entry.key == name).map(|entry| &entry.value)
            }
            (Value::Sequence(items), Step::Item(index)) => items.get(index),
            _ => None,
        }
    }
}

/// Stack of the thread that parses: a level of nesting takes up to 40 KiB in a debug build.
const STACK: usize = 16 << 20;
/// Levels of nesting; a Kubernetes object has some twenty.
const DEPTH: usize = 64;

/// Why a text is no YAML, and where it stops being so.
type SyntaxError = (Option<Position>, String);

/// Reads every document of `text`; documents without content are left out.
///
/// # Errors
/// With the place and the reason of the first syntax error.
pub(super) fn parse(text: &str) -> Result<Vec<Node>, SyntaxError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .stack_size(STACK)
            .spawn_scoped(scope, || parse_here(text))
            .map_err(|error| (None, format!("no thread to parse it on: {error}")))?
            .join()
            .unwrap_or_else(|_| Err((None, "the parser failed".to_owned())))
    })
}

fn parse_here(text: &str) -> Result<Vec<Node>, SyntaxError> {
    let options = serde_saphyr::options! {
        // As large as a dump of a whole cluster; what grows by aliases alone is bound by the
        // limits the library has for those.
        budget: serde_saphyr::budget! {
            max_depth: DEPTH,
            max_documents: 100_000,
            max_events: 50_000_000,
            max_nodes: 50_000_000,
            max_total_scalar_bytes: 1 << 30,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        with_snippet: false,
    };
    serde_saphyr::from_multiple_with_options(text, options).map_err(|error| {
        let position = error
            .location()
            .filter(|location| location.line() > 0)
            .map(|at| Position { line: at.line(), column: at.column() });
        let what = serde_saphyr::DefaultMessageFormatter.format_message(&error).into_owned();
        (position, what)
    })
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { position: position(&spanned), value: spanned.value })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Visitor)
    }
}

fn position<T>(spanned: &Spanned<T>) -> Position {
    Position { line: spanned.referenced.line(), column: spanned.referenced.column() }
}

struct Visitor;

impl<'de> de::Visitor<'de> for Visitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(i64::try_from(value).map_or(Value::Unsigned(value), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Value::Sequence(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Spanned<String>, Node>()? {
            entries.push(Entry { position: position(&key), key: key.value, value });
        }
        Ok(Value::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_node_and_key_knows_its_place() {
        let documents = parse("---\n# empty\n---\na: 1\nb:\n  - x\n  - {c: true}\n").unwrap();
        let [root] = documents.as_slice() else { panic!("{documents:?}") };
        let place =
            |steps: &[Step<'_>]| root.at(steps).map(|n| (n.position.line, n.position.column));
        assert_eq!(place(&["a".into()]), Some((4, 4)));
        assert_eq!(place(&["b".into(), 0.into()]), Some((6, 5)));
        assert_eq!(place(&["b".into(), 1.into(), "c".into()]), Some((7, 9)));
        assert_eq!(place(&["b".into(), 2.into()]), None);
        let Value::Mapping(entries) = &root.value else { panic!("{root:?}") };
        assert_eq!((entries[1].position.line, entries[1].position.column), (5, 1));
    }

    #[test]
    fn json_is_read_as_yaml() {
        let documents =
            parse("{\n\t\"a\": \"\\u00e9\\/\",\n\t\"b\": [1, null, -1.5]\n}\n").unwrap();
        assert_eq!(documents[0].text("a"), Some("é/"));
    }

    #[test]
    fn a_syntax_error_and_a_repeated_key_have_a_place() {
        for (text, line) in [("a: [1, 2", 1), ("a: 1\nb: 2\na: 3\n", 3), ("a:\n\t- b\n", 2)] {
            let (position, what) = parse(text).unwrap_err();
            assert_eq!(position.map(|p| p.line), Some(line), "{text:?}: {what}");
        }
    }

    #[test]
    fn aliases_and_nesting_cannot_be_used_to_exhaust_memory_or_stack() {
        let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
        for level in 1..7 {
            let above = vec![format!("*a{}", level - 1); 10].join(", ");
            bomb.push_str(&format!("a{level}: &a{level} [{above}]\n"));
        }
        assert!(parse(&bomb).is_err());
        let sequences = |depth: usize| parse(&"- ".repeat(depth));
        assert!(sequences(DEPTH).is_ok());
        assert!(sequences(DEPTH + 1).is_err());
        assert!(parse(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in "\\PC*|[-:\\[\\]{}&*!|>'\"#%@a0~.\\n\\t ]*") {
            let _ = parse(&text);
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&String::from_utf8_lossy(&bytes));
        }
    }
}
