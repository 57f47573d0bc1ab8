//! Who a route is for, and where it leads.

use super::*;

const WEB: &str = "{name: web, group: '', kind: Service}";
const TO_V1: &str = "[{backendRefs: [{name: v1, port: 80}]}]";

#[track_caller]
fn leads(backend: &str, more: &str, expected: &str) {
    let rules = format!("[{{backendRefs: [{backend}]}}]");
    let table = table(&format!("{}{more}", http("shop/r", &rules)));
    assert_eq!(targets(&table), [expected]);
}

#[test]
fn back_ends_are_services_with_that_port() {
    leads("{name: v1, port: 80}", "", "shop/v1:80");
    leads("{name: web, port: 90}", "", "shop/web:90");
    leads(
        "{name: gone, port: 80}",
        "",
        "invalid: there is no Service shop/gone",
    );
    leads(
        "{name: v1, port: 81}",
        "",
        "invalid: Service shop/v1 has no TCP port 81",
    );
    leads(
        "{name: v1}",
        "",
        "invalid: the port of Service shop/v1 is missing",
    );
    leads(
        "{name: v1, kind: Pod, port: 80}",
        "",
        "invalid: Pod can't be a back end: only Services can",
    );
    leads(
        "{name: v1, group: example.com, kind: Service, port: 80}",
        "",
        "invalid: example.com/Service can't be a back end: only Services can",
    );
}

const NOT_PERMITTED: &str = "invalid: no ReferenceGrant in other permits HTTPRoutes of this \
                             namespace to name Service other/far";

fn grant(namespace: &str, from: &str, to: &str) -> String {
    format!(
        "\n---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: \
         {{name: g, namespace: {namespace}}}\nspec: {{from: [{from}], to: [{to}]}}\n"
    )
}

#[test]
fn another_namespace_must_permit_it() {
    let far = "{name: far, namespace: other, port: 80}";
    let shop = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}";
    let any = "{group: '', kind: Service}";
    leads(far, "", NOT_PERMITTED);
    leads(far, &grant("other", shop, any), "other/far:80");
    leads(
        far,
        &grant("other", shop, "{group: '', kind: Service, name: far}"),
        "other/far:80",
    );
    for (namespace, from, to) in [
        ("shop", shop, any),
        ("other", shop, "{group: '', kind: Service, name: near}"),
        ("other", shop, "{group: '', kind: Secret}"),
        ("other", shop, "{group: example.com, kind: Service}"),
        (
            "other",
            "{group: '', kind: HTTPRoute, namespace: shop}",
            any,
        ),
        (
            "other",
            "{group: gateway.networking.k8s.io, kind: GRPCRoute, namespace: shop}",
            any,
        ),
        (
            "other",
            "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: x}",
            any,
        ),
        (
            "other",
            "{group: gateway.networking.k8s.io, kind: HTTPRoute}",
            any,
        ),
        ("other", shop, "{group: '', kind: Service, selector: {}}"),
    ] {
        leads(far, &grant(namespace, from, to), NOT_PERMITTED);
    }
}

#[test]
fn weights_share_and_zero_gets_nothing() {
    let rules = "[{backendRefs: [{name: v1, port: 80, weight: 1}, {name: v2, port: 80, weight: 3}, \
                 {name: web, port: 80, weight: 0}, {name: gone, port: 80}]}]";
    let table = table(&http("shop/r", rules));
    let routes = routes(&table);
    let headers = HeaderMap::new();
    let head = RequestHead {
        method: &Method::GET,
        path: "/",
        query: None,
        host: "",
        headers: &headers,
    };
    let rule = routes.find(&head).unwrap().rule;
    let weights: Vec<u32> = rule.backends.iter().map(|it| it.weight).collect();
    assert_eq!(weights, [1, 3, 0, 1]);
    let chosen = |fifths: u64| {
        let random = u64::MAX / 5 * fifths + 1000;
        rule.choose(random).map(|it| it.target.clone())
    };
    let service = |text: &str| {
        Some(BackendTarget::Service {
            service: name(text),
            port: 80,
        })
    };
    assert_eq!(chosen(0), service("shop/v1"));
    for fifth in 1..4 {
        assert_eq!(chosen(fifth), service("shop/v2"));
    }
    assert!(matches!(chosen(4), Some(BackendTarget::Invalid(_))));
}

#[test]
fn no_weight_at_all_is_no_back_end() {
    for rules in ["[{}]", "[{backendRefs: [{name: v1, port: 80, weight: 0}]}]"] {
        let table = table(&http("shop/r", rules));
        let routes = routes(&table);
        let headers = HeaderMap::new();
        let head = RequestHead {
            method: &Method::GET,
            path: "/",
            query: None,
            host: "",
            headers: &headers,
        };
        let rule = routes.find(&head).unwrap().rule;
        for random in [0, 1, u64::MAX] {
            assert_eq!(rule.choose(random), None);
        }
    }
}

/// The route that requests of a client's namespace to a Service's port are for.
#[track_caller]
fn of(table: &Table, client: &str, service: &str, port: u16, expected: &str) {
    let found = table.routes(client, &name(service), port);
    let found = found.map_or("straight".to_owned(), |routes| rule(&routes, "GET /"));
    let (found, _) = found.split_once('#').unwrap_or((&found, ""));
    assert_eq!(found, expected);
}

#[test]
fn a_route_is_of_the_ports_that_its_parent_names() {
    let every = table(&route("HTTPRoute", "shop/r", WEB, TO_V1));
    of(&every, "x", "shop/web", 80, "r");
    of(&every, "x", "shop/web", 90, "r");
    of(&every, "x", "shop/web", 91, "straight");
    of(&every, "x", "shop/v1", 80, "straight");

    let port = "{name: web, group: '', kind: Service, port: 90}";
    let one = table(&route("HTTPRoute", "shop/r", port, TO_V1));
    of(&one, "x", "shop/web", 80, "straight");
    of(&one, "x", "shop/web", 90, "r");

    let section = "{name: web, group: '', kind: Service, sectionName: admin}";
    let named = table(&route("HTTPRoute", "shop/r", section, TO_V1));
    of(&named, "x", "shop/web", 80, "straight");
    of(&named, "x", "shop/web", 90, "r");

    let both = "{name: web, group: '', kind: Service, sectionName: admin, port: 80}";
    let none = table(&route("HTTPRoute", "shop/r", both, TO_V1));
    of(&none, "x", "shop/web", 80, "straight");
    of(&none, "x", "shop/web", 90, "straight");
}

#[test]
fn other_parents_are_not_ours() {
    for parent in [
        "{name: web}",
        "{name: web, kind: Gateway}",
        "{name: web, kind: Service}",
        "{name: web, group: '', kind: Pod}",
        "{name: web, group: example.com, kind: Service}",
        "{name: web, group: '', kind: Service, weight: 1}",
        "{group: '', kind: Service}",
        "{name: web, group: '', kind: Service, port: 0}",
    ] {
        let table = table(&route("HTTPRoute", "shop/r", parent, TO_V1));
        of(&table, "shop", "shop/web", 80, "straight");
    }
    let gateway = route(
        "HTTPRoute",
        "shop/r",
        "{name: g}",
        "[{filters: [{type: Magic}]}]",
    );
    assert_eq!(objects(&gateway).1, Vec::<String>::new());
}

#[test]
fn consumer_routes_are_for_clients_of_their_namespace() {
    let parent = "{name: web, namespace: shop, group: '', kind: Service, port: 80}";
    let consumer = route("HTTPRoute", "app/consumer", parent, "[{}]");
    let alone = table(&consumer);
    of(&alone, "app", "shop/web", 80, "consumer");
    of(&alone, "shop", "shop/web", 80, "straight");
    of(&alone, "x", "shop/web", 80, "straight");

    let producer = route("HTTPRoute", "shop/producer", WEB, "[{}]");
    let both = table(&format!("{consumer}{producer}"));
    of(&both, "app", "shop/web", 80, "consumer");
    of(&both, "app", "shop/web", 90, "producer");
    of(&both, "shop", "shop/web", 80, "producer");
    of(&both, "x", "shop/web", 80, "producer");
}

#[test]
fn a_consumer_route_may_lead_to_its_own_parent() {
    let parent = "{name: web, namespace: shop, group: '', kind: Service}";
    let rules = "[{backendRefs: [{name: web, namespace: shop, port: 80}]}]";
    let table = table(&route("HTTPRoute", "app/r", parent, rules));
    let routes = table.routes("app", &name("shop/web"), 80).unwrap();
    let headers = HeaderMap::new();
    let head = RequestHead {
        method: &Method::GET,
        path: "/",
        query: None,
        host: "",
        headers: &headers,
    };
    let rule = routes.find(&head).unwrap().rule;
    let target = BackendTarget::Service {
        service: name("shop/web"),
        port: 80,
    };
    assert_eq!(rule.backends[0].target, target);
}

#[test]
fn a_parent_takes_a_grant_where_there_is_another_parent() {
    let far = "{name: far, namespace: other, group: '', kind: Service}";
    let rules = "[{backendRefs: [{name: far, namespace: other, port: 80}]}]";
    let other_ports =
        format!("{far}, {{name: far, namespace: other, group: '', kind: Service, port: 80}}");
    let led = |parents: &str, client: &str, service: &str| {
        let table = table(&route("HTTPRoute", "shop/r", parents, rules));
        let routes = table.routes(client, &name(service), 80);
        targets_of(&routes.expect("there are routes"))
    };
    assert_eq!(led(&other_ports, "shop", "other/far"), ["other/far:80"]);
    let both = format!("{far}, {WEB}");
    assert_eq!(led(&both, "shop", "shop/web"), [NOT_PERMITTED]);
    assert_eq!(led(&both, "shop", "other/far"), [NOT_PERMITTED]);
    let unclear =
        format!("{far}, {{name: far, namespace: other, group: '', kind: Service, port: x}}");
    assert_eq!(led(&unclear, "shop", "other/far"), [NOT_PERMITTED]);
}

#[test]
fn the_most_specific_kind_is_in_force() {
    let port = "{name: web, group: '', kind: Service, port: 80}";
    let http = route("HTTPRoute", "shop/http", WEB, "[{}]");
    let grpc = route("GRPCRoute", "shop/grpc", port, "[{}]");
    let tcp = route("TCPRoute", "shop/tcp", WEB, TO_V1);
    let all = table(&format!("{http}{grpc}{tcp}"));
    let found = all.routes("x", &name("shop/web"), 80).unwrap();
    check(&found, "POST /a.B/C", "grpc#0");
    check(&found, "GET /", "none");
    of(&all, "x", "shop/web", 90, "http");
    assert!(all.connection_routes("x", &name("shop/web"), 90).is_none());

    let tcp = table(&tcp);
    assert!(tcp.routes("x", &name("shop/web"), 80).is_none());
    let routes = tcp.connection_routes("x", &name("shop/web"), 80).unwrap();
    assert_eq!(&*routes.find(None).unwrap().label, "TCPRoute shop/tcp#0");
    assert!(!routes.by_name());
}

#[test]
fn tls_routes_are_by_name() {
    let tls = |name: &str, hostnames: &str| {
        route("TLSRoute", name, WEB, TO_V1)
            .replace("spec:", &format!("spec:\n  hostnames: [{hostnames}]"))
    };
    let text = [
        tls("shop/exact", "a.example.com"),
        tls("shop/long", "'*.b.example.com'"),
        tls("shop/short", "'*.example.com', A.EXAMPLE.com"),
        tls("shop/broken", "'*'"),
    ];
    let table = table(&text.concat());
    let routes = table.connection_routes("x", &name("shop/web"), 80).unwrap();
    assert!(routes.by_name());
    let found = |name: Option<&str>| {
        let rule = routes.find(name);
        rule.map(|rule| rule.label.to_string())
    };
    let label = |name: &str| Some(format!("TLSRoute shop/{name}#0"));
    assert_eq!(found(Some("a.example.com")), label("exact"));
    assert_eq!(found(Some("A.Example.COM.")), label("exact"));
    assert_eq!(found(Some("x.example.com")), label("short"));
    assert_eq!(found(Some("x.y.example.com")), label("short"));
    assert_eq!(found(Some("x.b.example.com")), label("long"));
    assert_eq!(found(Some("b.example.com")), label("short"));
    assert_eq!(found(Some("example.com")), None);
    assert_eq!(found(None), None);
}

#[test]
fn a_headless_service_has_no_routes() {
    let headless = "\n---\napiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: \
                    shop}\nspec: {clusterIP: None, ports: [{port: 80}]}\n";
    let table = table(&format!("{}{headless}", http("shop/r", TO_V1)));
    of(&table, "shop", "shop/web", 80, "straight");
}
