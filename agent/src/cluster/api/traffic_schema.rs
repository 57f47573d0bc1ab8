//! What the types of traffic policies don't say of their schema.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::json;

use super::schema::{NAME, Rule, TOKEN};

pub(super) use super::schema::duration;

/// Of a target.
pub(super) const ONE_PORT: Rule = Rule {
    rule: "!has(self.port) || !has(self.sectionName)",
    message: "port and sectionName can't be given together",
};

/// Of `loadBalancing`.
pub(super) const HASH_OF_ALGORITHM: Rule = Rule {
    rule: "!has(self.algorithm) || (self.algorithm == 'CONSISTENT_HASH') == \
           has(self.consistentHash)",
    message: "consistentHash goes together with the algorithm CONSISTENT_HASH",
};

/// Of `consistentHash`.
pub(super) const ONE_HASH_KEY: Rule = Rule {
    rule: "(has(self.header) ? 1 : 0) + (has(self.cookie) ? 1 : 0) + \
           (has(self.source) ? 1 : 0) + (has(self.query) ? 1 : 0) == 1",
    message: "must have one of header, cookie, source and query",
};

/// Of a limit of a rate.
pub(super) const ONE_LIMIT: Rule = Rule {
    rule: "has(self.local) != has(self.global)",
    message: "must have one of local and global",
};

/// Of `local`.
pub(super) const HEADER_OF_LIMIT: Rule = Rule {
    rule: "(has(self.by) && self.by == 'HEADER') == has(self.header)",
    message: "header goes together with by: HEADER",
};

/// Of an entry of a descriptor.
pub(super) const ONE_VALUE: Rule = Rule {
    rule: "(has(self.value) ? 1 : 0) + (has(self.header) ? 1 : 0) + \
           (has(self.from) ? 1 : 0) == 1",
    message: "must have one of value, header and from",
};

/// Of a fault.
pub(super) const SOME_FAULT: Rule = Rule {
    rule: "has(self.delay) || has(self.abort)",
    message: "must have a delay, an abort, or both",
};

/// Of `abort`.
pub(super) const ONE_STATUS: Rule = Rule {
    rule: "has(self.status) != has(self.grpcStatus)",
    message: "must have one of status and grpcStatus",
};

pub(super) fn count(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": 0, "maximum": u32::MAX})
}

pub(super) fn positive(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int64", "minimum": 1, "maximum": u32::MAX})
}

pub(super) fn percent(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "number", "minimum": 0, "maximum": 100})
}

pub(super) fn header(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 256,
        "pattern": TOKEN,
    })
}

pub(super) fn name(_generator: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "pattern": NAME})
}

pub(super) fn traffic_paths(_generator: &mut SchemaGenerator) -> Schema {
    let items = json!({"type": "string", "pattern": r"^(\*|\*[^*]+|/[^*]*\*?)$"});
    json_schema!({"type": "array", "minItems": 1, "maxItems": 16, "items": items})
}

/// Of a match.
pub(super) fn methods(_generator: &mut SchemaGenerator) -> Schema {
    some_methods(16)
}

/// Of retries.
pub(super) fn retry_methods(_generator: &mut SchemaGenerator) -> Schema {
    some_methods(64)
}

fn some_methods(most: usize) -> Schema {
    let items = json!({"type": "string", "pattern": "^[A-Z-]{1,32}$"});
    json_schema!({"type": "array", "minItems": 1, "maxItems": most, "items": items})
}

pub(super) fn codes(_generator: &mut SchemaGenerator) -> Schema {
    let items = json!({"type": "integer", "minimum": 400, "maximum": 599});
    json_schema!({"type": "array", "minItems": 1, "maxItems": 64, "items": items})
}
