//! The rules of an AuthorizationPolicy.

use std::sync::Arc;

use serde_json::Value;

use super::FieldPath;
use super::policy::only_field;
use super::reader::{self, Reader};
use crate::model::normal_path;
use crate::state::{
    Condition, From, PathPart, PathPattern, PathTemplate, Rule, StringMatch, Test, To, Values,
};

/// Reads `spec.rules` of a policy of this namespace.
pub(super) fn read_rules(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    namespace: &str,
) -> Vec<Rule> {
    // No rules at all is a policy of its own: an ALLOW that permits nothing.
    if value.as_array().is_some_and(Vec::is_empty) {
        return Vec::new();
    }
    let mut rules = Vec::new();
    for (value, path) in reader.items(value, path) {
        let mut rule = Rule::default();
        for (key, value, path) in reader.fields(value, &path, &["from", "to", "when"]) {
            let (inner, is_from) = match key {
                "from" => ("source", true),
                "to" => ("operation", false),
                _ => {
                    rule.when = read_conditions(reader, value, &path, namespace);
                    continue;
                }
            };
            for (value, path) in reader.items(value, &path) {
                let Some((value, path)) = only_field(reader, value, &path, inner) else {
                    continue;
                };
                if is_from {
                    rule.from.push(read_source(reader, value, &path, namespace));
                } else {
                    rule.to.push(read_operation(reader, value, &path));
                }
            }
        }
        rules.push(rule);
    }
    rules
}

fn read_source(reader: &mut Reader, value: &Value, path: &FieldPath, namespace: &str) -> From {
    let known = [
        "principals",
        "notPrincipals",
        "namespaces",
        "notNamespaces",
        "serviceAccounts",
        "notServiceAccounts",
        "ipBlocks",
        "notIpBlocks",
        "requestPrincipals",
        "notRequestPrincipals",
    ];
    let account = |value: &Value| reader::service_account(value, namespace);
    let mut from = From::default();
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "principals" => from.principals = reader.list(value, &path, reader::principal),
            "notPrincipals" => from.not_principals = reader.list(value, &path, reader::principal),
            "namespaces" => from.namespaces = reader.list(value, &path, reader::string_match),
            "notNamespaces" => {
                from.not_namespaces = reader.list(value, &path, reader::string_match);
            }
            "serviceAccounts" => from.service_accounts = reader.list(value, &path, account),
            "notServiceAccounts" => from.not_service_accounts = reader.list(value, &path, account),
            "ipBlocks" => from.ip_blocks = reader.list(value, &path, reader::block),
            "notIpBlocks" => from.not_ip_blocks = reader.list(value, &path, reader::block),
            "requestPrincipals" => {
                from.request_principals = reader.list(value, &path, reader::string_match);
            }
            _ => from.not_request_principals = reader.list(value, &path, reader::string_match),
        }
    }
    from
}

fn read_operation(reader: &mut Reader, value: &Value, path: &FieldPath) -> To {
    let known = [
        "ports",
        "notPorts",
        "methods",
        "notMethods",
        "paths",
        "notPaths",
        "hosts",
        "notHosts",
    ];
    let mut to = To::default();
    for (key, value, path) in reader.fields(value, path, &known) {
        match key {
            "ports" => to.ports = reader.list(value, &path, reader::port),
            "notPorts" => to.not_ports = reader.list(value, &path, reader::port),
            "methods" => to.methods = reader.list(value, &path, method),
            "notMethods" => to.not_methods = reader.list(value, &path, method),
            "paths" => to.paths = reader.list(value, &path, path_match),
            "notPaths" => to.not_paths = reader.list(value, &path, path_match),
            "hosts" => to.hosts = reader.list(value, &path, host),
            _ => to.not_hosts = reader.list(value, &path, host),
        }
    }
    to
}

/// All of them must match.
fn read_conditions(
    reader: &mut Reader,
    value: &Value,
    path: &FieldPath,
    namespace: &str,
) -> Vec<Condition> {
    let mut conditions = Vec::new();
    for (value, path) in reader.items(value, path) {
        let mut key = None;
        let mut given = [None, None];
        for (name, value, path) in reader.fields(value, &path, &["key", "values", "notValues"]) {
            match name {
                "key" => key = reader.text(value, &path).map(|key| (key, path)),
                "values" => given[0] = Some((value, path)),
                _ => given[1] = Some((value, path)),
            }
        }
        if given.iter().all(Option::is_none) && value.is_object() {
            reader.report(&path.key("values"), "is missing, and so is notValues");
        }
        match key {
            Some((key, key_path)) => {
                let mut lists = Lists { reader, given };
                match read_test(&mut lists, key, namespace) {
                    Ok(test) => conditions.push(Condition {
                        key: key.into(),
                        test,
                    }),
                    Err(message) => reader.report(&key_path, message),
                }
            }
            None if value.is_object() && value.get("key").is_none() => {
                reader.report(&path.key("key"), "is missing");
            }
            None => {}
        }
    }
    conditions
}

/// `values` and `notValues` of a condition, whose items depend on its key.
struct Lists<'r, 'v> {
    reader: &'r mut Reader,
    given: [Option<(&'v Value, FieldPath)>; 2],
}

impl Lists<'_, '_> {
    fn read<T>(&mut self, parse: impl Fn(&Value) -> Result<T, String>) -> [Vec<T>; 2] {
        let reader = &mut *self.reader;
        let mut list = |given: &Option<(&Value, FieldPath)>| match given {
            Some((value, path)) => reader.list(value, path, &parse),
            None => Vec::new(),
        };
        [list(&self.given[0]), list(&self.given[1])]
    }

    fn texts(&mut self) -> Values {
        let [values, not_values] = self.read(reader::string_match);
        Values { values, not_values }
    }
}

fn read_test(lists: &mut Lists<'_, '_>, key: &str, namespace: &str) -> Result<Test, String> {
    let source = |from| Ok(Test::Source(Box::new(from)));
    match key {
        "source.ip" => {
            let [ip_blocks, not_ip_blocks] = lists.read(reader::block);
            source(From {
                ip_blocks,
                not_ip_blocks,
                ..From::default()
            })
        }
        "source.namespace" => {
            let [namespaces, not_namespaces] = lists.read(reader::string_match);
            source(From {
                namespaces,
                not_namespaces,
                ..From::default()
            })
        }
        "source.principal" => {
            let [principals, not_principals] = lists.read(reader::principal);
            source(From {
                principals,
                not_principals,
                ..From::default()
            })
        }
        "source.serviceAccount" => {
            let account = |value: &Value| reader::service_account(value, namespace);
            let [service_accounts, not_service_accounts] = lists.read(account);
            source(From {
                service_accounts,
                not_service_accounts,
                ..From::default()
            })
        }
        "request.auth.principal" => {
            let [request_principals, not_request_principals] = lists.read(reader::string_match);
            source(From {
                request_principals,
                not_request_principals,
                ..From::default()
            })
        }
        "destination.port" => {
            let [ports, not_ports] = lists.read(reader::port);
            Ok(Test::Destination(Box::new(To {
                ports,
                not_ports,
                ..To::default()
            })))
        }
        "request.auth.audiences" => Ok(claim(&["aud"], lists)),
        "request.auth.presenter" => Ok(claim(&["azp"], lists)),
        "remote.ip" => Err(reader::FORWARDED.to_owned()),
        _ => {
            if let Some(name) = key.strip_prefix("request.headers") {
                let name = header_name(name)?;
                let values = lists.texts();
                return Ok(Test::Header { name, values });
            }
            let path = key.strip_prefix("request.auth.claims").ok_or(UNKNOWN_KEY)?;
            let path = brackets(path).ok_or(UNKNOWN_KEY)?;
            Ok(claim(&path, lists))
        }
    }
}

const UNKNOWN_KEY: &str = "is not known; known are: request.headers[NAME], \
                           request.auth.claims[NAME]..., request.auth.principal, \
                           request.auth.audiences, request.auth.presenter, source.ip, \
                           source.namespace, source.principal, source.serviceAccount, \
                           destination.port";

fn claim(path: &[&str], lists: &mut Lists<'_, '_>) -> Test {
    let path = path.iter().map(|name| Arc::from(*name)).collect();
    let values = lists.texts();
    Test::Claim { path, values }
}

fn header_name(text: &str) -> Result<Arc<str>, String> {
    let names = brackets(text).ok_or(UNKNOWN_KEY)?;
    let [name] = names[..] else {
        return Err(UNKNOWN_KEY.to_owned());
    };
    if name.starts_with(':') || name.eq_ignore_ascii_case("host") {
        return Err("is no header: methods, paths and hosts are fields of an operation".to_owned());
    }
    reader::header_name(name)
}

/// The names in `[a][b]`; at least one, and none empty.
fn brackets(text: &str) -> Option<Vec<&str>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    let names: Vec<&str> = inner.split("][").collect();
    let proper = |name: &&str| !name.is_empty() && !name.contains(['[', ']']);
    names.iter().all(proper).then_some(names)
}

fn method(value: &Value) -> Result<StringMatch, String> {
    let pattern = reader::string_match(value)?;
    let text = match &pattern {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => text,
        StringMatch::Present => return Ok(pattern),
    };
    if http::Method::from_bytes(text.as_bytes()).is_err() {
        return Err(format!("{value} can never match: it is no method"));
    }
    Ok(pattern)
}

fn host(value: &Value) -> Result<StringMatch, String> {
    let pattern = reader::string_match(value)?;
    let text = match &pattern {
        StringMatch::Exact(text) | StringMatch::Prefix(text) | StringMatch::Suffix(text) => text,
        StringMatch::Present => return Ok(pattern),
    };
    let proper = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:[]".contains(&byte);
    if !text.bytes().all(proper) {
        return Err(format!("{value} can never match: it is no host"));
    }
    Ok(pattern)
}

/// Text, or a template where it has braces. It must be in the form in which paths are
/// compared, or it could never match.
fn path_match(value: &Value) -> Result<PathPattern, String> {
    let text = value.as_str().filter(|text| !text.is_empty());
    let text = text.ok_or("must be a string that is not empty")?;
    if text.contains(['{', '}']) {
        let parts = template(text)?;
        return Ok(PathPattern::Template(PathTemplate(parts)));
    }
    text_path(value).map(PathPattern::Text)
}

/// A path, or its start or end, in the form in which paths are compared.
pub(super) fn text_path(value: &Value) -> Result<StringMatch, String> {
    let pattern = reader::string_match(value)?;
    match &pattern {
        StringMatch::Exact(exact) => normal(exact, exact)?,
        // What follows may be anything, and so may be what goes before.
        StringMatch::Prefix(prefix) => normal(prefix, &format!("{prefix}x"))?,
        StringMatch::Suffix(suffix) => normal(suffix, &format!("/x{suffix}"))?,
        StringMatch::Present => {}
    }
    Ok(pattern)
}

fn normal(written: &str, path: &str) -> Result<(), String> {
    match normal_path(path) {
        Ok(normal) if *normal == *path => Ok(()),
        Ok(normal) => Err(format!(
            "{written:?} can never match: paths are compared in their normal form, such as \
             {normal}"
        )),
        Err(error) => Err(format!("{written:?} can never match: {error}")),
    }
}

fn template(text: &str) -> Result<Vec<PathPart>, String> {
    let mut parts = Vec::new();
    let mut sample = String::new();
    let mut rest = text;
    while let Some(open) = rest.find(['{', '}', '*']) {
        let (literal, operator) = rest.split_at(open);
        let (part, stands_for, after) = match () {
            () if operator.starts_with("{*}") => (PathPart::Segment, "x", &operator[3..]),
            () if operator.starts_with("{**}") => (PathPart::Rest, "x", &operator[4..]),
            () => return Err("a template has no operators but {*} and {**}".to_owned()),
        };
        if parts.contains(&PathPart::Rest) {
            return Err("{**} must be the last operator".to_owned());
        }
        if !literal.ends_with('/') || !(after.is_empty() || after.starts_with('/')) {
            return Err(format!(
                "{text:?}: {{*}} and {{**}} stand for whole segments"
            ));
        }
        parts.push(PathPart::Literal(literal.to_owned()));
        parts.push(part);
        sample.push_str(literal);
        sample.push_str(stands_for);
        rest = after;
    }
    if !rest.is_empty() {
        parts.push(PathPart::Literal(rest.to_owned()));
        sample.push_str(rest);
    }
    normal(text, &sample)?;
    Ok(parts)
}
