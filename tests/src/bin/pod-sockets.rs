//! Runs in a pod and opens sockets there for a test outside; see `sluice_tests::Pod::socket`.

fn main() -> anyhow::Result<()> {
    sluice_tests::serve_sockets()
}
