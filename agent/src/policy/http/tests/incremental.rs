//! What a change costs.

use super::*;

fn next(table: &Table, snapshot: Snapshot) -> Table {
    Table::compile(Some(table), snapshot)
}

#[test]
fn what_is_named_comes_and_goes() {
    let mut world = world(&http("shop/r", "[{backendRefs: [{name: late, port: 80}]}]"));
    let table = Table::compile(None, world.now());
    assert_eq!(targets(&table), ["invalid: there is no Service shop/late"]);

    put(
        &mut world,
        "{apiVersion: v1, kind: Service, metadata: {name: late, namespace: shop}, spec: \
         {clusterIP: 10.96.0.9, ports: [{port: 80}]}}",
    );
    let table = next(&table, world.now());
    assert_eq!(targets(&table), ["shop/late:80"]);

    world.remove(ObjectKind::Service, "shop/late");
    let table = next(&table, world.now());
    assert_eq!(targets(&table), ["invalid: there is no Service shop/late"]);

    world.remove(ObjectKind::Service, "shop/web");
    let table = next(&table, world.now());
    assert!(table.routes("shop", &name("shop/web"), 80).is_none());

    put(&mut world, SERVICES);
    let table = next(&table, world.now());
    assert!(table.routes("shop", &name("shop/web"), 80).is_some());

    world.remove(ObjectKind::HttpRoute, "shop/r");
    let table = next(&table, world.now());
    assert!(table.routes("shop", &name("shop/web"), 80).is_none());
}

#[test]
fn a_grant_comes_and_goes() {
    let rules = "[{backendRefs: [{name: far, namespace: other, port: 80}]}]";
    let mut world = world(&http("shop/r", rules));
    let table = Table::compile(None, world.now());
    assert!(targets(&table)[0].starts_with("invalid: no ReferenceGrant"));
    put(
        &mut world,
        "{apiVersion: gateway.networking.k8s.io/v1, kind: ReferenceGrant, metadata: {name: g, \
         namespace: other}, spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, \
         namespace: shop}], to: [{group: '', kind: Service}]}}",
    );
    let table = next(&table, world.now());
    assert_eq!(targets(&table), ["other/far:80"]);
    world.remove(ObjectKind::ReferenceGrant, "other/g");
    let table = next(&table, world.now());
    assert!(targets(&table)[0].starts_with("invalid: no ReferenceGrant"));
}

#[test]
fn a_route_moves_to_another_parent() {
    let mut world = world(&http("shop/r", "[{}]"));
    let table = Table::compile(None, world.now());
    let v1 = "{name: v1, group: '', kind: Service}";
    put(&mut world, &route("HTTPRoute", "shop/r", v1, "[{}]"));
    let table = next(&table, world.now());
    assert!(table.routes("shop", &name("shop/web"), 80).is_none());
    assert!(table.routes("shop", &name("shop/v1"), 80).is_some());

    put(
        &mut world,
        &route("HTTPRoute", "shop/r", "{name: gateway}", "[{}]"),
    );
    let table = next(&table, world.now());
    assert!(table.routes("shop", &name("shop/v1"), 80).is_none());
}

#[test]
fn routes_of_other_services_stay_as_they_are() {
    let v1 = "{name: v1, group: '', kind: Service}";
    let other = route(
        "HTTPRoute",
        "shop/other",
        v1,
        "[{backendRefs: [{name: v2, port: 80}]}]",
    );
    let mut world = world(&format!("{}{other}", http("shop/r", "[{}]")));
    let table = Table::compile(None, world.now());
    let of_v1 = |table: &Table| table.routes("shop", &name("shop/v1"), 80).unwrap();
    let before = of_v1(&table);

    put(&mut world, &http("shop/r", "[{name: changed}]"));
    let table = next(&table, world.now());
    check(&routes(&table), "GET /", "r#changed");
    assert!(Arc::ptr_eq(&before, &of_v1(&table)));

    put(&mut world, &http("shop/new", "[{}]"));
    let table = next(&table, world.now());
    assert!(Arc::ptr_eq(&before, &of_v1(&table)));
}

#[test]
fn routes_of_other_namespaces_stay_as_they_are() {
    let consumer = |parent: &str| {
        let parent = format!("{{name: {parent}, namespace: shop, group: '', kind: Service}}");
        route("HTTPRoute", "app/r", &parent, "[{}]")
    };
    let mut world = world(&format!("{}{}", consumer("web"), http("shop/r", "[{}]")));
    let table = Table::compile(None, world.now());
    let of_app = |table: &Table| table.routes("app", &name("shop/web"), 80).unwrap();
    let (app, shop) = (of_app(&table), routes(&table));

    put(&mut world, &http("shop/r", "[{name: changed}]"));
    let table = next(&table, world.now());
    check(&routes(&table), "GET /", "r#changed");
    assert!(Arc::ptr_eq(&app, &of_app(&table)));
    assert!(!Arc::ptr_eq(&shop, &routes(&table)));

    put(&mut world, &consumer("v1"));
    let table = next(&table, world.now());
    check(&of_app(&table), "GET /", "r#changed");
}

#[test]
fn the_state_says_what_is_not_found() {
    let rules = "[{backendRefs: [{name: gone, port: 80}], filters: [{type: RequestMirror, \
                 requestMirror: {backendRef: {name: far, namespace: other, port: 80}}}]}]";
    let parent = "{name: nobody, group: '', kind: Service}";
    let mut world = world(&route("HTTPRoute", "shop/r", parent, rules));
    let said = |snapshot: &Snapshot| {
        let problems = snapshot.problems.iter();
        problems
            .map(|it| format!("{} {}: {}", it.object, it.field, it.message))
            .collect::<Vec<_>>()
    };
    assert_eq!(
        said(&world.now()),
        [
            "shop/r spec.parentRefs[0]: shop/nobody: there is no such Service; the route has no \
             effect there",
            "shop/r spec.rules[0].backendRefs[0]: there is no Service shop/gone: requests for it \
             are refused",
            "shop/r spec.rules[0].filters[0].requestMirror.backendRef: no ReferenceGrant in other \
             permits HTTPRoutes of this namespace to name Service other/far: requests for it are \
             refused",
        ]
    );
    let key = ObjectKey {
        kind: ObjectKind::HttpRoute,
        name: name("shop/r"),
    };
    assert!(world.0.publish().is_none());
    world.remove(key.kind, "shop/r");
    assert_eq!(said(&world.now()), Vec::<String>::new());
}
