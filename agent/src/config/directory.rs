//! The YAML files of one directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::error::{ConfigError, Place, Problem};

/// Endings of the files that are read, as `kubectl apply -f <dir>` has them.
const ENDINGS: [&str; 3] = ["yaml", "yml", "json"];

/// One file as it was read.
#[derive(Debug)]
pub(super) struct File {
    pub(super) path: Arc<Path>,
    pub(super) text: String,
}

/// Reads the YAML files of `dir`, in the order of their names.
///
/// Files in subdirectories are left out, as by `kubectl apply -f` without `-R`, and so are
/// names that begin with a dot: editors and Kubernetes' ConfigMap volumes keep copies of
/// files under such names. `watch` is called with each file a link leads to before that file
/// is read, so that no change to it is missed. Files that cannot be read are added to
/// `problems`.
///
/// # Errors
/// When the directory itself cannot be read, or a file not watched.
pub(super) fn read(
    dir: &Path,
    watch: impl Fn(&Path) -> io::Result<()>,
    problems: &mut Vec<Problem>,
) -> Result<Vec<File>, ConfigError> {
    let mut files = Vec::new();
    for path in list(dir)? {
        if let Ok(real) = fs::canonicalize(&path) {
            watch(&real).map_err(|cause| ConfigError::Watch { dir: dir.to_owned(), cause })?;
        }
        match text(&path) {
            Ok(Some(text)) => files.push(File { path: path.into(), text }),
            Ok(None) => {}
            Err((what, hint)) => {
                let place = Place::new(&path.into(), None);
                problems.push(Problem::new(place, what).hint(hint));
            }
        }
    }
    Ok(files)
}

fn list(dir: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            _ if dir.as_os_str().is_empty() => "name a directory with --config-dir",
            io::ErrorKind::NotFound => "create it, or name another one with --config-dir",
            io::ErrorKind::NotADirectory => "name the directory the file is in",
            io::ErrorKind::PermissionDenied => "the agent's user needs to read and enter it",
            _ => "name another one with --config-dir",
        };
        ConfigError::Directory { dir: dir.to_owned(), cause: words(&error), hint }
    };
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes()[0] == b'.');
        let ours = path.extension().is_some_and(|ending| ENDINGS.iter().any(|e| ending == *e));
        if ours && !hidden {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// The text of a file; `None` when it is a directory or gone by now.
pub(super) fn text(path: &Path) -> Result<Option<String>, (String, &'static str)> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "the agent's user needs to read it",
            io::ErrorKind::NotFound => "it is a link that leads nowhere",
            _ => "move it out of the directory if it is not meant for the agent",
        };
        (format!("cannot be read: {}", words(&error)), hint)
    };
    let kind = match fs::metadata(path) {
        Ok(metadata) => metadata.file_type(),
        Err(error) if fs::symlink_metadata(path).is_ok() => return Err(failed(error)),
        Err(_) => return Ok(None),
    };
    if kind.is_dir() {
        return Ok(None);
    }
    // Reading a pipe would wait for a writer.
    if !kind.is_file() {
        return Err(("is not a regular file".to_owned(), "replace it by a regular file"));
    }
    match fs::read(path) {
        Ok(bytes) => String::from_utf8(bytes).map(Some).map_err(|error| {
            let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
            (format!("is not UTF-8 in line {line}"), "save it as UTF-8")
        }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// What went wrong, without the number that people have no use for.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
