//! Every attribute name the agent writes.
//!
//! Names of OpenTelemetry's semantic conventions come from one crate and so from one version
//! of them, which [`SCHEMA_URL`] tells the receiver. What the conventions have no name for is
//! `mesh.*`.

pub(super) use opentelemetry_semantic_conventions::{
    SCHEMA_URL,
    attribute::{
        CLIENT_ADDRESS, CLIENT_PORT, ERROR_TYPE, HTTP_REQUEST_BODY_SIZE, HTTP_REQUEST_METHOD,
        HTTP_REQUEST_METHOD_ORIGINAL, HTTP_RESPONSE_BODY_SIZE, HTTP_RESPONSE_STATUS_CODE,
        K8S_CRONJOB_NAME, K8S_DAEMONSET_NAME, K8S_DEPLOYMENT_NAME, K8S_JOB_NAME,
        K8S_NAMESPACE_NAME, K8S_NODE_NAME, K8S_POD_NAME, K8S_POD_UID, K8S_REPLICASET_NAME,
        K8S_STATEFULSET_NAME, NETWORK_PEER_ADDRESS, NETWORK_PEER_PORT, NETWORK_PROTOCOL_VERSION,
        NETWORK_TRANSPORT, NETWORK_TYPE, RPC_METHOD, RPC_RESPONSE_STATUS_CODE, RPC_SYSTEM_NAME,
        SERVER_ADDRESS, SERVER_PORT, SERVICE_INSTANCE_ID, SERVICE_NAME, SERVICE_NAMESPACE,
        SERVICE_VERSION, TELEMETRY_SDK_LANGUAGE, TELEMETRY_SDK_NAME, TELEMETRY_SDK_VERSION,
        URL_FULL, URL_PATH, URL_QUERY, URL_SCHEME, USER_AGENT_ORIGINAL,
    },
};

/// Principal of the client, where it proved one.
pub(super) const MESH_SOURCE_PRINCIPAL: &str = "mesh.source.principal";
/// Principal of the server, where it proved one.
pub(super) const MESH_DESTINATION_PRINCIPAL: &str = "mesh.destination.principal";
/// `mutual_tls` or `none`.
pub(super) const MESH_SECURITY_POLICY: &str = "mesh.connection.security_policy";
/// Both ends are on this node.
pub(super) const MESH_SAME_NODE: &str = "mesh.same_node";
/// Bytes from client to server on a connection that is not looked into.
pub(super) const MESH_SENT_BYTES: &str = "mesh.connection.sent_bytes";
/// Bytes from server to client.
pub(super) const MESH_RECEIVED_BYTES: &str = "mesh.connection.received_bytes";
/// Seconds from accepting the client to having the next hop connected.
pub(super) const MESH_CONNECT_DURATION: &str = "mesh.connection.connect_duration";
/// Seconds the connection lasted.
pub(super) const MESH_DURATION: &str = "mesh.connection.duration";
/// `closed`, or the failure that ended the connection.
pub(super) const MESH_CLOSE_REASON: &str = "mesh.connection.close_reason";

/// `namespace/name` of the policy that keeps it out.
pub(super) const MESH_POLICY_NAME: &str = "mesh.policy.name";
/// Which of its rules does, from 0; not there where it is because none matches.
pub(super) const MESH_POLICY_RULE: &str = "mesh.policy.rule";
/// The same of a policy on trial, which would keep it out.
pub(super) const MESH_POLICY_DRY_RUN_NAME: &str = "mesh.policy.dry_run.name";
/// The same of its rule.
pub(super) const MESH_POLICY_DRY_RUN_RULE: &str = "mesh.policy.dry_run.rule";
/// The same of a policy that wants it noted.
pub(super) const MESH_POLICY_AUDIT_NAME: &str = "mesh.policy.audit.name";
/// The same of its rule.
pub(super) const MESH_POLICY_AUDIT_RULE: &str = "mesh.policy.audit.rule";

/// The scope of every span of the agent, so that users can tell them from the application's.
pub(super) const SCOPE_NAME: &str = "sluice";
/// The scope's version.
pub(super) const SCOPE_VERSION: &str = env!("CARGO_PKG_VERSION");
