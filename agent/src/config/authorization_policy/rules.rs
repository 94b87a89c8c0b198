//! The rules of a policy.

use serde::Deserialize;

use super::{
    AuthorizationPolicy,
    values::{self, Wrong},
};
use crate::{
    config::{
        error::{Problem, nearest},
        object::Object,
        yaml::Step,
    },
    mesh::TrustDomain,
    policy::{self, Lists, Pattern, Test, TokenPrincipal},
};

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, expecting = "a Rule", deny_unknown_fields)]
pub(super) struct Rule {
    from: Option<Vec<From>>,
    to: Option<Vec<To>>,
    when: Option<Vec<Condition>>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct From {
    source: Option<Source>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct To {
    operation: Option<Operation>,
}

type List = Option<Vec<String>>;

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Source {
    principals: List,
    not_principals: List,
    request_principals: List,
    not_request_principals: List,
    namespaces: List,
    not_namespaces: List,
    service_accounts: List,
    not_service_accounts: List,
    ip_blocks: List,
    not_ip_blocks: List,
    remote_ip_blocks: List,
    not_remote_ip_blocks: List,
    trust_domains: List,
    not_trust_domains: List,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Operation {
    hosts: List,
    not_hosts: List,
    ports: List,
    not_ports: List,
    methods: List,
    not_methods: List,
    paths: List,
    not_paths: List,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase", deny_unknown_fields)]
struct Condition {
    key: String,
    values: List,
    not_values: List,
}

/// The keys of conditions, those with a name of their own by what is before it.
const KEYS: [&str; 14] = [
    "request.headers[",
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "request.auth.claims[",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

/// What reading the rules of one policy needs.
#[derive(Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) policy: &'a Object<AuthorizationPolicy>,
    pub(super) trust_domain: &'a TrustDomain,
}

/// A field and its list.
type Named<'a> = (&'static str, &'a List);

impl Reading<'_> {
    pub(super) fn rules(self, rules: Vec<Rule>) -> Result<Vec<policy::Rule>, Problem> {
        let rules = rules.iter().enumerate();
        let steps = |index: usize| [Step::Field("spec"), Step::Field("rules"), index.into()];
        rules.map(|(index, rule)| self.rule(rule, &steps(index))).collect()
    }

    fn rule(self, rule: &Rule, steps: &[Step<'_>]) -> Result<policy::Rule, Problem> {
        let Rule { from, to, when } = rule;
        let lengths = [("from", from.as_ref().map(Vec::len)), ("to", to.as_ref().map(Vec::len))];
        for (field, length) in lengths {
            if length == Some(0) {
                let problem = self.policy.problem(&below(steps, field), "is an empty list");
                return Err(problem.hint("leave it out to mean all of them"));
            }
        }
        let each =
            |field| move |index: usize| [steps, &[Step::Field(field), index.into()]].concat();
        let from = from.iter().flatten().enumerate().map(|(index, from)| {
            let steps = below(&each("from")(index), "source");
            let source = from.source.clone().unwrap_or_default();
            self.some(self.source(&source, &steps)?, &steps)
        });
        let to = to.iter().flatten().enumerate().map(|(index, to)| {
            let steps = below(&each("to")(index), "operation");
            let operation = to.operation.clone().unwrap_or_default();
            self.some(self.operation(&operation, &steps)?, &steps)
        });
        let when = when.iter().flatten().enumerate();
        let when = when.map(|(index, when)| self.condition(when, &each("when")(index)));
        Ok(policy::Rule {
            from: from.collect::<Result<_, _>>()?,
            to: to.collect::<Result<_, _>>()?,
            when: when.collect::<Result<_, _>>()?,
        })
    }

    fn source(self, source: &Source, steps: &[Step<'_>]) -> Result<Vec<Test>, Problem> {
        let by_name = [
            &source.principals,
            &source.not_principals,
            &source.namespaces,
            &source.not_namespaces,
        ];
        let accounts = [&source.service_accounts, &source.not_service_accounts];
        let any = |lists: &[&List]| {
            lists.iter().any(|list| list.as_ref().is_some_and(|list| !list.is_empty()))
        };
        if any(&accounts) && any(&by_name) {
            let steps = below(steps, "serviceAccounts");
            let what = "is there beside principals or namespaces";
            return Err(self.policy.problem(&steps, what).hint("each says who it is; one of them"));
        }
        let namespace = self.policy.namespace();
        let mut tests = Tests { reading: self, steps, tests: Vec::new() };
        tests.add(
            ("principals", &source.principals),
            ("notPrincipals", &source.not_principals),
            |text| Ok(values::principal(text, self.trust_domain)),
            Test::Principal,
        )?;
        tests.add(
            ("requestPrincipals", &source.request_principals),
            ("notRequestPrincipals", &source.not_request_principals),
            |text| Ok(TokenPrincipal::of(text)),
            Test::RequestPrincipal,
        )?;
        tests.add(
            ("namespaces", &source.namespaces),
            ("notNamespaces", &source.not_namespaces),
            values::glob,
            Test::Namespace,
        )?;
        tests.add(
            ("serviceAccounts", &source.service_accounts),
            ("notServiceAccounts", &source.not_service_accounts),
            |text| values::account(text, namespace),
            Test::ServiceAccount,
        )?;
        tests.add(
            ("ipBlocks", &source.ip_blocks),
            ("notIpBlocks", &source.not_ip_blocks),
            values::block,
            Test::SourceIp,
        )?;
        tests.add(
            ("remoteIpBlocks", &source.remote_ip_blocks),
            ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
            values::block,
            Test::RemoteIp,
        )?;
        tests.add(
            ("trustDomains", &source.trust_domains),
            ("notTrustDomains", &source.not_trust_domains),
            values::trust_domain,
            Test::TrustDomain,
        )?;
        Ok(tests.tests)
    }

    fn operation(self, operation: &Operation, steps: &[Step<'_>]) -> Result<Vec<Test>, Problem> {
        let mut tests = Tests { reading: self, steps, tests: Vec::new() };
        tests.add(
            ("hosts", &operation.hosts),
            ("notHosts", &operation.not_hosts),
            |text| Ok(Pattern::of(text).lower()),
            Test::Host,
        )?;
        tests.add(
            ("ports", &operation.ports),
            ("notPorts", &operation.not_ports),
            values::port,
            Test::DestinationPort,
        )?;
        tests.add(
            ("methods", &operation.methods),
            ("notMethods", &operation.not_methods),
            values::text,
            Test::Method,
        )?;
        tests.add(
            ("paths", &operation.paths),
            ("notPaths", &operation.not_paths),
            values::path,
            Test::Path,
        )?;
        Ok(tests.tests)
    }

    fn condition(self, condition: &Condition, steps: &[Step<'_>]) -> Result<Test, Problem> {
        let Condition { key, values, not_values } = condition;
        let (values, not_values) = (("values", values), ("notValues", not_values));
        let at_key = below(steps, "key");
        let problem = |wrong: Wrong| self.policy.problem(&at_key, wrong.what).hint(wrong.hint);
        let in_brackets = |before: &str| {
            let name = key.strip_prefix(before)?.strip_suffix(']')?;
            Some(name).filter(|name| !name.is_empty())
        };
        let namespace = self.policy.namespace();
        let mut tests = Tests { reading: self, steps, tests: Vec::new() };
        match key.as_str() {
            "source.ip" => tests.add(values, not_values, values::block, Test::SourceIp)?,
            "remote.ip" => tests.add(values, not_values, values::block, Test::RemoteIp)?,
            "destination.ip" => {
                tests.add(values, not_values, values::block, Test::DestinationIp)?
            }
            "destination.port" => {
                tests.add(values, not_values, values::port, Test::DestinationPort)?;
            }
            "source.namespace" => tests.add(values, not_values, values::glob, Test::Namespace)?,
            "source.trustDomain" => {
                tests.add(values, not_values, values::trust_domain, Test::TrustDomain)?;
            }
            "source.principal" => tests.add(
                values,
                not_values,
                |text| Ok(values::principal(text, self.trust_domain)),
                Test::Principal,
            )?,
            "source.serviceAccount" => tests.add(
                values,
                not_values,
                |text| values::account(text, namespace),
                Test::ServiceAccount,
            )?,
            "connection.sni" => tests.add(values, not_values, values::text, Test::Sni)?,
            "request.auth.principal" => tests.add(
                values,
                not_values,
                |text| Ok(TokenPrincipal::of(text)),
                Test::RequestPrincipal,
            )?,
            "request.auth.audiences" | "request.auth.presenter" => {
                let claim = if key.ends_with("presenter") { "azp" } else { "aud" };
                tests.add(values, not_values, values::text, |lists| {
                    Test::Claim([claim.into()].into(), lists)
                })?;
            }
            _ if in_brackets("request.auth.claims[").is_some() => {
                let path = values::claim(&key["request.auth.claims".len()..]);
                tests.add(values, not_values, values::text, |lists| {
                    Test::Claim(path.clone(), lists)
                })?;
            }
            _ => match in_brackets("request.headers[") {
                Some(name) => {
                    let name = values::header(name).map_err(problem)?;
                    tests.add(values, not_values, values::text, |lists| {
                        Test::Header(name.clone(), lists)
                    })?;
                }
                None => return Err(problem(wrong_key(key))),
            },
        }
        tests.tests.pop().ok_or_else(|| {
            self.policy.problem(&below(steps, "values"), "has no value").hint("values or notValues")
        })
    }

    /// A clause that asks for nothing is left out by mistake: it would be met by everybody.
    fn some(self, tests: Vec<Test>, steps: &[Step<'_>]) -> Result<Vec<Test>, Problem> {
        match tests.is_empty() {
            true => Err(self
                .policy
                .problem(steps, "says nothing")
                .hint("a rule without it is about all of them")),
            false => Ok(tests),
        }
    }
}

/// The tests of one clause, as they are read.
struct Tests<'a> {
    reading: Reading<'a>,
    steps: &'a [Step<'a>],
    tests: Vec<Test>,
}

impl Tests<'_> {
    /// Adds the test of one attribute, where there is a value in one of its lists.
    fn add<T>(
        &mut self,
        values: Named<'_>,
        not_values: Named<'_>,
        read: impl Fn(&str) -> Result<T, Wrong>,
        test: impl Fn(Lists<T>) -> Test,
    ) -> Result<(), Problem> {
        let list = |(field, list): Named<'_>| {
            let texts = list.iter().flatten().enumerate();
            texts
                .map(|(index, text)| {
                    let read = match text.as_str() {
                        "" => Err(Wrong::new("is empty", "a star stands for any value")),
                        text => read(text),
                    };
                    read.map_err(|Wrong { what, hint }| {
                        let steps = [self.steps, &[Step::Field(field), index.into()]].concat();
                        self.reading.policy.problem(&steps, what).hint(hint)
                    })
                })
                .collect::<Result<Vec<_>, _>>()
        };
        let lists = Lists { values: list(values)?, not_values: list(not_values)? };
        if !lists.values.is_empty() || !lists.not_values.is_empty() {
            self.tests.push(test(lists));
        }
        Ok(())
    }
}

fn below<'a>(steps: &[Step<'a>], field: &'static str) -> Vec<Step<'a>> {
    [steps, &[Step::Field(field)]].concat()
}

fn wrong_key(key: &str) -> Wrong {
    let what = format!("`{}` is no key", key.escape_debug());
    let hint = match key {
        _ if key.starts_with("experimental.envoy.filters.") => {
            "it is about what filters of an Envoy find out, and there is none".into()
        }
        _ if key.starts_with("destination.labels") => "spec.selector says whom it is about".into(),
        "destination.namespace" => "metadata.namespace says whom it is about".into(),
        _ => match nearest(key, KEYS) {
            Some(near) if near.ends_with('[') => format!("did you mean `{near}…]`?"),
            Some(near) => format!("did you mean `{near}`?"),
            None => {
                let all = KEYS
                    .map(|key| if key.ends_with('[') { format!("{key}…]") } else { key.into() });
                format!("the keys are {}", all.join(", "))
            }
        },
    };
    Wrong { what, hint }
}
