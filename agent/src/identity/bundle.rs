//! Which roots count, of two that tell: the CA's answers, and the file of `--ca-root`. Pure.
//!
//! The file may be the bundle of the mesh, as a ConfigMap brings it to every node, or be
//! there for the TLS of the CA alone. It is the mesh's once it has a root that an answer
//! had too. From then on what it adds counts at once, long before the next answer, and
//! what it takes away counts no more.

use rustls::pki_types::CertificateDer;

/// The roots by where they come from.
#[derive(Debug, Default)]
pub(super) struct Bundle {
    file: Vec<CertificateDer<'static>>,
    answered: Vec<CertificateDer<'static>>,
    /// The file is the mesh's.
    follows_file: bool,
}

impl Bundle {
    /// The roots that count, after the file was read.
    pub(super) fn read(
        &mut self,
        roots: Vec<CertificateDer<'static>>,
    ) -> Vec<CertificateDer<'static>> {
        if self.follows_file {
            let removed =
                |root: &CertificateDer<'_>| self.file.contains(root) && !roots.contains(root);
            self.answered.retain(|root| !removed(root));
        }
        self.file = roots;
        self.roots()
    }

    /// The roots that count, after an answer that had these.
    pub(super) fn answered(
        &mut self,
        roots: Vec<CertificateDer<'static>>,
    ) -> Vec<CertificateDer<'static>> {
        self.answered = roots;
        self.roots()
    }

    fn roots(&mut self) -> Vec<CertificateDer<'static>> {
        self.follows_file |= self.file.iter().any(|root| self.answered.contains(root));
        let mut roots = self.answered.clone();
        if self.follows_file {
            roots.extend_from_slice(&self.file);
        }
        roots
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    enum Told<'a> {
        Read(&'a [u8]),
        Answered(&'a [u8]),
    }
    use Told::{Answered, Read};

    /// Roots are numbers here.
    #[track_caller]
    fn check(told: &[Told<'_>], expected: &[u8]) {
        let certificates = |numbers: &[u8]| {
            let certificate = |number: &u8| CertificateDer::from(vec![*number]);
            numbers.iter().map(certificate).collect()
        };
        let mut bundle = Bundle::default();
        let mut roots = Vec::new();
        for one in told {
            roots = match one {
                Read(numbers) => bundle.read(certificates(numbers)),
                Answered(numbers) => bundle.answered(certificates(numbers)),
            };
        }
        let roots: BTreeSet<u8> = roots.iter().map(|root| root[0]).collect();
        assert_eq!(roots, expected.iter().copied().collect());
    }

    #[test]
    fn a_file_for_the_tls_of_the_ca_does_not_count() {
        check(&[Read(&[9])], &[]);
        check(&[Read(&[9]), Answered(&[1])], &[1]);
        check(&[Read(&[9]), Answered(&[1]), Read(&[8])], &[1]);
    }

    #[test]
    fn what_the_bundle_adds_counts_before_the_next_answer() {
        check(&[Read(&[1]), Answered(&[1]), Read(&[1, 2])], &[1, 2]);
        check(&[Answered(&[1]), Read(&[1, 2])], &[1, 2]);
        check(&[Read(&[1]), Answered(&[1, 2])], &[1, 2]);
    }

    #[test]
    fn what_the_bundle_takes_away_counts_no_more() {
        let overlap = [Read(&[1]), Answered(&[1, 2]), Read(&[1, 2]), Read(&[2])];
        check(&overlap, &[2]);
        // Without an overlap: all certificates of old are refused from then on.
        check(&[Read(&[1]), Answered(&[1]), Read(&[2])], &[2]);
    }

    #[test]
    fn an_answer_brings_roots_that_the_file_does_not_have_yet() {
        check(&[Read(&[1]), Answered(&[1]), Answered(&[2])], &[1, 2]);
        check(
            &[Read(&[1]), Answered(&[1]), Answered(&[2]), Read(&[2])],
            &[2],
        );
    }
}
