//! AuthorizationPolicies.

use super::*;

#[track_caller]
fn check(policies: &[AuthorizationPolicy], client: &Client, expected: &str) {
    let table = table(policies.iter().cloned().map(Object::AuthorizationPolicy));
    let decision = client.decide(&table, &name("shop/web"));
    assert_eq!(words(&decision), expected);
}

/// Whether one rule matches: as a DENY, as an ALLOW.
#[track_caller]
fn check_rule(rule: &Rule, client: &Client, deny: bool, allow: bool) {
    let policy = |action| policy("shop/p", action, vec![rule.clone()]);
    let denied = if deny {
        "denied_by_rule shop/p#0"
    } else {
        "permitted"
    };
    check(&[policy(Action::Deny)], client, denied);
    let allowed = if allow {
        "permitted shop/p#0"
    } else {
        "no_rule_allows shop/p"
    };
    check(&[policy(Action::Allow)], client, allowed);
}

fn allow(name: &str, rules: Vec<Rule>) -> AuthorizationPolicy {
    policy(name, Action::Allow, rules)
}

fn deny(name: &str, rules: Vec<Rule>) -> AuthorizationPolicy {
    policy(name, Action::Deny, rules)
}

fn invalid(policy: AuthorizationPolicy) -> AuthorizationPolicy {
    AuthorizationPolicy {
        invalid: Some("spec.rules: no".to_owned()),
        ..policy
    }
}

fn dry(policy: AuthorizationPolicy) -> AuthorizationPolicy {
    AuthorizationPolicy {
        dry_run: true,
        ..policy
    }
}

const CART: &str = "cluster.local/ns/shop/sa/cart";

#[test]
fn without_policies_everything_is_permitted() {
    check(&[], &Client::cart(), "permitted");
    check(&[], &Client::plaintext(), "permitted");
}

#[test]
fn an_allow_makes_the_rest_denied() {
    let policies = [allow("shop/p", vec![ports(&[80]), ports(&[8080])])];
    check(&policies, &Client::cart(), "permitted shop/p#1");
    check(&policies, &Client::cart().port(81), "no_rule_allows shop/p");
}

#[test]
fn an_allow_without_rules_permits_nothing() {
    check(
        &[allow("shop/p", vec![])],
        &Client::cart(),
        "no_rule_allows shop/p",
    );
}

#[test]
fn a_deny_without_rules_denies_nothing() {
    check(&[deny("shop/p", vec![])], &Client::cart(), "permitted");
}

#[test]
fn an_empty_rule_matches_everything() {
    check_rule(&Rule::default(), &Client::cart(), true, true);
    check_rule(&Rule::default(), &Client::plaintext(), true, true);
}

#[test]
fn deny_goes_before_allow() {
    let policies = [
        allow("shop/a", vec![Rule::default()]),
        deny("shop/b", vec![principals(CART)]),
    ];
    check(&policies, &Client::cart(), "denied_by_rule shop/b#0");
    check(&policies, &Client::plaintext(), "permitted shop/a#0");
}

#[test]
fn any_allow_suffices() {
    let policies = [
        allow("shop/a", vec![ports(&[1])]),
        allow("shop/b", vec![principals(CART)]),
    ];
    check(&policies, &Client::cart(), "permitted shop/b#0");
    check(
        &policies,
        &Client::plaintext(),
        "no_rule_allows shop/a, shop/b",
    );
}

#[test]
fn names_of_many_allows_are_cut() {
    let all = ["shop/a", "shop/b", "shop/c", "shop/d"];
    let policies = all.map(|name| allow(name, vec![]));
    check(
        &policies,
        &Client::cart(),
        "no_rule_allows shop/a, shop/b, shop/c, ...",
    );
}

#[test]
fn what_is_invalid_denies_whatever_its_action() {
    for action in [Action::Allow, Action::Deny, Action::Audit] {
        let broken = invalid(policy("shop/p", action, vec![]));
        let fine = allow("shop/a", vec![Rule::default()]);
        check(&[fine, broken], &Client::cart(), "invalid_policy shop/p");
    }
}

#[test]
fn a_dry_run_is_never_enforced() {
    check(
        &[dry(deny("shop/p", vec![Rule::default()]))],
        &Client::cart(),
        "permitted",
    );
    check(
        &[dry(allow("shop/p", vec![]))],
        &Client::cart(),
        "permitted",
    );
    check(
        &[dry(invalid(deny("shop/p", vec![])))],
        &Client::cart(),
        "permitted",
    );
    let policies = [
        allow("shop/a", vec![]),
        dry(allow("shop/b", vec![Rule::default()])),
    ];
    check(&policies, &Client::cart(), "no_rule_allows shop/a");
}

#[track_caller]
fn check_audit(policies: &[AuthorizationPolicy], expected: &[&str]) {
    let table = table(policies.iter().cloned().map(Object::AuthorizationPolicy));
    let decision = Client::cart().decide(&table, &name("shop/web"));
    assert_eq!(decision.verdict, Permission::Permitted);
    let audit: Vec<&str> = decision.audit.iter().map(|mark| &**mark).collect();
    assert_eq!(audit, expected);
}

#[test]
fn audit_and_dry_runs_leave_marks() {
    let everything = || vec![Rule::default()];
    let audit = |rules| policy("shop/p", Action::Audit, rules);
    check_audit(&[audit(vec![ports(&[1]), Rule::default()])], &["shop/p#1"]);
    check_audit(&[audit(vec![ports(&[1])])], &[]);
    check_audit(
        &[dry(deny("shop/p", everything()))],
        &["shop/p#0: would deny"],
    );
    check_audit(
        &[dry(allow("shop/p", everything()))],
        &["shop/p#0: would permit"],
    );
    check_audit(&[dry(allow("shop/p", vec![]))], &["shop/p: would deny"]);
    check_audit(&[dry(invalid(audit(vec![])))], &["shop/p: would deny"]);
    // Not what another ALLOW permits.
    let policies = [allow("shop/a", everything()), dry(allow("shop/p", vec![]))];
    check_audit(&policies, &[]);
}

#[test]
fn service_accounts_match_in_their_namespace_alone() {
    let end = |text: &str| vec![StringMatch::Suffix(text.to_owned())];
    let of = |text: &str| {
        from(From {
            service_accounts: end(text),
            ..From::default()
        })
    };
    check_rule(&of("/ns/shop/sa/cart"), &Client::cart(), true, true);
    check_rule(&of("/ns/shop/sa/art"), &Client::cart(), false, false);
    check_rule(&of("/ns/bank/sa/cart"), &Client::cart(), false, false);
    check_rule(&of("/ns/shop/sa/cart"), &Client::plaintext(), false, false);
    let none_of = from(From {
        not_service_accounts: end("/ns/shop/sa/cart"),
        ..From::default()
    });
    check_rule(&none_of, &Client::cart(), false, false);
    check_rule(&none_of, &Client::plaintext(), true, false);
}

#[test]
fn principals_match_the_whole_identity() {
    let rule = |pattern| {
        from(From {
            principals: vec![pattern],
            ..From::default()
        })
    };
    let exact = |text: &str| rule(StringMatch::Exact(text.to_owned()));
    let prefix = |text: &str| rule(StringMatch::Prefix(text.to_owned()));
    let suffix = |text: &str| rule(StringMatch::Suffix(text.to_owned()));
    check_rule(&exact(CART), &Client::cart(), true, true);
    check_rule(
        &exact("cluster.local/ns/shop/sa/car"),
        &Client::cart(),
        false,
        false,
    );
    check_rule(
        &exact("other/ns/shop/sa/cart"),
        &Client::cart(),
        false,
        false,
    );
    check_rule(
        &prefix("cluster.local/ns/shop/"),
        &Client::cart(),
        true,
        true,
    );
    check_rule(
        &prefix("cluster.local/ns/shopping/"),
        &Client::cart(),
        false,
        false,
    );
    check_rule(&suffix("/sa/cart"), &Client::cart(), true, true);
    check_rule(&suffix("/sa/other"), &Client::cart(), false, false);
    check_rule(&rule(StringMatch::Present), &Client::cart(), true, true);
    check_rule(
        &rule(StringMatch::Present),
        &Client::plaintext(),
        false,
        false,
    );
    check_rule(&exact(CART), &Client::plaintext(), false, false);
}

#[test]
fn namespaces_match_that_of_the_identity() {
    let rule = |text| {
        from(From {
            namespaces: exact(text),
            ..From::default()
        })
    };
    check_rule(&rule("shop"), &Client::cart(), true, true);
    check_rule(&rule("sho"), &Client::cart(), false, false);
    check_rule(&rule("shop"), &Client::plaintext(), false, false);
}

#[test]
fn exceptions_of_identity_never_allow_a_client_without_one() {
    let not_principals = |text| {
        from(From {
            not_principals: exact(text),
            ..From::default()
        })
    };
    let not_namespaces = |text| {
        from(From {
            not_namespaces: exact(text),
            ..From::default()
        })
    };
    check_rule(&not_principals(CART), &Client::cart(), false, false);
    check_rule(&not_principals("a/ns/b/sa/c"), &Client::cart(), true, true);
    check_rule(
        &not_principals("a/ns/b/sa/c"),
        &Client::plaintext(),
        true,
        false,
    );
    check_rule(&not_namespaces("shop"), &Client::cart(), false, false);
    check_rule(&not_namespaces("b"), &Client::cart(), true, true);
    check_rule(&not_namespaces("b"), &Client::plaintext(), true, false);
}

#[test]
fn an_identity_counts_only_where_it_was_given() {
    // The encryption alone, as of a same-node proof that failed, is no identity.
    let client = Client {
        encrypted: true,
        ..Client::plaintext()
    };
    check_rule(&principals(CART), &client, false, false);
}

#[test]
fn blocks_match_the_clients_address() {
    let rule = |text: &str| {
        from(From {
            ip_blocks: vec![text.parse().unwrap()],
            ..From::default()
        })
    };
    let cart = Client::cart;
    check_rule(&rule("10.1.0.0/16"), &cart(), true, true);
    check_rule(&rule("10.2.0.0/16"), &cart(), false, false);
    check_rule(&rule("10.1.2.3/32"), &Client::plaintext(), true, true);
    check_rule(
        &rule("10.1.0.0/16"),
        &cart().ip("::ffff:10.1.2.3"),
        true,
        true,
    );
    check_rule(&rule("10.1.0.0/16"), &cart().ip("fd00::1"), false, false);
    check_rule(&rule("fd00::/8"), &cart().ip("fd00::1"), true, true);
    check_rule(&rule("::/0"), &cart(), false, false);
    check_rule(&rule("0.0.0.0/0"), &cart(), true, true);
}

#[test]
fn blocks_can_be_excepted() {
    let rule = from(From {
        ip_blocks: vec!["10.0.0.0/8".parse().unwrap()],
        not_ip_blocks: vec!["10.1.2.0/24".parse().unwrap()],
        ..From::default()
    });
    check_rule(&rule, &Client::cart(), false, false);
    check_rule(&rule, &Client::cart().ip("::ffff:10.1.2.3"), false, false);
    check_rule(&rule, &Client::cart().ip("10.1.3.3"), true, true);
}

#[test]
fn ports_and_their_exceptions() {
    check_rule(&ports(&[80, 8080]), &Client::cart(), true, true);
    check_rule(&ports(&[80]), &Client::cart(), false, false);
    let rule = to(To {
        not_ports: vec![80],
        ..To::default()
    });
    check_rule(&rule, &Client::cart(), true, true);
    check_rule(&rule, &Client::cart().port(80), false, false);
}

#[test]
fn every_field_of_a_clause_must_match_and_any_clause_may() {
    let source = |principal: &str, block: &str| From {
        principals: exact(principal),
        ip_blocks: vec![block.parse().unwrap()],
        ..From::default()
    };
    let both = |sources: Vec<From>, port| Rule {
        from: sources,
        to: vec![To {
            ports: vec![port],
            ..To::default()
        }],
        ..Rule::default()
    };
    let right = || source(CART, "10.0.0.0/8");
    let wrong = || source(CART, "11.0.0.0/8");
    check_rule(&both(vec![right()], 8080), &Client::cart(), true, true);
    check_rule(&both(vec![wrong()], 8080), &Client::cart(), false, false);
    check_rule(
        &both(vec![wrong(), right()], 8080),
        &Client::cart(),
        true,
        true,
    );
    check_rule(&both(vec![right()], 80), &Client::cart(), false, false);
}

#[test]
fn a_pod_that_is_not_known_is_denied() {
    let table = table([]);
    let decision = Client::cart().decide(&table, &name("shop/gone"));
    assert_eq!(words(&decision), "no_rule_allows");
    let policy = table.inbound(&name("shop/gone"));
    assert_eq!(policy.mtls(80), MtlsMode::Strict);
}
