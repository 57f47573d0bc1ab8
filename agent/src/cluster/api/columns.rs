//! What `kubectl get` shows of a policy.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1 as apiextensions;

/// Adds the columns of a policy; the first is what it does.
pub(super) fn add(
    mut definition: apiextensions::CustomResourceDefinition,
    effect: &str,
    description: &str,
) -> apiextensions::CustomResourceDefinition {
    let columns = vec![
        column(effect, ".status.effect", description),
        column("Target", ".status.target", "What it selects"),
        column(
            "Accepted",
            &accepted("status"),
            "It is understood, and in force as written",
        ),
        column("Reason", &accepted("reason"), "Why it is accepted or not"),
        apiextensions::CustomResourceColumnDefinition {
            // With `-o wide`.
            priority: Some(1),
            ..column(
                "Message",
                &accepted("message"),
                "What is wrong with it, or what it means",
            )
        },
        apiextensions::CustomResourceColumnDefinition {
            type_: "date".to_owned(),
            ..column("Age", ".metadata.creationTimestamp", "When it was created")
        },
    ];
    for version in &mut definition.spec.versions {
        version.additional_printer_columns = Some(columns.clone());
    }
    definition
}

/// A field of the condition Accepted.
fn accepted(field: &str) -> String {
    format!(r#".status.conditions[?(@.type=="Accepted")].{field}"#)
}

fn column(
    name: &str,
    json_path: &str,
    description: &str,
) -> apiextensions::CustomResourceColumnDefinition {
    apiextensions::CustomResourceColumnDefinition {
        name: name.to_owned(),
        type_: "string".to_owned(),
        json_path: json_path.to_owned(),
        description: Some(description.to_owned()),
        ..apiextensions::CustomResourceColumnDefinition::default()
    }
}
