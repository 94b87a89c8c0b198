//! The files that are to be read.

use std::{
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::config::{
    directory::{self, File},
    error::{ConfigError, Place, Problem},
};

/// What stands for standard input.
const STDIN: &str = "-";

/// Nothing could be read where something was to be.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A path leads nowhere.
    #[error("{} does not exist (hint: name a file, a directory, or `-` for standard input)", .0.display())]
    Nowhere(PathBuf),
    /// A directory without any file that is read.
    #[error("{} holds no .yaml, .yml or .json (hint: subdirectories are named on their own)", .0.display())]
    Empty(PathBuf),
    /// A directory cannot be read.
    #[error(transparent)]
    Directory(#[from] ConfigError),
    /// Standard input cannot be read.
    #[error("cannot read standard input: {0}")]
    Stdin(io::Error),
}

/// Reads `paths`. What cannot be read in them is added to `problems`.
pub(in crate::config) fn files(
    paths: &[PathBuf],
    problems: &mut Vec<Problem>,
) -> Result<Vec<File>, InputError> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == STDIN {
            let mut text = String::new();
            io::stdin().read_to_string(&mut text).map_err(InputError::Stdin)?;
            files.push(File { path: Path::new("stdin").into(), text });
        } else if path.is_dir() {
            let before = (files.len(), problems.len());
            files.extend(directory::read(path, |_| Ok(()), problems)?);
            if (files.len(), problems.len()) == before {
                return Err(InputError::Empty(path.clone()));
            }
        } else {
            match directory::text(path) {
                Ok(Some(text)) => files.push(File { path: path.as_path().into(), text }),
                Ok(None) => return Err(InputError::Nowhere(path.clone())),
                Err((what, hint)) => {
                    let place = Place::new(&path.as_path().into(), None);
                    problems.push(Problem::new(place, what).hint(hint));
                }
            }
        }
    }
    Ok(files)
}
