//! MeshPolicies.

use std::sync::Arc;

use super::*;
use crate::state::fixtures::labels;
use MtlsMode::{Permissive, Strict};

#[track_caller]
fn check(policies: &[MeshPolicy], port: u16, expected: MtlsMode, by: &str) {
    let reversed = policies.iter().rev();
    for policies in [policies.to_vec(), reversed.cloned().collect()] {
        let table = table(policies.into_iter().map(Object::MeshPolicy));
        let inbound = table.inbound(&name("shop/web"));
        assert_eq!(inbound.mtls(port), expected);
        let decision = Client::plaintext()
            .port(port)
            .decide(&table, &name("shop/web"));
        let refused = format!("mtls_required {by}");
        let words = words(&decision);
        assert_eq!(
            words,
            if expected == Strict {
                &refused
            } else {
                "permitted"
            }
        );
        let decision = Client::cart().port(port).decide(&table, &name("shop/web"));
        assert_eq!(decision.verdict, Permission::Permitted);
    }
}

fn of_mesh(mtls: Option<MtlsMode>, ports: &[(u16, MtlsMode)]) -> MeshPolicy {
    MeshPolicy {
        scope: PolicyScope::Mesh,
        ..mesh("fairlead-system/mesh", mtls, ports)
    }
}

fn of_namespace(mtls: Option<MtlsMode>, ports: &[(u16, MtlsMode)]) -> MeshPolicy {
    mesh("shop/namespace", mtls, ports)
}

fn of_workload(mtls: Option<MtlsMode>, ports: &[(u16, MtlsMode)]) -> MeshPolicy {
    MeshPolicy {
        scope: PolicyScope::Pods(Selector(labels(&[("app", "web")]))),
        ..mesh("shop/workload", mtls, ports)
    }
}

#[test]
fn permissive_is_the_default() {
    check(&[], 80, Permissive, "");
    check(&[of_mesh(None, &[])], 80, Permissive, "");
}

#[test]
fn the_narrower_policy_decides() {
    let mesh = of_mesh(Some(Strict), &[]);
    check(
        std::slice::from_ref(&mesh),
        80,
        Strict,
        "fairlead-system/mesh",
    );
    let namespace = of_namespace(Some(Permissive), &[]);
    check(&[mesh.clone(), namespace.clone()], 80, Permissive, "");
    let workload = of_workload(Some(Strict), &[]);
    check(
        &[mesh.clone(), namespace, workload],
        80,
        Strict,
        "shop/workload",
    );
    // One that says nothing of the mode leaves it to the wider one.
    check(
        &[mesh, of_namespace(None, &[])],
        80,
        Strict,
        "fairlead-system/mesh",
    );
}

#[test]
fn a_port_goes_before_the_mode() {
    let policies = [of_namespace(Some(Strict), &[(80, Permissive)])];
    check(&policies, 80, Permissive, "");
    check(&policies, 81, Strict, "shop/namespace");
    // But not before a narrower policy's mode.
    let workload = of_workload(Some(Strict), &[]);
    let policies = [of_namespace(None, &[(80, Permissive)]), workload];
    check(&policies, 80, Strict, "shop/workload");
    let policies = [
        of_mesh(Some(Strict), &[]),
        of_workload(None, &[(80, Permissive)]),
    ];
    check(&policies, 80, Permissive, "");
    check(&policies, 81, Strict, "fairlead-system/mesh");
}

#[test]
fn strict_wins_among_equals() {
    let other = MeshPolicy {
        name: name("shop/another"),
        ..of_namespace(Some(Permissive), &[(80, Strict)])
    };
    let policies = [of_namespace(Some(Strict), &[(80, Permissive)]), other];
    check(&policies, 80, Strict, "shop/another");
    check(&policies, 81, Strict, "shop/namespace");
}

#[test]
fn what_is_invalid_is_strict_whatever_else_says() {
    let broken = MeshPolicy {
        invalid: Some("spec: no".to_owned()),
        ..of_namespace(None, &[])
    };
    let policies = [broken, of_workload(Some(Permissive), &[(80, Permissive)])];
    check(&policies, 80, Strict, "shop/namespace");
}

#[test]
fn others_are_not_selected() {
    let elsewhere = mesh("other/p", Some(Strict), &[]);
    let other = MeshPolicy {
        scope: PolicyScope::Pods(Selector(labels(&[("app", "db")]))),
        ..of_workload(Some(Strict), &[])
    };
    check(&[elsewhere, other], 80, Permissive, "");
}

#[test]
fn the_mode_goes_before_rules_and_audit_is_kept() {
    let audit = policy("shop/audit", Action::Audit, vec![Rule::default()]);
    let deny = policy("shop/deny", Action::Deny, vec![Rule::default()]);
    let table = table([
        Object::MeshPolicy(of_namespace(Some(Strict), &[])),
        Object::AuthorizationPolicy(audit),
        Object::AuthorizationPolicy(deny),
    ]);
    let decision = Client::plaintext().decide(&table, &name("shop/web"));
    assert_eq!(words(&decision), "mtls_required shop/namespace");
    assert_eq!(decision.audit, ["shop/audit#0".into()]);
    let decision = Client::cart().decide(&table, &name("shop/web"));
    assert_eq!(words(&decision), "denied_by_rule shop/deny#0");
}

#[test]
fn the_narrowest_policy_that_speaks_of_the_log_decides() {
    use crate::policy::{AccessLog, Ended};
    use crate::state::traffic::Share;
    use crate::state::{AccessLog as Said, AccessLogMode};

    fn says(mode: AccessLogMode, share: u32, policy: MeshPolicy) -> MeshPolicy {
        let share = Share(share);
        MeshPolicy {
            access_log: Some(Said { mode, share }),
            ..policy
        }
    }
    fn check(policies: &[MeshPolicy], status: u16, expected: bool) {
        let policies: Vec<_> = policies.iter().cloned().map(Arc::new).collect();
        let ended = Ended {
            forwarded: true,
            status: Some(status),
            grpc_status: None,
        };
        let log = AccessLog::new(&policies);
        assert_eq!(log.wants(&ended, u64::MAX / 2), expected);
    }
    let errors = AccessLogMode::Errors { min_status: 500 };
    let mesh = says(AccessLogMode::All, 1_000_000, of_mesh(None, &[]));
    let narrower = [
        says(errors, 1_000_000, of_namespace(None, &[])),
        says(AccessLogMode::All, 100_000, of_namespace(None, &[])),
    ];
    let silent = of_workload(None, &[]);
    let none = says(AccessLogMode::None, 1_000_000, of_workload(None, &[]));
    let [errors, tenth] = narrower;
    check(&[], 500, false);
    check(&[mesh.clone(), silent.clone()], 200, true);
    check(&[mesh.clone(), errors.clone(), tenth.clone()], 200, false);
    check(&[mesh.clone(), errors.clone(), tenth.clone()], 500, true);
    check(&[mesh.clone(), tenth, silent], 500, false);
    check(&[mesh, errors, none], 500, false);
}
