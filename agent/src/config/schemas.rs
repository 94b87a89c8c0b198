//! Istio's own schemas, which the chart gives API servers, against what is read here: a field that they
//! let in is obeyed or refused, and none is passed over.

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::{
    authorization_policy::AuthorizationPolicy, peer_authentication::PeerAuthentication,
    request_authentication::RequestAuthentication, strict::fit, yaml,
};

const AUTHORIZATION_POLICIES: &str =
    include_str!("../../../deploy/chart/istio/authorizationpolicies.security.istio.io.yaml");
const PEER_AUTHENTICATIONS: &str =
    include_str!("../../../deploy/chart/istio/peerauthentications.security.istio.io.yaml");

const REQUEST_AUTHENTICATIONS: &str =
    include_str!("../../../deploy/chart/istio/requestauthentications.security.istio.io.yaml");

/// A field, and an object that has nothing beside it.
struct Field {
    path: String,
    object: Value,
}

/// Every field below `spec` in every version of a kind.
fn fields(definition: &str) -> Vec<Field> {
    let definition: Value = serde_saphyr::from_str(definition).unwrap();
    let spec = &definition["spec"];
    let mut fields = Vec::new();
    for version in spec["versions"].as_array().unwrap() {
        let name = version["name"].as_str().unwrap();
        let schema = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
        for (path, below) in samples(schema) {
            let object = json!({
                "apiVersion": format!("security.istio.io/{name}"),
                "kind": spec["names"]["kind"],
                "metadata": {"name": "one", "namespace": "shop"},
                "spec": below,
            });
            fields.push(Field { path: format!("spec{path}"), object });
        }
    }
    fields
}

/// Every field of a schema, and a value that has it alone.
fn samples(schema: &Value) -> Vec<(String, Value)> {
    if let Some(properties) = schema["properties"].as_object() {
        let mut fields = Vec::new();
        for (name, schema) in properties {
            for (path, value) in samples(schema) {
                let object: Map<_, _> = [(name.clone(), value)].into_iter().collect();
                fields.push((format!(".{name}{path}"), object.into()));
            }
        }
        return fields;
    }
    let within = |schema: &Value, path: &str, wrap: &dyn Fn(Value) -> Value| {
        let fields = samples(schema).into_iter();
        fields.map(|(below, value)| (format!("{path}{below}"), wrap(value))).collect()
    };
    match (schema["type"].as_str(), &schema["additionalProperties"]) {
        (Some("array"), _) => within(&schema["items"], "[0]", &|value| json!([value])),
        (Some("object"), values @ Value::Object(_)) => {
            within(values, ".80", &|value| json!({"80": value}))
        }
        (Some("string"), _) => {
            vec![(String::new(), schema["enum"].get(0).cloned().unwrap_or("a".into()))]
        }
        (Some("boolean"), _) => vec![(String::new(), true.into())],
        (Some("integer"), _) => vec![(String::new(), 1.into())],
        _ => panic!("nobody knows what to make of {schema}"),
    }
}

/// The fields that a kind does not know, as files and as the API server have them.
fn unknown<T: DeserializeOwned>(fields: &[Field]) -> Vec<String> {
    let mut unknown = Vec::new();
    for Field { path, object } in fields {
        let text = object.to_string();
        let of_file = fit::<T>(&yaml::parse(&text).unwrap()[0]);
        let misfits = of_file.err().into_iter().flatten().map(|misfit| misfit.what);
        let of_server = serde_json::from_str::<T>(&text).err().map(|error| error.to_string());
        unknown.extend(misfits.chain(of_server).map(|what| format!("{path}: {what}")));
    }
    unknown
}

#[test]
fn every_field_that_an_api_server_lets_into_a_kind_is_known() {
    let fields = fields(AUTHORIZATION_POLICIES);
    assert_eq!(unknown::<AuthorizationPolicy>(&fields), [""; 0]);
    // What is walked is what there is: once in each of the two versions.
    for path in [
        "spec.action",
        "spec.rules[0].from[0].source.notServiceAccounts[0]",
        "spec.rules[0].when[0].notValues[0]",
        "spec.targetRefs[0].namespace",
        "spec.selector.matchLabels.80",
    ] {
        assert_eq!(fields.iter().filter(|field| field.path == path).count(), 2, "{path}");
    }

    let fields = self::fields(REQUEST_AUTHENTICATIONS);
    assert_eq!(unknown::<RequestAuthentication>(&fields), [""; 0]);
    for path in ["spec.jwtRules[0].fromHeaders[0].prefix", "spec.jwtRules[0].presence"] {
        assert_eq!(fields.iter().filter(|field| field.path == path).count(), 2, "{path}");
    }

    let fields = self::fields(PEER_AUTHENTICATIONS);
    assert_eq!(unknown::<PeerAuthentication>(&fields), [""; 0]);
    let paths: Vec<_> = fields.iter().map(|field| field.path.as_str()).collect();
    let once = ["spec.mtls.mode", "spec.portLevelMtls.80.mode", "spec.selector.matchLabels.80"];
    assert_eq!(paths, [once, once].concat());
}

#[test]
fn a_field_of_a_later_schema_would_be_noticed() {
    let later = PEER_AUTHENTICATIONS.replace("              mtls:\n", "              mutualTls:\n");
    let unknown = unknown::<PeerAuthentication>(&fields(&later));
    assert_eq!(unknown.len(), 2, "{unknown:?}");
    assert!(unknown[0].contains("spec.mutualTls is not a field of"), "{unknown:?}");
}
