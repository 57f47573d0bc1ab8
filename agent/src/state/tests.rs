//! What a sequence of changes makes of the state.

use std::net::SocketAddr;
use std::sync::Arc;

use super::fixtures::{World, ip, labels, name, namespace, node, pod, port, service};
use super::{
    Action, AuthorizationPolicy, Change, Dict, Endpoint, EndpointSlice, MESH_LABEL, Namespace,
    Object, ObjectKind, Origin, Pod, PodPhase, PolicyScope, Problem, Service, SliceAddress,
    Snapshot, TargetPort, Writer,
};

impl World {
    /// Endpoints as `ip:port`, with a `!` where not ready.
    #[track_caller]
    fn check_endpoints(&mut self, service: &str, port: u16, expected: &[&str]) {
        let snapshot = self.0.publish().unwrap_or_else(|| self.0.snapshot.clone());
        let endpoints = snapshot.endpoints.get(&(name(service), port));
        let text = |e: &Endpoint| format!("{}:{}{}", e.ip, e.port, if e.ready { "" } else { "!" });
        let found: Vec<String> = endpoints.unwrap().iter().map(text).collect();
        assert_eq!(found, expected);
    }
}

#[track_caller]
fn check_enrolled(pod: &Pod, namespace_label: Option<&str>, expected: bool) {
    let mut objects = vec![Object::Pod(pod.clone())];
    objects.extend(namespace_label.map(|label| namespace(&pod.name.namespace, label)));
    // In either order.
    for _ in 0..2 {
        let snapshot = World::new(objects.clone()).now();
        assert_eq!(snapshot.pods[&pod.name].enrolled, expected);
        objects.reverse();
    }
}

#[test]
fn enrolment_is_of_namespace_unless_the_pod_says_otherwise() {
    let labelled = |label| Pod {
        labels: labels(&[(MESH_LABEL, label)]),
        ..pod("shop/a", &["10.0.0.1"])
    };
    check_enrolled(&pod("shop/a", &["10.0.0.1"]), None, false);
    check_enrolled(&pod("shop/a", &["10.0.0.1"]), Some("enabled"), true);
    check_enrolled(&pod("shop/a", &["10.0.0.1"]), Some("disabled"), false);
    check_enrolled(&pod("shop/a", &["10.0.0.1"]), Some("yes"), false);
    check_enrolled(&labelled("disabled"), Some("enabled"), false);
    check_enrolled(&labelled("enabled"), Some("disabled"), true);
    check_enrolled(&labelled("enabled"), None, true);
    check_enrolled(&labelled("maybe"), Some("enabled"), true);
}

#[test]
fn some_pods_are_never_enrolled() {
    check_enrolled(&pod("shop/a", &[]), Some("enabled"), false);
    let host = Pod {
        host_network: true,
        ..pod("shop/a", &["10.0.0.1"])
    };
    check_enrolled(&host, Some("enabled"), false);
    let finished = Pod {
        phase: PodPhase::Finished,
        ..pod("shop/a", &["10.0.0.1"])
    };
    check_enrolled(&finished, Some("enabled"), false);
}

#[test]
fn a_pod_with_a_kernel_of_its_own_is_not_enrolled_and_says_why() {
    let classed = |class: &str| Pod {
        runtime_class: Some(class.into()),
        ..pod("shop/a", &["10.0.0.1"])
    };
    for class in ["kata", "kata-qemu", "gvisor", "runsc"] {
        check_enrolled(&classed(class), Some("enabled"), false);
    }
    check_enrolled(&classed("nvidia"), Some("enabled"), true);
    let mut world = World::new([Object::Pod(classed("kata-qemu"))]);
    assert!(world.now().problems.is_empty(), "nobody asked for it");
    world.put(namespace("shop", "enabled"));
    let problem = world.now().problems.iter().next().cloned().unwrap();
    assert_eq!(problem.field, "spec.runtimeClassName");
    assert!(problem.message.contains("kata-qemu"), "{problem:?}");
    world.remove(ObjectKind::Pod, "shop/a");
    assert!(world.now().problems.is_empty());
}

#[test]
fn a_pod_without_a_service_account_is_not_enrolled_and_says_why() {
    let mut nobody = pod("shop/a", &["10.0.0.1"]);
    nobody.identity.service_account = "".into();
    check_enrolled(&nobody, Some("enabled"), false);
    let mut world = World::new([Object::Pod(nobody.clone())]);
    assert!(world.now().problems.is_empty(), "nobody asked for it");
    world.put(namespace("shop", "enabled"));
    let problem = world.now().problems.iter().next().cloned().unwrap();
    assert_eq!(problem.field, "spec.serviceAccountName");
    world.put(Object::Pod(Pod {
        host_network: true,
        ..nobody
    }));
    assert!(world.now().problems.is_empty(), "it never would be");
}

#[test]
fn a_pod_is_wanted_before_it_has_an_address() {
    let mut world = World::new([
        namespace("shop", "enabled"),
        Object::Pod(pod("shop/a", &[])),
        Object::Pod(pod("guest/a", &[])),
    ]);
    let snapshot = world.now();
    assert!(snapshot.wants(&snapshot.pods[&name("shop/a")]));
    assert!(!snapshot.wants(&snapshot.pods[&name("guest/a")]));
    assert!(!snapshot.pods[&name("shop/a")].enrolled);
}

#[test]
fn a_namespace_that_goes_takes_the_enrolment_with_it() {
    let mut world = World::new([
        namespace("shop", "enabled"),
        Object::Pod(pod("shop/a", &["10.0.0.1"])),
        Object::Pod(pod("shopping/a", &["10.0.0.2"])),
    ]);
    let snapshot = world.now();
    assert!(snapshot.pods[&name("shop/a")].enrolled);
    assert!(snapshot.pods_by_ip[&ip("10.0.0.1")].enrolled);
    assert!(!snapshot.pods[&name("shopping/a")].enrolled);
    world.remove(ObjectKind::Namespace, "shop");
    let snapshot = world.now();
    assert!(!snapshot.pods[&name("shop/a")].enrolled);
    assert!(!snapshot.pods_by_ip[&ip("10.0.0.1")].enrolled);
}

#[test]
fn the_first_snapshot_is_published_even_if_empty_and_then_only_changes() {
    let mut writer = Writer::new();
    assert_eq!(writer.publish().unwrap().revision, 1);
    assert!(writer.publish().is_none());
    let object = Object::Pod(pod("shop/a", &["10.0.0.1"]));
    writer.apply(Change::Upsert(object.clone(), Origin::default()));
    assert_eq!(writer.publish().unwrap().revision, 2);
    writer.apply(Change::Upsert(object, Origin::default()));
    assert!(writer.publish().is_none());
}

#[test]
fn an_address_of_two_pods_belongs_to_none_until_one_goes() {
    let mut world = World::new([
        Object::Service(service("shop/web", "10.96.0.1")),
        Object::Pod(pod("shop/a", &["10.0.0.1"])),
        Object::Pod(pod("other/b", &["10.0.0.1", "10.0.0.2"])),
    ]);
    let snapshot = world.now();
    assert!(!snapshot.pods_by_ip.contains_key(&ip("10.0.0.1")));
    assert_eq!(snapshot.pods_by_ip[&ip("10.0.0.2")].name, name("other/b"));
    assert_eq!(snapshot.contested[&ip("10.0.0.1")].len(), 2);
    let objects: Vec<&str> = snapshot
        .problems
        .iter()
        .map(|p| p.object.as_str())
        .collect();
    assert_eq!(objects, ["other/b", "shop/a"]);
    world.check_endpoints("shop/web", 80, &[]);
    world.remove(ObjectKind::Pod, "other/b");
    world.check_endpoints("shop/web", 80, &["10.0.0.1:8080"]);
    let snapshot = world.0.snapshot.clone();
    assert_eq!(snapshot.pods_by_ip[&ip("10.0.0.1")].name, name("shop/a"));
    assert!(snapshot.contested.is_empty() && snapshot.problems.is_empty());
    assert!(world.0.claims.is_empty());
}

#[test]
fn an_address_goes_from_a_pod_that_is_being_deleted_to_the_next() {
    let old = Pod {
        ready: false,
        terminating: true,
        ..pod("shop/old", &["10.0.0.1"])
    };
    let mut world = World::new([
        Object::Service(service("shop/web", "10.96.0.1")),
        Object::Pod(old.clone()),
    ]);
    let snapshot = world.now();
    assert_eq!(snapshot.pods_by_ip[&ip("10.0.0.1")].name, name("shop/old"));
    world.check_endpoints("shop/web", 80, &["10.0.0.1:8080!"]);
    world.put(Object::Pod(pod("shop/new", &["10.0.0.1"])));
    let snapshot = world.now();
    assert_eq!(snapshot.pods_by_ip[&ip("10.0.0.1")].name, name("shop/new"));
    assert!(snapshot.contested.is_empty() && snapshot.problems.is_empty());
    world.check_endpoints("shop/web", 80, &["10.0.0.1:8080"]);
    world.put(Object::Pod(pod("shop/third", &["10.0.0.1"])));
    assert_eq!(world.now().contested[&ip("10.0.0.1")].len(), 2);
    world.remove(ObjectKind::Pod, "shop/third");
    world.remove(ObjectKind::Pod, "shop/new");
    let snapshot = world.now();
    assert_eq!(snapshot.pods_by_ip[&ip("10.0.0.1")].name, name("shop/old"));
}

#[test]
fn pods_are_listed_by_node() {
    let on = |text: &str, of: Option<&str>| {
        Object::Pod(Pod {
            node: of.map(node),
            ..pod(text, &[])
        })
    };
    let mut world = World::new([
        on("shop/b", Some("n1")),
        on("shop/a", Some("n1")),
        on("shop/c", Some("n2")),
        on("shop/pending", None),
    ]);
    let first = world.now();
    let names = |snapshot: &Snapshot, of: &str| -> Vec<String> {
        let pods = snapshot.pods_of_node(&node(of)).iter();
        pods.map(|pod| pod.name.to_string()).collect()
    };
    assert_eq!(names(&first, "n1"), ["shop/a", "shop/b"]);
    assert_eq!(names(&first, "n2"), ["shop/c"]);
    world.put(on("shop/b", Some("n2")));
    world.put(on("shop/pending", Some("n3")));
    let second = world.now();
    assert_eq!(names(&second, "n1"), ["shop/a"]);
    assert_eq!(names(&second, "n2"), ["shop/b", "shop/c"]);
    world.remove(ObjectKind::Pod, "shop/pending");
    let third = world.now();
    assert!(!third.pods_by_node.contains_key(&node("n3")));
    let same = |of: &str| {
        let (old, new) = (
            &second.pods_by_node[&node(of)],
            &third.pods_by_node[&node(of)],
        );
        Arc::ptr_eq(old, new)
    };
    assert!(same("n1") && same("n2"), "nothing of these changed");
    assert!(third.same_for_node(&second, &node("n1")));
    assert!(!third.same_for_node(&second, &node("n3")));
    world.put(namespace("shop", "enabled"));
    assert!(!world.now().same_for_node(&third, &node("n1")));
}

#[test]
fn an_address_moves_when_its_pod_finishes() {
    let mut world = World::new([
        Object::Pod(pod("shop/old", &["10.0.0.1"])),
        Object::Pod(pod("shop/new", &["10.0.0.1"])),
    ]);
    let finished = Pod {
        phase: PodPhase::Finished,
        ..pod("shop/old", &["10.0.0.1"])
    };
    world.put(Object::Pod(finished));
    let snapshot = world.now();
    assert_eq!(snapshot.pods_by_ip[&ip("10.0.0.1")].name, name("shop/new"));
    assert!(snapshot.problems.is_empty());
}

#[test]
fn a_cluster_address_can_be_contested_too() {
    let mut world = World::new([
        Object::Service(service("shop/web", "10.96.0.1")),
        Object::Service(service("evil/web", "10.96.0.1")),
    ]);
    let snapshot = world.now();
    assert!(snapshot.services_by_ip.is_empty());
    assert_eq!(snapshot.problems.len(), 2);
    world.remove(ObjectKind::Service, "evil/web");
    let snapshot = world.now();
    let owner = &snapshot.services_by_ip[&ip("10.96.0.1")];
    assert_eq!(owner.name, name("shop/web"));
    world.put(Object::Pod(pod("shop/a", &["10.96.0.1"])));
    let snapshot = world.now();
    assert!(snapshot.services_by_ip.is_empty() && snapshot.pods_by_ip.is_empty());
}

#[test]
fn endpoints_follow_pods_labels_and_readiness() {
    let mut world = World::new([
        Object::Service(service("shop/web", "10.96.0.1")),
        Object::Pod(pod("shop/a", &["10.0.0.1", "fd00::1"])),
        Object::Pod(pod("shop/b", &["10.0.0.2"])),
        Object::Pod(pod("other/c", &["10.0.0.3"])),
    ]);
    let both = ["10.0.0.1:8080", "10.0.0.2:8080", "[fd00::1]:8080"];
    let both: Vec<String> = both
        .iter()
        .map(|text| text.replace(['[', ']'], ""))
        .collect();
    let both: Vec<&str> = both.iter().map(String::as_str).collect();
    world.check_endpoints("shop/web", 80, &both);
    world.check_endpoints(
        "shop/web",
        90,
        &["10.0.0.1:9090", "10.0.0.2:9090", "fd00::1:9090"],
    );

    let unready = Pod {
        ready: false,
        ..pod("shop/a", &["10.0.0.1"])
    };
    world.put(Object::Pod(unready));
    world.check_endpoints("shop/web", 80, &["10.0.0.2:8080", "10.0.0.1:8080!"]);

    let unnamed_port = Pod {
        container_ports: Dict::default(),
        ..pod("shop/a", &["10.0.0.1"])
    };
    world.put(Object::Pod(unnamed_port));
    world.check_endpoints("shop/web", 80, &["10.0.0.2:8080"]);

    let unlabelled = Pod {
        labels: Dict::default(),
        ..pod("shop/b", &["10.0.0.2"])
    };
    world.put(Object::Pod(unlabelled));
    world.check_endpoints("shop/web", 80, &[]);
    world.check_endpoints("shop/web", 90, &["10.0.0.1:9090"]);
    world.remove(ObjectKind::Pod, "shop/a");
    world.check_endpoints("shop/web", 90, &[]);
}

#[test]
fn a_service_may_come_last_or_change() {
    let mut world = World::new([Object::Pod(pod("shop/a", &["10.0.0.1"]))]);
    world.put(Object::Service(service("shop/web", "")));
    world.check_endpoints("shop/web", 80, &["10.0.0.1:8080"]);
    let mut changed = service("shop/web", "10.96.0.1");
    changed.ports = vec![port("", 81, TargetPort::Number(7000))];
    world.put(Object::Service(changed));
    world.check_endpoints("shop/web", 81, &["10.0.0.1:7000"]);
    let snapshot = world.0.snapshot.clone();
    assert!(!snapshot.endpoints.contains_key(&(name("shop/web"), 80)));
    world.remove(ObjectKind::Service, "shop/web");
    let snapshot = world.now();
    assert!(snapshot.endpoints.is_empty() && snapshot.services_by_ip.is_empty());
}

#[test]
fn publish_not_ready_addresses_makes_them_ready() {
    let published = Service {
        publish_not_ready: true,
        ..service("shop/web", "")
    };
    let unready = Pod {
        ready: false,
        ..pod("shop/a", &["10.0.0.1"])
    };
    let mut world = World::new([Object::Service(published), Object::Pod(unready)]);
    world.check_endpoints("shop/web", 80, &["10.0.0.1:8080"]);
}

/// Reached at 203.0.113.7 and, for its first port, at port 30080 of every node.
fn exposed(text: &str) -> Service {
    let mut exposed = service(text, "");
    exposed.balancer_ips = vec![ip("203.0.113.7")];
    exposed.ports[0].node_port = Some(30_080);
    exposed
}

#[track_caller]
fn check_exposed(world: &mut World, address: &str, expected: &[&str]) {
    let snapshot = world.0.publish();
    let snapshot = snapshot.unwrap_or_else(|| world.0.snapshot.clone());
    let found = snapshot.exposed_at(address.parse().unwrap());
    let names: Vec<String> = found
        .iter()
        .flat_map(|(_, names)| names.iter().map(ToString::to_string))
        .collect();
    assert_eq!(names, expected, "{address}");
}

#[test]
fn services_are_reached_from_outside_the_cluster_too() {
    let host = Pod {
        host_network: true,
        ..pod("kube-system/agent", &["192.0.2.1"])
    };
    let mut world = World::new([Object::Service(exposed("shop/web")), Object::Pod(host)]);
    check_exposed(&mut world, "203.0.113.7:80", &["shop/web"]);
    check_exposed(&mut world, "203.0.113.7:90", &["shop/web"]);
    check_exposed(&mut world, "203.0.113.7:8080", &[]);
    check_exposed(&mut world, "192.0.2.1:30080", &["shop/web"]);
    check_exposed(&mut world, "192.0.2.1:80", &[]);
    check_exposed(&mut world, "192.0.2.9:30080", &[]);
    let mut changed = exposed("shop/web");
    changed.balancer_ips.clear();
    changed.ports[0].node_port = Some(30_081);
    world.put(Object::Service(changed));
    check_exposed(&mut world, "203.0.113.7:80", &[]);
    check_exposed(&mut world, "192.0.2.1:30080", &[]);
    check_exposed(&mut world, "192.0.2.1:30081", &["shop/web"]);
    world.remove(ObjectKind::Pod, "kube-system/agent");
    check_exposed(&mut world, "192.0.2.1:30081", &[]);
    world.remove(ObjectKind::Service, "shop/web");
    assert!(world.now().exposed.is_empty());
}

/// That claims these addresses by `spec.externalIPs`.
fn claiming(text: &str, ips: &[&str]) -> Object {
    let mut service = service(text, "");
    service.external_ips = ips.iter().map(|text| ip(text)).collect();
    Object::Service(service)
}

#[test]
fn external_addresses_mean_nothing_unless_they_are_allowed() {
    let claimed = ["203.0.113.9", "1.1.1.1"];
    let mut world = World::new([claiming("evil/web", &claimed)]);
    check_exposed(&mut world, "203.0.113.9:80", &[]);
    check_exposed(&mut world, "1.1.1.1:80", &[]);
    let allowed = vec!["203.0.113.0/24".parse().unwrap()];
    let mut world = World(Writer::with_external_ips(allowed));
    world.put(claiming("evil/web", &claimed));
    check_exposed(&mut world, "203.0.113.9:80", &["evil/web"]);
    check_exposed(&mut world, "1.1.1.1:80", &[]);
    assert!(world.0.snapshot.problems.is_empty());
}

#[test]
fn no_external_address_is_local_or_a_nodes() {
    let claimed = [
        "127.0.0.1",
        "169.254.169.254",
        "::ffff:169.254.169.254",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "192.0.2.1",
    ];
    let host = Pod {
        host_network: true,
        ..pod("kube-system/agent", &["192.0.2.1"])
    };
    let all = ["0.0.0.0/0", "::/0"].map(|block| block.parse().unwrap());
    let mut world = World(Writer::with_external_ips(all.into()));
    world.put(claiming("evil/web", &claimed));
    world.put(Object::Pod(host));
    for address in claimed {
        let address = SocketAddr::new(ip(address), 80).to_string();
        check_exposed(&mut world, &address, &[]);
    }
}

#[test]
fn what_a_load_balancer_gave_is_not_contested_by_what_others_write() {
    let all = vec!["203.0.113.0/24".parse().unwrap()];
    let mut world = World(Writer::with_external_ips(all));
    world.put(Object::Service(exposed("shop/web")));
    world.put(claiming("evil/web", &["203.0.113.7"]));
    check_exposed(&mut world, "203.0.113.7:80", &["shop/web"]);
    let problems = &world.0.snapshot.problems;
    assert!(problems.is_empty(), "{problems:?}");
}

#[test]
fn what_several_services_claim_outside_is_reported() {
    let (one, other) = (exposed("shop/web"), exposed("other/web"));
    let mut world = World::new([Object::Service(one), Object::Service(other)]);
    check_exposed(&mut world, "203.0.113.7:80", &["other/web", "shop/web"]);
    let problems = world.0.snapshot.problems.clone();
    let told = |problem: &Problem| problem.object == "shop/web";
    let fields: Vec<_> = problems.iter().filter(|it| told(it)).collect();
    assert!(
        fields.iter().any(|it| it.field == "status.loadBalancer"),
        "{fields:?}"
    );
    assert!(
        fields.iter().any(|it| it
            .message
            .contains("node port 30080 is claimed by Service other/web")),
        "{fields:?}"
    );
    world.remove(ObjectKind::Service, "other/web");
    check_exposed(&mut world, "203.0.113.7:80", &["shop/web"]);
    assert!(world.0.snapshot.problems.is_empty());
}

#[test]
fn pods_in_the_nodes_network_share_an_address() {
    let host = |text| Pod {
        host_network: true,
        ..pod(text, &["192.168.0.1"])
    };
    let mut other = host("shop/b");
    other.container_ports = [("http", 8081_u16)].into_iter().collect();
    let mut world = World::new([
        Object::Service(service("shop/web", "")),
        Object::Pod(host("shop/a")),
        Object::Pod(other),
    ]);
    world.check_endpoints("shop/web", 80, &["192.168.0.1:8080", "192.168.0.1:8081"]);
    assert!(world.0.snapshot.pods_by_ip.is_empty());
    assert!(world.0.snapshot.problems.is_empty());
    world.remove(ObjectKind::Pod, "shop/a");
    world.check_endpoints("shop/web", 80, &["192.168.0.1:8081"]);
}

#[test]
fn slices_of_its_own_replace_derived_endpoints() {
    let slice = |text, address, ready| {
        Object::EndpointSlice(EndpointSlice {
            name: name(text),
            service: "web".into(),
            ports: vec![("http".into(), 3000)],
            addresses: vec![SliceAddress::at(ip(address), ready)],
        })
    };
    let mut world = World::new([
        slice("shop/web-1", "10.9.0.1", true),
        Object::Service(service("shop/web", "10.96.0.1")),
        Object::Pod(pod("shop/a", &["10.0.0.1"])),
    ]);
    world.check_endpoints("shop/web", 80, &["10.9.0.1:3000"]);
    world.check_endpoints("shop/web", 90, &[]);
    world.put(slice("shop/web-2", "10.9.0.2", false));
    world.check_endpoints("shop/web", 80, &["10.9.0.1:3000", "10.9.0.2:3000!"]);
    world.put(Object::Pod(pod("shop/b", &["10.0.0.2"])));
    world.check_endpoints("shop/web", 80, &["10.9.0.1:3000", "10.9.0.2:3000!"]);
    world.remove(ObjectKind::EndpointSlice, "shop/web-1");
    world.remove(ObjectKind::EndpointSlice, "shop/web-2");
    world.check_endpoints("shop/web", 80, &["10.0.0.1:8080", "10.0.0.2:8080"]);
}

#[test]
fn a_target_that_does_not_exist_is_reported_until_it_does() {
    let policy = AuthorizationPolicy {
        name: name("shop/p"),
        scope: PolicyScope::Services(vec!["web".into()]),
        action: Action::Deny,
        dry_run: false,
        rules: Vec::new(),
        provider: None,
        generation: 0,
        invalid: None,
    };
    let mut world = World::new([Object::AuthorizationPolicy(policy)]);
    let snapshot = world.now();
    assert_eq!(snapshot.problems.len(), 1);
    world.put(Object::Service(service("shop/web", "")));
    assert!(world.now().problems.is_empty());
    world.remove(ObjectKind::Service, "shop/web");
    assert_eq!(world.now().problems.len(), 1);
    world.remove(ObjectKind::AuthorizationPolicy, "shop/p");
    assert!(world.now().problems.is_empty());
}

#[test]
fn a_problem_of_two_owners_stays_until_both_take_it_back() {
    let problem = Problem {
        message: "no".to_owned(),
        ..Problem::default()
    };
    let mut world = World::new([]);
    let report = |owner: &str, problems: Vec<Problem>| Change::Problems {
        owner: owner.into(),
        problems,
    };
    world
        .0
        .apply(report("a", vec![problem.clone(), problem.clone()]));
    world.0.apply(report("b", vec![problem]));
    assert_eq!(world.now().problems.len(), 1);
    world.0.apply(report("a", Vec::new()));
    assert_eq!(world.now().problems.len(), 1);
    world.0.apply(report("b", Vec::new()));
    assert!(world.now().problems.is_empty());
}

/// Whatever the order of changes, the indices are those of a state built at once.
#[test]
fn any_history_gives_the_same_indices() {
    let mut random = 7_u64;
    let mut next = |bound: u64| {
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % bound
    };
    let mut world = World::new([]);
    for _ in 0..3000 {
        match next(8) {
            0 => world.remove(ObjectKind::Pod, &format!("shop/p{}", next(6))),
            1 => world.remove(ObjectKind::Service, &format!("shop/s{}", next(2))),
            2 => {
                let mut new = service(
                    &format!("shop/s{}", next(2)),
                    &format!("10.0.0.{}", next(9)),
                );
                new.selector = labels(&[("app", ["web", "db"][usize::try_from(next(2)).unwrap()])]);
                world.put(Object::Service(new));
            }
            3 => world.put(namespace(
                "shop",
                ["enabled", "disabled"][usize::try_from(next(2)).unwrap()],
            )),
            _ => {
                let address = format!("10.0.0.{}", next(5));
                let mut new = pod(&format!("shop/p{}", next(6)), &[&address]);
                new.ready = next(2) == 0;
                new.host_network = next(5) == 0;
                new.terminating = next(4) == 0;
                new.node = (next(4) != 0).then(|| node(&format!("n{}", next(2))));
                new.labels = labels(&[("app", ["web", "db"][usize::try_from(next(2)).unwrap()])]);
                new.phase = [PodPhase::Running, PodPhase::Finished][usize::from(next(5) == 0)];
                world.put(Object::Pod(new));
            }
        }
        check_rebuilt(&world.0.snapshot);
    }
}

#[track_caller]
fn check_rebuilt(snapshot: &Snapshot) {
    let namespaces = snapshot
        .namespaces
        .values()
        .map(|o| Object::Namespace(Namespace::clone(o)));
    let services = snapshot
        .services
        .values()
        .map(|o| Object::Service(Service::clone(o)));
    let pods = snapshot.pods.values().map(|o| Object::Pod(Pod::clone(o)));
    let rebuilt = World::new(pods.chain(services).chain(namespaces))
        .0
        .snapshot;
    assert_eq!(rebuilt.pods, snapshot.pods);
    assert_eq!(rebuilt.pods_by_node, snapshot.pods_by_node);
    assert_eq!(rebuilt.pods_by_ip, snapshot.pods_by_ip);
    assert_eq!(rebuilt.services_by_ip, snapshot.services_by_ip);
    assert_eq!(rebuilt.contested, snapshot.contested);
    assert_eq!(rebuilt.endpoints, snapshot.endpoints);
    assert_eq!(rebuilt.problems, snapshot.problems);
}
