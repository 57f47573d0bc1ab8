//! Certificates of peers.

use x509_parser::extensions::{GeneralName, ParsedExtension};

use super::certificate::{self, Leaf};

/// A certificate has one identity, which is its only URI, or none.
pub(crate) fn certificate(der: &[u8]) {
    let leaf = Leaf::parse(der);
    let read = certificate::identity(der).map(|(id, _)| id);
    assert_eq!(leaf.as_ref().ok().map(|leaf| &leaf.id), read.as_ref().ok());
    let (Ok(leaf), Ok(parsed)) = (leaf, certificate::parse(der)) else {
        return;
    };
    let mut uris = Vec::new();
    for extension in parsed.extensions() {
        if let ParsedExtension::SubjectAlternativeName(names) = extension.parsed_extension() {
            uris.extend(names.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some((*uri).to_owned()),
                _ => None,
            }));
        }
    }
    assert_eq!(uris, [leaf.id.to_string()]);
    if leaf.not_before < leaf.not_after {
        assert!(leaf.valid_at(leaf.not_before));
    }
    assert!(!leaf.valid_at(leaf.not_after));
}
