//! The directory and its changes, by events of the kernel and never by waiting a time.

use std::{
    fs, io,
    os::unix::{self, net::UnixListener},
    path::PathBuf,
    time::Duration,
};

use tempfile::TempDir;
use tokio::time::timeout;

use super::*;
use crate::mesh::Snapshot;

/// Long enough for a loaded machine; nothing but a failure lasts so long.
const DEADLINE: Duration = Duration::from_secs(20);

fn pod(name: &str, ip: &str) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{}}, \
         status: {{podIP: {ip}}}}}\n"
    )
}

/// A source on a directory of its own.
struct Running {
    dir: PathBuf,
    source: FileSource,
    store: Arc<SnapshotStore>,
    versions: watch::Receiver<u64>,
    _parent: TempDir,
}

fn start(dir: &Path, store: Arc<SnapshotStore>) -> Result<FileSource, ConfigError> {
    FileSource::start(dir, MeshSettings::default(), store, &Essential::default())
}

/// Starts a source on what `fill` writes into the directory.
fn running(fill: impl FnOnce(&Path) -> io::Result<()>) -> Running {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("mesh");
    fs::create_dir(&dir).unwrap();
    fill(&dir).unwrap();
    let store = Arc::new(SnapshotStore::default());
    let versions = store.subscribe();
    let source = start(&dir, store.clone()).unwrap();
    Running { dir, source, store, versions, _parent: parent }
}

impl Running {
    /// `name=address` of every pod of the newest snapshot.
    fn pods(&self) -> Vec<String> {
        let snapshot = self.store.load();
        let mut pods: Vec<_> =
            snapshot.workloads().map(|w| format!("{}={}", w.name, w.ips[0])).collect();
        pods.sort();
        pods
    }

    async fn pods_become(&mut self, pods: &[&str]) {
        while self.pods() != pods {
            timeout(DEADLINE, self.versions.changed())
                .await
                .unwrap_or_else(|_| panic!("{:?} never became {pods:?}", self.pods()))
                .unwrap();
        }
    }

    async fn state_becomes(&mut self, is: impl FnMut(&SourceState) -> bool) -> SourceState {
        timeout(DEADLINE, self.source.state.wait_for(is)).await.unwrap().unwrap().clone()
    }

    /// Replaces a file as editors do.
    fn rename_over(&self, name: &str, text: &str) {
        let draft = self.dir.join(format!(".{name}.draft"));
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.dir.join(name)).unwrap();
    }
}

#[tokio::test]
async fn a_file_renamed_over_written_added_or_removed_is_followed() {
    let mut mesh = running(|dir| fs::write(dir.join("a.yaml"), pod("a", "10.0.0.1")));
    assert_eq!(mesh.pods(), ["a=10.0.0.1"]);
    mesh.rename_over("a.yaml", &pod("a", "10.0.0.2"));
    mesh.pods_become(&["a=10.0.0.2"]).await;
    fs::write(mesh.dir.join("a.yaml"), pod("a", "10.0.0.3")).unwrap();
    mesh.pods_become(&["a=10.0.0.3"]).await;
    fs::write(mesh.dir.join("b.json"), pod("b", "10.0.0.4").trim_start_matches("---")).unwrap();
    mesh.pods_become(&["a=10.0.0.3", "b=10.0.0.4"]).await;
    fs::remove_file(mesh.dir.join("a.yaml")).unwrap();
    mesh.pods_become(&["b=10.0.0.4"]).await;
}

#[tokio::test]
async fn a_config_map_volume_is_followed() {
    let version = |dir: &Path, name: &str, ip: &str| {
        let data = dir.join(name);
        fs::create_dir(&data)?;
        fs::write(data.join("a.yaml"), pod("a", ip))?;
        unix::fs::symlink(name, dir.join("..data_tmp"))?;
        fs::rename(dir.join("..data_tmp"), dir.join("..data"))
    };
    let mut mesh = running(|dir| {
        version(dir, "..2026_1", "10.0.0.1")?;
        unix::fs::symlink("..data/a.yaml", dir.join("a.yaml"))
    });
    for (name, former, ip) in
        [("..2026_2", "..2026_1", "10.0.0.2"), ("..2026_3", "..2026_2", "10.0.0.3")]
    {
        version(&mesh.dir, name, ip).unwrap();
        fs::remove_dir_all(mesh.dir.join(former)).unwrap();
        mesh.pods_become(&[&format!("a={ip}")]).await;
    }
}

#[tokio::test]
async fn the_file_behind_a_link_is_followed() {
    let elsewhere = tempfile::tempdir().unwrap();
    let file = elsewhere.path().join("pods");
    fs::write(&file, pod("a", "10.0.0.1")).unwrap();
    let mut mesh = running(|dir| unix::fs::symlink(&file, dir.join("a.yaml")));
    fs::write(&file, pod("a", "10.0.0.2")).unwrap();
    mesh.pods_become(&["a=10.0.0.2"]).await;
}

#[tokio::test]
async fn a_directory_that_comes_back_is_followed() {
    let mut mesh = running(|dir| fs::write(dir.join("a.yaml"), pod("a", "10.0.0.1")));
    let gone = mesh.dir.with_file_name("gone");
    fs::rename(&mesh.dir, &gone).unwrap();
    let error = mesh.state_becomes(|state| state.error.is_some()).await.error.unwrap();
    assert!(error.contains("no such file or directory (hint: create it"), "{error}");
    assert_eq!(mesh.pods(), ["a=10.0.0.1"]);
    fs::create_dir(&mesh.dir).unwrap();
    mesh.rename_over("a.yaml", &pod("a", "10.0.0.2"));
    mesh.pods_become(&["a=10.0.0.2"]).await;
    mesh.rename_over("a.yaml", &pod("a", "10.0.0.3"));
    mesh.pods_become(&["a=10.0.0.3"]).await;
}

#[tokio::test]
async fn the_last_good_snapshot_stays_until_the_error_is_mended() {
    let mut mesh = running(|dir| fs::write(dir.join("a.yaml"), pod("a", "10.0.0.1")));
    let loaded_at = mesh.source.state.borrow().loaded_at;
    mesh.rename_over("a.yaml", &pod("a", "10.0.0.2").replace("podIP", "podIp"));
    mesh.rename_over("b.yaml", &pod("b", "10.0.0.3"));
    let state = mesh.state_becomes(|state| state.error.is_some()).await;
    let error = state.error.unwrap();
    assert!(error.contains("mesh/a.yaml:2:"), "{error}");
    assert!(error.ends_with("(hint: did you mean `podIP`?)"), "{error}");
    assert_eq!((mesh.pods(), state.loaded_at), (vec!["a=10.0.0.1".to_owned()], loaded_at));

    mesh.rename_over("a.yaml", &pod("a", "10.0.0.2"));
    mesh.pods_become(&["a=10.0.0.2", "b=10.0.0.3"]).await;
    let state = mesh.state_becomes(|state| state.error.is_none()).await;
    assert!(state.loaded_at > loaded_at);
}

#[tokio::test]
async fn the_last_of_many_changes_is_never_lost() {
    let mut mesh = running(|dir| fs::write(dir.join("a.yaml"), pod("a", "10.0.0.1")));
    for round in 2..50 {
        mesh.rename_over("a.yaml", &pod("a", &format!("10.0.0.{round}")));
        tokio::task::yield_now().await;
    }
    mesh.pods_become(&["a=10.0.0.49"]).await;
}

#[tokio::test]
async fn a_change_that_changes_nothing_makes_no_version() {
    let mut mesh = running(|dir| fs::write(dir.join("a.yaml"), pod("a", "10.0.0.1")));
    let a = |snapshot: &Snapshot| snapshot.workload([10, 0, 0, 1].into()).unwrap().clone();
    let former = a(&mesh.store.load());
    mesh.source.state.mark_unchanged();
    mesh.rename_over("a.yaml", &format!("# a comment\n{}", pod("a", "10.0.0.1")));
    timeout(DEADLINE, mesh.source.state.changed()).await.unwrap().unwrap();
    assert_eq!((mesh.store.load().version, mesh.source.state.borrow().error.clone()), (1, None));

    mesh.rename_over("b.yaml", &pod("b", "10.0.0.2"));
    mesh.pods_become(&["a=10.0.0.1", "b=10.0.0.2"]).await;
    let snapshot = mesh.store.load();
    assert_eq!(snapshot.version, 2);
    assert!(Arc::ptr_eq(&a(&snapshot), &former));
}

#[tokio::test]
async fn an_empty_directory_is_an_empty_mesh_and_only_yaml_in_it_counts() {
    let mesh = running(|dir| {
        fs::create_dir(dir.join("below.yaml"))?;
        fs::write(dir.join("below.yaml/a.yaml"), "no object")?;
        fs::write(dir.join("README.md"), "no object")?;
        fs::write(dir.join(".hidden.yaml"), "no object")
    });
    assert_eq!((mesh.store.load().version, mesh.pods()), (1, Vec::new()));
}

#[tokio::test]
async fn a_directory_that_cannot_be_read_is_one_line_with_a_hint() {
    let parent = tempfile::tempdir().unwrap();
    let file = parent.path().join("file.yaml");
    fs::write(&file, "").unwrap();
    for (dir, wanted) in [
        (parent.path().join("none"), "no such file or directory (hint: create it, or name"),
        (PathBuf::new(), "no such file or directory (hint: name a directory with --config-dir)"),
        (file, "not a directory (hint: name the directory the file is in)"),
    ] {
        let store = Arc::new(SnapshotStore::default());
        let error = start(&dir, store.clone()).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("cannot read the configuration directory `"), "{error}");
        assert!(error.contains(wanted) && !error.contains('\n'), "{error}");
        assert_eq!(store.load().version, 0);
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    fs::write(path("latin.yaml"), b"a: 1\nb: \xe9\n").unwrap();
    unix::fs::symlink("nowhere", path("link.yaml")).unwrap();
    let _socket = UnixListener::bind(path("socket.yaml")).unwrap();
    let store = Arc::new(SnapshotStore::default());
    let error = start(dir.path(), store).unwrap_err();
    let error = error.to_string();
    for wanted in [
        "3 problems\n",
        "latin.yaml: is not UTF-8 in line 2 (hint: save it as UTF-8)",
        "link.yaml: cannot be read: no such file or directory (hint: it is a link that leads",
        "socket.yaml: is not a regular file (hint: ",
    ] {
        assert!(error.contains(wanted), "{error}");
    }
}
