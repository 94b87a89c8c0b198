//! Fits a YAML tree into a Kubernetes type, and notices what does not fit.
//!
//! `k8s-openapi` knows every field of every kind and, like the API server's default, skips
//! those it does not know. A field that is skipped is a setting its author believes to be
//! in force, so this deserializer reports each one, with its place and path.

use std::{cell::RefCell, fmt};

use serde::{
    Deserialize,
    de::{self, DeserializeSeed, IntoDeserializer, Unexpected, Visitor, value::StrDeserializer},
    forward_to_deserialize_any,
};

use super::{
    error::nearest,
    yaml::{Entry, Node, Position, Value},
};

/// Field names up to this many are listed when none is near the unknown one.
const LISTED: usize = 8;

/// Something that does not fit.
#[derive(Debug)]
pub(super) struct Misfit {
    pub(super) position: Position,
    pub(super) what: String,
    pub(super) hint: Option<String>,
}

/// Reads `node` as a `T`.
///
/// # Errors
/// With every unknown field, and the first value of a wrong type.
pub(super) fn fit<'de, T: Deserialize<'de>>(node: &'de Node) -> Result<T, Vec<Misfit>> {
    let unknown = RefCell::default();
    let trail = Trail::Root;
    let result = T::deserialize(Fitting { node, trail: &trail, unknown: &unknown });
    let mut misfits = unknown.into_inner();
    match result {
        Ok(value) if misfits.is_empty() => return Ok(value),
        Ok(_) => {}
        Err(error) => {
            let error = error.at(node, &trail);
            misfits.extend(error.place.map(|(position, path)| Misfit {
                position,
                what: format!("{path}: {}", error.what),
                hint: error.hint,
            }));
        }
    }
    Err(misfits)
}

/// The way from the object down to a node; printed as `spec.ports[0].name`.
enum Trail<'a> {
    Root,
    Field(&'a Trail<'a>, &'a str),
    Item(&'a Trail<'a>, usize),
}

impl fmt::Display for Trail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Trail::Root => f.write_str("the object"),
            Trail::Field(Trail::Root, name) => f.write_str(name),
            Trail::Field(above, name) => write!(f, "{above}.{name}"),
            Trail::Item(above, index) => write!(f, "{above}[{index}]"),
        }
    }
}

/// One node on its way into a Rust value.
#[derive(Clone, Copy)]
struct Fitting<'de, 'c> {
    node: &'de Node,
    trail: &'c Trail<'c>,
    unknown: &'c RefCell<Vec<Misfit>>,
}

/// A value of a wrong type; gets its place from the innermost node around it.
#[derive(Debug)]
struct WrongType {
    what: String,
    hint: Option<String>,
    place: Option<(Position, String)>,
}

impl WrongType {
    fn at(mut self, node: &Node, trail: &Trail<'_>) -> Self {
        self.place.get_or_insert_with(|| (node.position, trail.to_string()));
        self
    }
}

impl fmt::Display for WrongType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl std::error::Error for WrongType {}

impl de::Error for WrongType {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self { what: what.to_string(), hint: None, place: None }
    }

    fn invalid_type(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let scalar = matches!(
            unexpected,
            Unexpected::Bool(_)
                | Unexpected::Signed(_)
                | Unexpected::Unsigned(_)
                | Unexpected::Float(_)
        );
        let hint = (scalar && expected.to_string() == "a string")
            .then(|| "quote the value to make it a string".to_owned());
        Self { hint, ..Self::custom(format_args!("{unexpected}, expected {expected}")) }
    }
}

impl<'de> de::Deserializer<'de> for Fitting<'de, '_> {
    type Error = WrongType;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongType> {
        match &self.node.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Integer(value) => visitor.visit_i64(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(value) => visitor.visit_borrowed_str(value),
            Value::Sequence(items) => visitor.visit_seq(Items { of: self, items, next: 0 }),
            Value::Mapping(entries) => visitor.visit_map(Fields {
                of: self,
                entries: entries.iter(),
                known: None,
                value: None,
            }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, WrongType> {
        match self.node.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, WrongType> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, WrongType> {
        if let Value::Mapping(entries) = &self.node.value {
            for entry in entries.iter().filter(|entry| !fields.contains(&entry.key.as_str())) {
                self.unknown.borrow_mut().push(Misfit {
                    position: entry.position,
                    what: format!(
                        "{} is not a field of {name}",
                        Trail::Field(self.trail, &entry.key)
                    ),
                    hint: field_hint(&entry.key, fields),
                });
            }
            // What is unknown is told already.
            let entries =
                Fields { of: self, entries: entries.iter(), known: Some(fields), value: None };
            return visitor.visit_map(entries);
        }
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

fn field_hint(unknown: &str, fields: &[&str]) -> Option<String> {
    if let Some(near) = nearest(unknown, fields.iter().copied()) {
        return Some(format!("did you mean `{near}`?"));
    }
    (fields.len() <= LISTED).then(|| format!("the fields are {}", fields.join(", ")))
}

struct Items<'de, 'c> {
    of: Fitting<'de, 'c>,
    items: &'de [Node],
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Items<'de, '_> {
    type Error = WrongType;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, WrongType> {
        let Some(node) = self.items.get(self.next) else { return Ok(None) };
        let trail = Trail::Item(self.of.trail, self.next);
        self.next += 1;
        seed.deserialize(Fitting { node, trail: &trail, unknown: self.of.unknown })
            .map(Some)
            .map_err(|error| error.at(node, &trail))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len() - self.next)
    }
}

struct Fields<'de, 'c> {
    of: Fitting<'de, 'c>,
    entries: std::slice::Iter<'de, Entry>,
    /// Those to be read; `None` where they are data.
    known: Option<&'static [&'static str]>,
    value: Option<&'de Entry>,
}

impl<'de> de::MapAccess<'de> for Fields<'de, '_> {
    type Error = WrongType;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, WrongType> {
        let known = self.known;
        let is_known =
            |entry: &&Entry| known.is_none_or(|known| known.contains(&entry.key.as_str()));
        let Some(entry) = self.entries.find(is_known) else { return Ok(None) };
        self.value = Some(entry);
        let key: StrDeserializer<'_, WrongType> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, WrongType> {
        let Some(Entry { key, value: node, .. }) = self.value.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        let trail = Trail::Field(self.of.trail, key);
        seed.deserialize(Fitting { node, trail: &trail, unknown: self.of.unknown })
            .map_err(|error| error.at(node, &trail))
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Pod;

    use super::{super::yaml, *};

    fn misfits(text: &str) -> Vec<String> {
        let documents = yaml::parse(text).unwrap();
        match fit::<Pod>(&documents[0]) {
            Ok(_) => Vec::new(),
            Err(misfits) => misfits
                .into_iter()
                .map(|m| {
                    let Position { line, column } = m.position;
                    let hint = m.hint.map(|hint| format!(" ({hint})")).unwrap_or_default();
                    format!("{line}:{column} {}{hint}", m.what)
                })
                .collect(),
        }
    }

    #[test]
    fn every_unknown_field_is_reported_with_its_path_and_what_was_meant() {
        let text = "\
kind: Pod
spec:
  containers:
  - name: app
    imaeg: app:1
status:
  podIps: []
  gibberish: 1
";
        assert_eq!(
            misfits(text),
            [
                "5:5 spec.containers[0].imaeg is not a field of Container (did you mean `image`?)",
                "7:3 status.podIps is not a field of PodStatus (did you mean `podIPs`?)",
                "8:3 status.gibberish is not a field of PodStatus",
            ]
        );
    }

    #[test]
    fn a_value_of_a_wrong_type_is_reported_where_it_is() {
        assert_eq!(
            misfits("metadata:\n  labels:\n    version: 1\n"),
            ["3:14 metadata.labels.version: integer `1`, expected a string \
              (quote the value to make it a string)"]
        );
        assert_eq!(misfits("spec: [a]\n"), ["1:7 spec: sequence, expected PodSpec"]);
    }

    #[test]
    fn keys_that_are_data_are_no_fields() {
        let text = "
metadata:
  annotations: {anything/goes: here}
  creationTimestamp: 2026-01-02T03:04:05Z
  managedFields:
  - fieldsV1: {f:metadata: {f:labels: {'.': {}}}}
status:
  podIPs: null
";
        assert!(misfits(text).is_empty());
    }
}
