//! The interop tests of grpc-go, as far as they need no account at a cloud.

use std::process::Command;

use sluice_tests::Port;

use super::{Ground, figures, program, run, serve};

const PORT: Port<'_> = Port { name: "grpc", port: 90, target: 9090 };
/// Those that pass where no mesh is between; `pick_first_unary` and ORCA's two want of a server what
/// grpc-go's own does not say.
const CASES: [&str; 16] = [
    "empty_unary",
    "large_unary",
    "client_streaming",
    "server_streaming",
    "ping_pong",
    "empty_stream",
    "timeout_on_sleeping_server",
    "cancel_after_begin",
    "cancel_after_first_response",
    "status_code_and_message",
    "special_status_message",
    "custom_metadata",
    "unimplemented_method",
    "unimplemented_service",
    "rpc_soak",
    "channel_soak",
];

#[tokio::test]
async fn every_interop_test_of_grpc_go_passes() -> anyhow::Result<()> {
    let ground = Ground::lay(&[PORT]).await?;
    let (client, server) = (program("client")?, program("server")?);
    for way in ground.ways() {
        let mut command = Command::new(&server);
        command.args(["-port", &PORT.target.to_string()]);
        let _server = serve(way.server, "server", command, PORT.target).await?;
        let mut failed = Vec::new();
        for case in CASES {
            let mut command = Command::new(&client);
            command.args(["-server_host", &way.service.to_string()]);
            command.args(["-server_port", &PORT.port.to_string(), "-test_case", case]);
            // A busy machine is not to decide what is said of the mesh.
            command.args(["-soak_per_iteration_max_acceptable_latency_ms", "20000"]);
            command.args(["-soak_overall_timeout_seconds", "60"]);
            let (status, said) = run(ground.client(), case, command).await?;
            if !status.success() {
                failed.push(format!("{case}: {status}: {said}"));
            }
        }
        assert!(failed.is_empty(), "{}: {}", way.name, failed.join("\n"));
        figures("grpc-go 1.85's interop tests", way.name, CASES.len(), CASES.len())?;
    }
    Ok(())
}
