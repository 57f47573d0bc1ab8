//! What is said of routes, and that what others say stays.

use super::super::routes::verdicts_of_routes;
use super::*;

fn route(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop", "uid": "1", "generation": 1},
        "spec": spec,
    })
}

fn web() -> Value {
    json!({"group": "", "kind": "Service", "name": "web"})
}

/// A Service that clients can dial.
fn dialled(name: &str) -> Value {
    let mut service = service(name);
    service["spec"]["clusterIP"] = "10.96.0.1".into();
    service
}

/// The entries of the route `shop/r` of this kind, where there are Service `shop/web` and
/// these objects.
fn said(objects: &[Value], current: &[Value]) -> Vec<Value> {
    let mut state = StateWriter::new();
    let mut snapshot = take(&mut state, &dialled("web"));
    for object in objects {
        snapshot = take(&mut state, object);
    }
    let verdicts = verdicts_of_routes(&snapshot);
    let (_, verdict) = verdicts
        .into_iter()
        .find(|(key, _)| &*key.name.name == "r")
        .unwrap();
    let entries = verdict.entries(current, Timestamp::from_second(0).unwrap());
    assert!(verdict.is_said_by(&entries));
    entries
}

/// The conditions of the first entry, a line each.
fn conditions(objects: &[Value]) -> Vec<String> {
    let entries = said(objects, &[]);
    let conditions = entries[0]["conditions"].as_array().unwrap();
    let text = |it: &Value, key: &str| it[key].as_str().unwrap().to_owned();
    conditions
        .iter()
        .map(|it| {
            let [kind, status, reason, message] =
                ["type", "status", "reason", "message"].map(|key| text(it, key));
            format!("{kind} {status} {reason}: {message}")
        })
        .collect()
}

/// Of an `HTTPRoute` of `web` with these rules.
fn of_rules(rules: &Value) -> Vec<String> {
    let spec = json!({"parentRefs": [web()], "rules": rules});
    conditions(&[route("HTTPRoute", "r", &spec)])
}

const RESOLVED: &str = "ResolvedRefs True ResolvedRefs: every reference is resolved";
const ACCEPTED: &str = "Accepted True Accepted: in force";

#[test]
fn a_route_that_is_right() {
    let rules = json!([{"backendRefs": [{"name": "web", "port": 80}]}]);
    assert_eq!(of_rules(&rules), [ACCEPTED, RESOLVED]);
}

#[test]
fn parents_are_repeated_as_they_were_written() {
    let mut full = web();
    full["namespace"] = "shop".into();
    full["port"] = 80.into();
    let gateway = json!({"name": "gateway"});
    let spec = json!({"parentRefs": [gateway, full, web()]});
    let entries = said(&[route("HTTPRoute", "r", &spec)], &[]);
    let parents: Vec<&Value> = entries.iter().map(|it| &it["parentRef"]).collect();
    assert_eq!(parents, [&full, &web()]);
    assert_eq!(entries[0]["controllerName"], "fairlead.dev/mesh");
    assert_eq!(entries[0]["conditions"][0]["observedGeneration"], 1);
}

#[test]
fn a_parent_that_is_not_there() {
    let of = |parent: &Value| {
        let spec = json!({"parentRefs": [parent], "rules": []});
        conditions(&[route("HTTPRoute", "r", &spec)])[0].clone()
    };
    let mut nobody = web();
    nobody["name"] = "nobody".into();
    assert_eq!(
        of(&nobody),
        "Accepted False NoMatchingParent: shop/nobody: there is no such Service"
    );
    let mut port = web();
    port["port"] = 81.into();
    assert_eq!(
        of(&port),
        "Accepted False NoMatchingParent: shop/web: the Service has no such TCP port"
    );
    port["port"] = 0.into();
    assert_eq!(
        of(&port),
        "Accepted False UnsupportedValue: spec.parentRefs[0].port: 0 is not a port: 1 to 65535"
    );
}

#[test]
fn references_that_are_not_resolved() {
    let of = |backend: Value| {
        let said = of_rules(&json!([{"backendRefs": [backend]}]));
        assert_eq!(said[0], ACCEPTED);
        said[1].clone()
    };
    assert_eq!(
        of(json!({"name": "gone", "port": 80})),
        "ResolvedRefs False BackendNotFound: spec.rules[0].backendRefs[0]: there is no Service \
         shop/gone"
    );
    assert!(of(json!({"name": "web", "port": 81})).contains("False BackendNotFound"));
    assert!(of(json!({"name": "web", "kind": "Pod"})).contains("False InvalidKind"));
    let far = json!({"name": "far", "namespace": "other", "port": 80});
    assert!(of(far).contains("False RefNotPermitted"));
    let mirror = json!([{"filters": [{
        "type": "RequestMirror", "requestMirror": {"backendRef": {"name": "gone", "port": 80}},
    }]}]);
    assert!(of_rules(&mirror)[1].contains(
        "BackendNotFound: spec.rules[0].filters[0].requestMirror.backendRef: there is no Service"
    ));
}

#[test]
fn rules_that_are_not_understood() {
    let magic = json!({"filters": [{"type": "Magic"}]});
    let why = "spec.rules[0].filters[0].type: Magic is not supported; there are \
               RequestHeaderModifier, ResponseHeaderModifier, RequestMirror, RequestRedirect, \
               URLRewrite, CORS";
    assert_eq!(
        of_rules(&json!([magic])),
        [
            &format!("Accepted False UnsupportedValue: no rule is understood: 0 ({why})"),
            RESOLVED
        ]
    );
    assert_eq!(
        of_rules(&json!([magic, {}])),
        [
            ACCEPTED,
            &format!("PartiallyInvalid True UnsupportedValue: Dropped Rule 0 ({why})"),
            RESOLVED
        ]
    );
    let explodes = "((a{1,100}){1,100}){1,100}";
    let path = json!({"path": {"type": "RegularExpression", "value": explodes}});
    let one = of_rules(&json!([{"matches": [path, {"method": "GET"}]}]));
    assert!(
        one[1].starts_with(
            "PartiallyInvalid True UnsupportedValue: Dropped Rule parts\n\
             spec.rules[0].matches[0].path.value: is a regular expression that grows beyond"
        ),
        "{one:?}"
    );
    let none = of_rules(&json!([{"matches": [path]}]));
    assert!(
        none[0].starts_with("Accepted False UnsupportedValue"),
        "{none:?}"
    );
    let both = json!([{"filters": [
        {"type": "RequestRedirect", "requestRedirect": {"port": 1}},
        {"type": "URLRewrite", "urlRewrite": {"hostname": "a"}},
    ]}]);
    assert!(of_rules(&both)[0].starts_with("Accepted False IncompatibleFilters"));
}

#[test]
fn the_less_specific_kind_is_conflicted() {
    let spec = json!({"parentRefs": [web()], "rules": [{"backendRefs": [
        {"name": "web", "port": 80},
    ]}]});
    let of = |kind: &str, other: &str| {
        let both = [route(kind, "r", &spec), route(other, "other", &spec)];
        conditions(&both)[0].clone()
    };
    assert_eq!(of("GRPCRoute", "HTTPRoute"), ACCEPTED);
    assert_eq!(
        of("HTTPRoute", "GRPCRoute"),
        "Accepted False Conflicted: there are GRPCRoutes of shop/web for the same ports, which \
         are more specific"
    );
    assert!(of("TCPRoute", "TLSRoute").starts_with("Accepted False Conflicted"));
    assert_eq!(of("HTTPRoute", "HTTPRoute"), ACCEPTED);
}

#[test]
fn what_others_say_stays() {
    let theirs = json!({
        "parentRef": {"name": "gateway"},
        "controllerName": "example.com/gateway",
        "conditions": [{"type": "Accepted", "status": "True", "extra": [1]}],
    });
    let same_parent = json!({"parentRef": web(), "controllerName": "example.com/x"});
    let spec = json!({"parentRefs": [{"name": "gateway"}, web()]});
    let objects = [route("HTTPRoute", "r", &spec)];
    let before = said(&objects, &[]);
    let mut turned = before[0].clone();
    turned["conditions"][0]["lastTransitionTime"] = "2001-02-03T04:05:06Z".into();
    turned["conditions"][0]["message"] = "something else".into();
    let stale = json!({"parentRef": {"name": "x"}, "controllerName": "fairlead.dev/mesh"});
    let after = said(
        &objects,
        &[theirs.clone(), stale, turned, same_parent.clone()],
    );
    assert_eq!(after[..2], [theirs, same_parent]);
    assert_eq!(after.len(), 3);
    let condition = &after[2]["conditions"][0];
    assert_eq!(condition["lastTransitionTime"], "2001-02-03T04:05:06Z");
    assert_eq!(condition["message"], "in force");
}

const PATH: &str = "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/r";

#[tokio::test(start_paused = true)]
async fn it_is_written_beside_what_others_wrote() {
    let mut world = World::new();
    let spec = json!({"parentRefs": [web()], "rules": [{"backendRefs": [
        {"name": "web", "port": 80},
    ]}]});
    let mut object = route("HTTPRoute", "r", &spec);
    let snapshot = take(&mut world.state, &object);
    let theirs = json!({"parentRef": {"name": "g"}, "controllerName": "example.com/gateway"});
    object["status"] = json!({"parents": [theirs]});
    world.api.put(PATH, object);
    world.snapshots.send_replace(snapshot);
    let _agent = world.agent("a");
    sleep(Duration::from_secs(10)).await;
    let written = || world.api.get(PATH).unwrap()["status"]["parents"].clone();
    assert_eq!(written()[0], theirs);
    assert_eq!(written()[1]["conditions"][0]["reason"], "NoMatchingParent");

    let snapshot = take(&mut world.state, &dialled("web"));
    world.snapshots.send_replace(snapshot);
    sleep(Duration::from_secs(10)).await;
    assert_eq!(written()[0], theirs);
    assert_eq!(written()[1]["conditions"][0]["reason"], "Accepted");
    sleep(REFRESH * 3).await;
    let writes = world
        .api
        .requests(&Method::PATCH, &format!("{PATH}/status"));
    assert_eq!(writes, 2);
}

#[tokio::test(start_paused = true)]
async fn a_route_of_gateways_alone_is_not_written() {
    let mut world = World::new();
    let object = route("HTTPRoute", "r", &json!({"parentRefs": [{"name": "g"}]}));
    let snapshot = take(&mut world.state, &object);
    world.api.put(PATH, object);
    world.snapshots.send_replace(snapshot);
    let _agent = world.agent("a");
    sleep(Duration::from_secs(10)).await;
    let writes = world
        .api
        .requests(&Method::PATCH, &format!("{PATH}/status"));
    assert_eq!(writes, 0);
}
