//! The manifests of the Gateway API's own mesh tests, where they lie beside the repository.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::*;

const NAMESPACE: &str = "gateway-conformance-mesh";

/// Where the manifests are: `FAIRLEAD_GATEWAY_API`, else `shared/gateway-api` beside the
/// repository or the folder that it is in.
fn manifests() -> Option<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).parent()?;
    let beside = repository.ancestors().skip(1).take(2);
    let beside = beside.map(|folder| folder.join("shared/gateway-api"));
    let given = std::env::var_os("FAIRLEAD_GATEWAY_API").map(PathBuf::from);
    let mut places = given.into_iter().chain(beside);
    places.find_map(|place| Some(place.join("conformance")).filter(|it| it.is_dir()))
}

/// The table of the base and one manifest; `None` where there are none here.
fn with(manifest: &str) -> Option<Table> {
    let Some(folder) = manifests() else {
        eprintln!("skipped: the manifests are not here; FAIRLEAD_GATEWAY_API says where they are");
        return None;
    };
    let read = |path: &str| std::fs::read_to_string(folder.join(path)).unwrap();
    let base = read("mesh-base.yaml");
    let (objects, _) = objects(&base);
    let mut world = World::new(objects);
    for (index, service) in ["echo", "echo-v1", "echo-v2"].into_iter().enumerate() {
        // As the API server would give them.
        let named = |object: &&Object| match object {
            Object::Service(found) => &*found.name.name == service,
            _ => false,
        };
        let (objects, _) = super::objects(&base);
        let Some(Object::Service(found)) = objects.iter().find(named).cloned() else {
            panic!("the base has no Service {service}");
        };
        world.put(Object::Service(crate::state::Service {
            cluster_ips: vec![format!("10.96.0.{}", index + 1).parse().unwrap()],
            ..found
        }));
    }
    let (routes, problems) = super::objects(&read(&format!("mesh/{manifest}.yaml")));
    assert_eq!(problems, Vec::<String>::new(), "{manifest}");
    for route in routes {
        world.put(route);
    }
    Some(Table::compile(None, world.now()))
}

fn of(table: &Table, service: &str, port: u16) -> Option<Arc<Routes>> {
    table.routes(NAMESPACE, &name(&format!("{NAMESPACE}/{service}")), port)
}

/// The back ends of a request, with their weights.
fn back_ends(routes: &Routes, request: &str) -> BTreeMap<String, u32> {
    let (request, version) = request.split_once(' ').unwrap_or((request, ""));
    let (path, query) = request.split_once('?').unwrap_or((request, ""));
    let mut headers = HeaderMap::new();
    if !version.is_empty() {
        headers.insert("version", HeaderValue::from_str(version).unwrap());
    }
    let found = routes.find(&RequestHead {
        method: &Method::GET,
        path,
        query: Some(query).filter(|query| !query.is_empty()),
        host: "echo",
        headers: &headers,
    });
    let Some(found) = found else {
        return BTreeMap::new();
    };
    assert_eq!(found.rule.invalid, None);
    let named = found
        .rule
        .backends
        .iter()
        .map(|backend| match &backend.target {
            BackendTarget::Service { service, .. } => (service.name.to_string(), backend.weight),
            BackendTarget::Invalid(why) => panic!("{why}"),
        });
    named.collect()
}

/// One version of the echo server, by the number at its end; 404 where there is none.
#[track_caller]
fn check(table: &Table, request: &str, expected: &str) {
    let found = back_ends(&of(table, "echo", 80).unwrap(), request);
    let found: Vec<&str> = found.keys().map(String::as_str).collect();
    let found = found.first().map_or("404", |name| &name["echo-".len()..]);
    assert_eq!(found, expected, "{request}");
}

#[test]
fn matching() {
    let Some(table) = with("httproute-matching") else {
        return;
    };
    for (request, expected) in [
        ("/", "v1"),
        ("/example", "v1"),
        ("/ one", "v1"),
        ("/v2", "v2"),
        ("/v2/example", "v2"),
        ("/v2/", "v2"),
        ("/ two", "v2"),
        ("/v2example", "v1"),
        ("/foo/v2/example", "v1"),
    ] {
        check(&table, request, expected);
    }
}

#[test]
fn parameters_of_the_query() {
    let Some(table) = with("httproute-query-param-matching") else {
        return;
    };
    for (request, expected) in [
        ("/?animal=whale", "v1"),
        ("/?animal=dolphin", "v2"),
        ("/?animal=whale&otherparam=irrelevant", "v1"),
        ("/?animal=dolphin&color=blue", "v2"),
        ("/?ANIMAL=Whale", "404"),
        ("/path1?animal=whale", "v1"),
        ("/?animal=whale one", "v2"),
        ("/path3?animal=shark", "v1"),
        ("/path4?animal=kraken three", "v1"),
        ("/?animal=shark", "404"),
        ("/path4?animal=kraken", "404"),
        ("/path5?animal=hydra", "v1"),
        ("/path3?animal=hydra", "v2"),
        ("/", "404"),
    ] {
        check(&table, request, expected);
    }
}

#[test]
fn weights() {
    let weights = |pairs: &[(&str, u32)]| {
        let pairs = pairs
            .iter()
            .map(|(name, weight)| ((*name).to_owned(), *weight));
        pairs.collect::<BTreeMap<_, _>>()
    };
    if let Some(table) = with("httproute-weight") {
        let found = back_ends(&of(&table, "echo", 80).unwrap(), "/");
        assert_eq!(found, weights(&[("echo-v1", 70), ("echo-v2", 30)]));
    }
}

#[test]
fn a_service_split_and_its_ports() {
    let Some(table) = with("mesh-split") else {
        return;
    };
    check(&table, "/v1", "v1");
    check(&table, "/v2", "v2");
    check(&table, "/", "404");
    assert!(of(&table, "echo-v1", 80).is_none());
    let ports = with("mesh-ports").unwrap();
    for (service, port, expected) in [
        ("echo-v1", 80, true),
        ("echo-v1", 8080, false),
        ("echo-v2", 80, true),
        ("echo-v2", 8080, true),
        ("echo", 80, false),
    ] {
        assert_eq!(
            of(&ports, service, port).is_some(),
            expected,
            "{service} {port}"
        );
    }
}

#[test]
fn every_manifest_is_understood() {
    let Some(folder) = manifests() else {
        return;
    };
    for entry in std::fs::read_dir(folder.join("mesh")).unwrap() {
        let path = entry.unwrap().path();
        let manifest = path.file_stem().unwrap().to_str().unwrap();
        let table = with(manifest).unwrap();
        assert!(!table.snapshot().routes.is_empty(), "{manifest}");
    }
}
