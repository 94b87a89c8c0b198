//! Lines that end.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use serde_json::json;
use tracing_subscriber::fmt::MakeWriter;

/// The longest line. What peers say ends up in errors, and they may say 64 KiB.
const LONGEST: usize = 4096;

/// What lines look like.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    Text,
    Json,
}

/// Writes lines to another writer, and the beginning alone of those that are too long.
#[derive(Clone, Debug)]
pub(crate) struct Short<M> {
    to: M,
    form: Form,
}

impl<M> Short<M> {
    pub(crate) fn new(to: M, form: Form) -> Self {
        Self { to, form }
    }
}

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Short<M> {
    type Writer = Short<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        Short { to: self.to.make_writer(), form: self.form }
    }

    fn make_writer_for(&'a self, metadata: &tracing::Metadata<'_>) -> Self::Writer {
        Short { to: self.to.make_writer_for(metadata), form: self.form }
    }
}

/// Each write is a line: so tracing-subscriber does it.
impl<W: Write> Write for Short<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.to.write_all(&shortened(line, self.form))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

fn shortened(line: &[u8], form: Form) -> Cow<'_, [u8]> {
    if line.len() <= LONGEST {
        return line.into();
    }
    let beginning = String::from_utf8_lossy(&line[..LONGEST]);
    let short = match form {
        Form::Text => format!("{beginning}… (of {} bytes)\n", line.len()),
        // It stays JSON.
        Form::Json => {
            let fields = json!({"message": "a line too long", "beginning": beginning});
            format!("{}\n", json!({"level": "WARN", "fields": fields, "bytes": line.len()}))
        }
    };
    short.into_bytes().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_short_stays_as_it_is() {
        assert_eq!(&*shortened(b"a line\n", Form::Text), b"a line\n");
    }

    #[test]
    fn what_is_long_is_one_line_with_its_beginning() {
        // The cut is within a character.
        let line = format!("x{}\n", "é".repeat(32 << 10));
        for form in [Form::Text, Form::Json] {
            let short = shortened(line.as_bytes(), form);
            let short = std::str::from_utf8(&short).unwrap();
            assert!(short.len() < LONGEST + 200, "{}", short.len());
            assert!(short.ends_with('\n') && short.matches('\n').count() == 1);
            assert!(short.contains("xéé") && short.contains(&line.len().to_string()));
            if matches!(form, Form::Json) {
                serde_json::from_str::<serde_json::Value>(short).unwrap();
            }
        }
    }
}
