//! What the types alone don't say of the schemas.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;
use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A rule in CEL. The agents hold to the same without it: manifests come from directories
/// too.
pub(super) struct Rule {
    pub(super) rule: &'static str,
    pub(super) message: &'static str,
}

/// Of the spec of a policy.
pub(super) const ONE_SELECTION: Rule = Rule {
    rule: "!has(self.targetRefs) || !has(self.selector) || !has(self.selector.matchLabels) || \
           size(self.selector.matchLabels) == 0",
    message: "selector and targetRefs can't be given together",
};

/// Of a map with ports for keys.
pub(super) const PORT_KEYS: Rule = Rule {
    rule: "self.all(port, int(port) >= 1 && int(port) <= 65535)",
    message: "the keys must be ports: 1 to 65535",
};

/// Of the spec of an AuthorizationPolicy.
pub(super) const CUSTOM_ASKS: Rule = Rule {
    rule: "(has(self.action) && self.action == 'CUSTOM') == has(self.provider)",
    message: "CUSTOM needs a provider, and nothing else has one",
};

/// Of a condition.
pub(super) const SOME_VALUES: Rule = Rule {
    rule: "has(self.values) || has(self.notValues)",
    message: "values or notValues must be given",
};

/// Of an access log.
pub(super) const STATUS_OF_ERRORS: Rule = Rule {
    rule: "!has(self.minStatus) || (has(self.mode) && self.mode == 'ERRORS')",
    message: "minStatus has a meaning with ERRORS only",
};

/// Of an access log.
pub(super) const PART_OF_SOME: Rule = Rule {
    rule: "!has(self.percent) || !has(self.mode) || self.mode != 'NONE'",
    message: "there is no part of NONE",
};

/// Of an issuer of tokens.
pub(super) const ONE_KEY_SET: Rule = Rule {
    rule: "has(self.jwks) != has(self.jwksUri)",
    message: "either jwks or jwksUri must be given",
};

impl Rule {
    /// As the schema has it.
    pub(super) fn rule(&self) -> Value {
        rules(&[self])
    }
}

/// Several, as the schema has them.
pub(super) fn rules(rules: &[&Rule]) -> Value {
    let rule = |rule: &&Rule| json!({"rule": rule.rule, "message": rule.message});
    rules.iter().map(rule).collect()
}

/// A trust domain, namespace or service account of an identity.
const SEGMENT: &str = "[A-Za-z0-9._-]+";
/// `abc`, `abc*`, `*abc` or `*`.
pub(super) const NAME: &str = r"^(\*|\*[^*]+|[^*]+\*?)$";
/// Only what it consists of: whether it is an address the conversion decides.
const BLOCK: &str = "^[0-9A-Fa-f:.]+(/[0-9]{1,3})?$";
/// 1 to 65535.
const PORT: &str = "^([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|\
                    6553[0-5])$";

fn strings(pattern: &str) -> Schema {
    let items = json!({"type": "string", "pattern": pattern});
    json_schema!({"type": "array", "minItems": 1, "items": items})
}

pub(super) fn principals(_generator: &mut SchemaGenerator) -> Schema {
    strings(&format!(
        r"^(spiffe://)?(\*|\*[^*]+|[^*]+\*|{SEGMENT}/ns/{SEGMENT}/sa/{SEGMENT})$"
    ))
}

pub(super) fn service_accounts(_generator: &mut SchemaGenerator) -> Schema {
    strings("^([a-z0-9.-]{1,253}/)?[a-z0-9.-]{1,253}$")
}

pub(super) fn names(_generator: &mut SchemaGenerator) -> Schema {
    strings(NAME)
}

pub(super) fn blocks(_generator: &mut SchemaGenerator) -> Schema {
    strings(BLOCK)
}

/// Ports as numbers or, as Istio writes them, strings.
pub(super) fn ports(_generator: &mut SchemaGenerator) -> Schema {
    let items = json!({
        "x-kubernetes-int-or-string": true,
        "minimum": 1,
        "maximum": 65_535,
        "pattern": PORT,
    });
    json_schema!({"type": "array", "minItems": 1, "items": items})
}

pub(super) fn texts(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}})
}

pub(super) fn methods(_generator: &mut SchemaGenerator) -> Schema {
    strings(r"^(\*|\*[A-Za-z-]+|[A-Za-z-]+\*?)$")
}

/// Whether they have the normal form the conversion decides.
pub(super) fn paths(_generator: &mut SchemaGenerator) -> Schema {
    strings(r"^(/[^ #?]*|\*[^ #?*]*)$")
}

pub(super) fn hosts(_generator: &mut SchemaGenerator) -> Schema {
    let part = r"[A-Za-z0-9._:\[\]-]+";
    strings(&format!(r"^(\*|\*{part}|{part}\*?)$"))
}

pub(super) fn condition_key(_generator: &mut SchemaGenerator) -> Schema {
    let header = r"request\.headers\[[A-Za-z0-9!#$%&'*+.^_`|~-]+\]";
    let claim = r"request\.auth\.claims(\[[^\[\]]+\])+";
    let auth = r"request\.auth\.(principal|audiences|presenter)";
    let other = r"source\.(ip|namespace|principal|serviceAccount)|destination\.port";
    json_schema!({
        "type": "string",
        "pattern": format!("^({header}|{claim}|{auth}|{other})$"),
    })
}

/// A token of HTTP, as names of headers and cookies are.
pub(super) const TOKEN: &str = "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$";

pub(super) fn header_name(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": TOKEN})
}

pub(super) fn header_names(_generator: &mut SchemaGenerator) -> Schema {
    strings(TOKEN)
}

/// As the Gateway API has it.
pub(super) fn duration(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": "^([0-9]{1,5}(h|m|s|ms)){1,4}$"})
}

pub(super) fn generation(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": 0})
}

pub(super) fn time(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "format": "date-time"})
}

/// The definition as it is given out. The spec may be left out, nothing is filled in, and
/// what an API server would drop without a word is kept for the conversion to find: fields
/// that the schema does not know, and nulls, which in a rule would leave a condition out.
pub(super) fn finish(
    mut definition: apiextensions::CustomResourceDefinition,
) -> apiextensions::CustomResourceDefinition {
    for version in &mut definition.spec.versions {
        let schema = version.schema.as_mut();
        let Some(schema) = schema.and_then(|schema| schema.open_api_v3_schema.as_mut()) else {
            continue;
        };
        schema.required = None;
        schema.x_kubernetes_preserve_unknown_fields = Some(true);
        for (name, property) in schema.properties.iter_mut().flatten() {
            visit(property, &mut |schema| {
                schema.nullable = None;
                schema.default = None;
                // API servers warn of formats that are not theirs; the bounds say the same.
                let format = schema.format.take();
                schema.format = format.filter(|format| !format.starts_with("uint"));
            });
            if name == "spec" {
                property.nullable = Some(true);
                visit(property, &mut keep_everything);
            }
        }
    }
    definition
}

fn keep_everything(schema: &mut apiextensions::JSONSchemaProps) {
    if let Some(properties) = &mut schema.properties {
        schema.x_kubernetes_preserve_unknown_fields = Some(true);
        for property in properties.values_mut() {
            property.nullable = Some(true);
        }
    }
    if let Some(apiextensions::JSONSchemaPropsOrBool::Schema(values)) =
        &mut schema.additional_properties
    {
        values.nullable = Some(true);
    }
}

fn visit(
    schema: &mut apiextensions::JSONSchemaProps,
    change: &mut impl FnMut(&mut apiextensions::JSONSchemaProps),
) {
    change(schema);
    for property in schema
        .properties
        .iter_mut()
        .flat_map(|map| map.values_mut())
    {
        visit(property, change);
    }
    if let Some(apiextensions::JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        visit(items, change);
    }
    if let Some(apiextensions::JSONSchemaPropsOrBool::Schema(values)) =
        &mut schema.additional_properties
    {
        visit(values, change);
    }
}
