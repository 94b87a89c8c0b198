//! Values that users change, and what the chart is to make of them.

/// What each of Istio's kinds has when it is rendered.
const CRD: &str = "kind: CustomResourceDefinition\n";

/// One combination of values.
#[derive(Clone, Copy, Debug)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) release: &'static str,
    pub(super) namespace: &'static str,
    /// In YAML.
    pub(super) values: &'static str,
    /// What the objects hold because of them.
    holds: &'static [&'static str],
    /// What they no longer hold.
    lacks: &'static [&'static str],
}

/// Values that must not render, and what the error says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Refused {
    name: &'static str,
    values: &'static str,
    says: &'static str,
}

impl Case {
    /// Without any value changed, under the names the documents use.
    pub(super) const DEFAULTS: Self = Self {
        name: "defaults",
        release: "sluice",
        namespace: "sluice-system",
        values: "",
        holds: &["--ca-address=https://sluice-ca.sluice-system.svc:15012", "kind: Deployment", CRD],
        lacks: &["OTEL_", "[nodes]"],
    };

    const fn with(name: &'static str, values: &'static str) -> Self {
        Self { name, values, holds: &[], lacks: &[], ..Self::DEFAULTS }
    }

    const fn holds(self, holds: &'static [&'static str]) -> Self {
        Self { holds, ..self }
    }

    const fn lacks(self, lacks: &'static [&'static str]) -> Self {
        Self { lacks, ..self }
    }

    const fn released(self, release: &'static str, namespace: &'static str) -> Self {
        Self { release, namespace, ..self }
    }

    /// What `text` holds and should not, and the other way round.
    pub(super) fn surprises(&self, text: &str) -> Vec<String> {
        let missing = self.holds.iter().filter(|part| !text.contains(*part));
        let missing = missing.map(|part| format!("{}: `{part}` is not rendered", self.name));
        let left = self.lacks.iter().filter(|part| text.contains(*part));
        missing.chain(left.map(|part| format!("{}: `{part}` is rendered", self.name))).collect()
    }
}

impl Refused {
    pub(super) fn case(&self) -> Case {
        Case::with(self.name, self.values)
    }

    /// What is wrong with the answer, if not all is well.
    pub(super) fn surprise(&self, answer: &Result<String, String>) -> Option<String> {
        match answer {
            Err(said) if said.contains(self.says) => None,
            Err(said) => {
                Some(format!("{}: refused with {said:?}, not with {:?}", self.name, self.says))
            }
            Ok(_) => Some(format!("{}: is not refused", self.name)),
        }
    }
}

pub(super) const CASES: [Case; 30] = [
    Case::DEFAULTS,
    Case::with("a release of another name", "")
        .released("mesh", "mesh-system")
        .holds(&["name: mesh-sluice\n", "https://mesh-sluice-ca.mesh-system.svc:15012"])
        .lacks(&["sluice-system"]),
    Case::with("a name of the user's own", "fullnameOverride: node-mesh")
        .holds(&["name: node-mesh\n", "https://node-mesh-ca.sluice-system.svc:15012"]),
    Case::with(
        "an image of a registry",
        "image: {repository: registry.example/mesh/sluice, tag: v7, pullPolicy: Always}\n\
         imagePullSecrets: [{name: registry}]",
    )
    .holds(&["image: registry.example/mesh/sluice:v7\n", "- name: registry\n"])
    .lacks(&["sluice.test"]),
    Case::with(
        "an image by its digest",
        "image: {tag: v7, digest: 'sha256:\
         0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef'}",
    )
    .holds(&["image: sluice.test/sluice@sha256:0123"])
    .lacks(&[":v7"]),
    Case::with(
        "istiod as the CA",
        "clusterId: east\nca: {address: 'https://istiod.istio-system.svc:15012', \
         audience: istio-ca, rootConfigMap: istio-ca-root-cert}",
    )
    .holds(&["--cluster-id=east", "audience: \"istio-ca\"", "name: istio-ca-root-cert\n"])
    .lacks(&["kind: Deployment", "kind: NetworkPolicy", "kind: Service\n", "kind: Role\n"]),
    Case::with("a receiver", "telemetry: {endpoint: 'http://collector.observability.svc:4317'}")
        .holds(&["value: \"http://collector.observability.svc:4317\""])
        .lacks(&["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_PROTOCOL"]),
    Case::with(
        "a receiver with all options",
        "telemetry:\n  endpoint: https://otlp.example\n  protocol: http/protobuf\n  \
         headers: {x-tenant: 'blue, green', x-team: mesh}\n  \
         certificate: {configMap: receiver-roots}\n  sampling: 1\n  \
         resourceAttributes: {k8s.cluster.name: east}",
    )
    .holds(&[
        "value: \"x-team=mesh,x-tenant=blue%2C%20green\"",
        "value: \"k8s.cluster.name=east\"",
        "value: /var/run/sluice/receiver/ca.crt",
        "name: receiver-roots\n",
        "--trace-sampling=1\n",
    ]),
    Case::with(
        "a receiver's token in a Secret",
        "telemetry: {endpoint: 'https://otlp.example', headersSecret: {name: otlp}}",
    )
    .holds(&["secretKeyRef", "name: otlp\n", "key: headers\n"]),
    Case::with("no pod handed over past the CNI", "sameNode: tunnel")
        .holds(&["--same-node=tunnel\n"])
        .lacks(&["--same-node=auto"]),
    Case::with(
        "more room on large nodes",
        "agent: {maxConnections: 100000, maxBuffered: 1024, maxHandshakes: 2048}",
    )
    .holds(&["--max-connections=100000\n", "--max-buffered=1024\n", "--max-handshakes=2048\n"])
    .lacks(&["--threads"]),
    Case::with("few processors of many", "agent: {threads: 4}").holds(&["--threads=4\n"]),
    Case::with("one trace in ten thousand", "telemetry: {sampling: 0.0001}")
        .holds(&["--trace-sampling=0.0001\n"]),
    Case::with("no annotations for Prometheus", "metrics: {annotations: false}")
        .lacks(&["prometheus.io"]),
    Case::with("no NRI", "nri: {enabled: false}").lacks(&["nri"]),
    Case::with("NRI elsewhere", "nri: {directory: /run/k3s/nri}")
        .holds(&["--nri-socket=/run/k3s/nri/nri.sock", "path: /run/k3s/nri\n"])
        .lacks(&["/var/run/nri"]),
    Case::with(
        "another trust domain and root namespace",
        "trustDomain: prod.example\nrootNamespace: mesh-policies",
    )
    .holds(&["--trust-domain=prod.example", "--root-namespace=mesh-policies"])
    .lacks(&["cluster.local", "istio-system"]),
    Case::with(
        "nodes that begin with a taint",
        "startupTaint: sluice.dev/agent-not-ready\nca: {tolerations: [{key: own, operator: Exists}]}",
    )
    .holds(&[
        "--startup-taint=sluice.dev/agent-not-ready",
        "- key: own\n",
        "- key: sluice.dev/agent-not-ready\n",
        "kind: ValidatingAdmissionPolicyBinding",
        "resources: [nodes]\n    verbs: [get, patch]",
    ]),
    Case::with("kinds of Istio's whosever they are", "crds: {install: always}").holds(&[
        CRD,
        "helm.sh/resource-policy: keep\n",
        "message: only one of targetRefs or selector can be set\n",
        "name: authorizationpolicies.security.istio.io\n",
        "name: peerauthentications.security.istio.io\n",
        "name: requestauthentications.security.istio.io\n",
    ]),
    Case::with("kinds of Istio's that Istio installs", "crds: {install: never}").lacks(&[CRD]),
    Case::with("a log to read", "log: {level: 'info,sluice::capture=debug', format: text}")
        .holds(&["--log=info,sluice::capture=debug", "--log-format=text"]),
    Case::with(
        "some nodes only",
        "agent:\n  nodeSelector: {mesh: 'yes'}\n  tolerations: [{key: mesh, operator: Exists}]\n  \
         priorityClassName: ''\n  affinity:\n    nodeAffinity:\n      \
         requiredDuringSchedulingIgnoredDuringExecution:\n        nodeSelectorTerms:\n        \
         - matchExpressions: [{key: zone, operator: In, values: [a, b]}]",
    )
    .holds(&["mesh: \"yes\"", "key: mesh\n", "key: zone\n"])
    .lacks(&["system-node-critical"]),
    Case::with(
        "labels and annotations",
        "agent: {podLabels: {team: mesh}, podAnnotations: {note: agent}}\n\
         ca: {podLabels: {team: mesh}, podAnnotations: {note: authority}}",
    )
    .holds(&["team: mesh\n", "note: agent\n", "note: authority\n"]),
    Case::with(
        "nodes by hand, with a long drain",
        "agent: {drainSeconds: 300, updateStrategy: {type: OnDelete}}",
    )
    .holds(&["--drain-timeout=300s", "terminationGracePeriodSeconds: 310", "type: OnDelete"])
    .lacks(&["maxUnavailable: 0\n      maxSurge"]),
    Case::with(
        "one node in four at a time",
        "agent: {updateStrategy: {maxSurge: 0, maxUnavailable: 25%}}",
    )
    .holds(&["maxSurge: 0\n      maxUnavailable: 25%"]),
    Case::with(
        "SELinux and an old kernel",
        "agent: {seLinuxOptions: {type: spc_t}, extraCapabilities: [SYS_RESOURCE]}",
    )
    .holds(&["type: spc_t", "- SYS_RESOURCE"]),
    Case::with(
        "more memory and no requests",
        "agent: {resources: {requests: null, limits: {memory: 2Gi}}}\nca: {resources: null}",
    )
    .holds(&["memory: 2Gi"])
    .lacks(&["memory: 128Mi", "cpu: 100m"]),
    Case::with(
        "more flags and variables",
        "agent:\n  extraArgs: [--unknown-pods=allow]\n  \
         extraEnv: [{name: OTEL_BSP_SCHEDULE_DELAY, value: '1000'}]\n\
         ca:\n  extraEnv: [{name: RUST_BACKTRACE, value: '1'}]\n  dnsNames: [ca.example, 10.0.0.7]",
    )
    .holds(&[
        "- --unknown-pods=allow",
        "name: OTEL_BSP_SCHEDULE_DELAY\n",
        "name: RUST_BACKTRACE\n",
        "--dns-name=10.0.0.7",
    ]),
    Case::with(
        "a CA of one replica, open to all",
        "ca: {replicas: 1, networkPolicy: {enabled: false}}",
    )
    .lacks(&["kind: PodDisruptionBudget", "kind: NetworkPolicy"]),
    Case::with(
        "a CA with other schedules and clients",
        "ca:\n  certificateLifetime: 1h\n  rootLifetime: 1year\n  rotateAfter: 90days\n  \
         rotationOverlap: 2days\n  networkPolicy:\n    \
         extraFrom: [{namespaceSelector: {matchLabels: {team: edge}}}]\n    \
         metricsFrom: [{namespaceSelector: {matchLabels: {team: metrics}}}]",
    )
    .holds(&["--rotate-after=90days", "team: edge\n", "team: metrics\n"]),
];

pub(super) const REFUSED: [Refused; 19] = [
    Refused { name: "a word that is no value", values: "agnet: {}", says: "'agnet' not allowed" },
    Refused {
        name: "a word that is no value of the agent",
        values: "agent: {resource: {}}",
        says: "'resource' not allowed",
    },
    Refused {
        name: "a word that is no value of the CA",
        values: "ca: {networkPolicy: {from: []}}",
        says: "'from' not allowed",
    },
    Refused {
        name: "denying pods that are not enrolled",
        values: "unknownPods: deny",
        says: "unknownPods=deny cannot work in a cluster",
    },
    Refused {
        name: "a CA without roots",
        values: "ca: {address: 'https://istiod.istio-system.svc:15012'}",
        says: "ca.address names another CA, whose roots are not known",
    },
    Refused {
        name: "a CA without TLS",
        values: "ca: {address: 'http://istiod.istio-system.svc:15010', rootConfigMap: roots}",
        says: "at '/ca/address'",
    },
    Refused { name: "a CA of no replicas", values: "ca: {replicas: 0}", says: "at '/ca/replicas'" },
    Refused {
        name: "headers twice",
        values: "telemetry: {endpoint: 'http://c:4317', headers: {a: b}, headersSecret: {name: s}}",
        says: "telemetry.headers and telemetry.headersSecret.name are both given",
    },
    Refused {
        name: "options of no receiver",
        values: "telemetry: {protocol: grpc}",
        says: "telemetry has options but no receiver",
    },
    Refused {
        name: "a receiver without a scheme",
        values: "telemetry: {endpoint: 'collector:4317'}",
        says: "at '/telemetry/endpoint'",
    },
    Refused {
        name: "more than all traces",
        values: "telemetry: {sampling: 10}",
        says: "at '/telemetry/sampling'",
    },
    Refused {
        name: "kinds by chance",
        values: "crds: {install: maybe}",
        says: "at '/crds/install'",
    },
    Refused {
        name: "a surge and an outage",
        values: "agent: {updateStrategy: {maxSurge: 1, maxUnavailable: 1}}",
        says: "one of agent.updateStrategy.maxSurge and maxUnavailable is 0",
    },
    Refused {
        name: "a rollout that cannot move",
        values: "agent: {updateStrategy: {maxSurge: 0, maxUnavailable: 0%}}",
        says: "one of agent.updateStrategy.maxSurge and maxUnavailable is 0",
    },
    Refused {
        name: "a capability by its kernel's name",
        values: "agent: {extraCapabilities: [CAP_SYS_RESOURCE]}",
        says: "at '/agent/extraCapabilities/0'",
    },
    Refused {
        name: "all capabilities",
        values: "agent: {extraCapabilities: [ALL]}",
        says: "at '/agent/extraCapabilities/0'",
    },
    Refused {
        name: "seconds with a unit",
        values: "agent: {drainSeconds: 30s}",
        says: "at '/agent/drainSeconds'",
    },
    Refused {
        name: "a digest without its kind",
        values: "image: {digest: 0123456789abcdef}",
        says: "at '/image/digest'",
    },
    Refused {
        name: "annotations that are no text",
        values: "agent: {podAnnotations: {note: true}}",
        says: "at '/agent/podAnnotations/note'",
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_rendered_and_what_should_not_be_are_surprises() {
        let case = Case::with("one", "").holds(&["kind: Pod"]).lacks(&["kind: Job"]);
        assert!(case.surprises("kind: Pod\n").is_empty());
        assert_eq!(case.surprises("kind: Job\n").len(), 2);
    }

    #[test]
    fn values_are_refused_only_with_the_reason() {
        let refused = Refused { name: "one", values: "", says: "because" };
        assert!(refused.surprise(&Err("no, because".into())).is_none());
        assert!(refused.surprise(&Err("no".into())).unwrap().contains("refused with"));
        assert!(refused.surprise(&Ok(String::new())).unwrap().contains("is not refused"));
    }

    #[test]
    fn every_case_has_a_name_of_its_own() {
        let names = CASES.iter().map(|case| case.name);
        let mut names: Vec<_> = names.chain(REFUSED.iter().map(|refused| refused.name)).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
