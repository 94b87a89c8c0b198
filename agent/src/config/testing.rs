//! Configurations of one file, for unit tests.

use std::path::Path;

use super::{MeshSettings, compile::Compiler, directory::File, files::compile};
use crate::mesh::Snapshot;

/// What has been loaded so far.
pub(super) struct Loader {
    settings: MeshSettings,
    compiler: Compiler,
    version: u64,
}

impl Loader {
    pub(super) fn new(settings: MeshSettings) -> Self {
        Self { compiler: Compiler::new(settings.clone()), settings, version: 0 }
    }

    /// The snapshot of one file and the warnings about it; or the problems in it, one a line.
    pub(super) fn load(&mut self, text: &str) -> Result<(Snapshot, Vec<String>), String> {
        let file = File { path: Path::new("mesh.yaml").into(), text: text.to_owned() };
        let (mut next, mut problems) = (self.compiler.clone(), Vec::new());
        let (changed, warnings) = compile(&[file], &self.settings, &mut next, &mut problems);
        if problems.is_empty() {
            let mut snapshot = next.snapshot().clone();
            self.version += u64::from(changed);
            snapshot.version = self.version;
            self.compiler = next;
            return Ok((snapshot, warnings));
        }
        problems.sort();
        Err(problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n"))
    }
}

/// The snapshot of one file, as `node-b` sees it; or the problems in it, one a line.
pub(super) fn load(text: &str) -> Result<Snapshot, String> {
    let settings = MeshSettings { node: "node-b".into(), ..MeshSettings::default() };
    Loader::new(settings).load(text).map(|(snapshot, _)| snapshot)
}
