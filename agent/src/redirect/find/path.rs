//! Which pod a process belongs to, by the text of its `/proc/PID/cgroup`: pure.
//!
//! The kubelet names a pod's cgroup by the pod's UID, in one of two ways, and the
//! runtime puts one cgroup for each container below:
//!
//! ```text
//! cgroupfs  /kubepods/burstable/pod<uid>/<container>
//! systemd   /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<u_i_d>.slice/cri-containerd-<id>.scope
//! kind      the same, below /kubelet or /kubelet.slice/kubelet-kubepods.slice
//! ```
//!
//! A process may make cgroups below its own, under any name, but none above: so that
//! the outermost pod that a path names is the one that the kubelet meant.

/// A process's pod and container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    /// With dashes, as the API writes it.
    pub(super) uid: String,
    /// The cgroup below the pod's; empty for a process that is in the pod's own.
    pub(super) container: String,
}

/// The pod of a process; `None` where it is no pod's, or is a runtime's helper. The
/// first hierarchy that names a pod decides: version 1 has one line for each, version 2
/// one in all, a hybrid both.
pub(super) fn membership(cgroups: &str) -> Option<Membership> {
    let path = |line: &'_ str| line.splitn(3, ':').nth(2).and_then(of_path);
    cgroups.lines().find_map(path)
}

fn of_path(path: &str) -> Option<Membership> {
    let mut parts = path.split('/');
    let (uid, inline) = parts.find_map(|part| {
        // containerd without systemd's driver below a kubelet with it: all in one name.
        let (pod, container) = part.split_once(':').unwrap_or((part, ""));
        Some((pod_uid(pod)?, container))
    })?;
    let container = if inline.is_empty() {
        parts.next().unwrap_or_default()
    } else {
        inline
    };
    // CRI-O's monitor of a container is beside it, in the node's own network.
    (!container.contains("conmon")).then(|| Membership {
        uid,
        container: container.to_owned(),
    })
}

/// The UID in the name of a pod's cgroup.
fn pod_uid(name: &str) -> Option<String> {
    let uid = match name.strip_suffix(".slice") {
        // systemd reads a dash as a step down, so that the UID's are underscores.
        Some(slice) => slice.rsplit_once("-pod")?.1.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    is_uid(&uid).then_some(uid)
}

/// A UUID; or the hash of a static pod's configuration, which is 32 digits.
fn is_uid(text: &str) -> bool {
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    text.split('-').all(digits) && matches!(lengths[..], [32] | [8, 4, 4, 4, 12])
}

#[cfg(test)]
mod tests {
    use super::membership;

    const UID: &str = "0b8bd41c-1f5e-4c3e-8e4d-6f1f0a3b9c2d";
    const UNDERSCORES: &str = "0b8bd41c_1f5e_4c3e_8e4d_6f1f0a3b9c2d";
    const HASH: &str = "f5a1ad62fa5b7c3c7a6d1c5b1b1f0e9d";

    #[track_caller]
    fn check(cgroups: &str, expected: Option<(&str, &str)>) {
        let cgroups = cgroups.replace("UID", UID).replace("U_D", UNDERSCORES);
        let found = membership(&cgroups);
        let found = found.as_ref().map(|it| (&*it.uid, &*it.container));
        assert_eq!(found, expected, "{cgroups}");
    }

    #[test]
    fn systemd_with_each_runtime() {
        let slice = "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podU_D.slice";
        for scope in [
            "cri-containerd-ab.scope",
            "crio-ab.scope",
            "docker-ab.scope",
        ] {
            check(&format!("{slice}/{scope}"), Some((UID, scope)));
        }
        check(
            "0::/kubepods.slice/kubepods-podU_D.slice/crio-ab.scope/container",
            Some((UID, "crio-ab.scope")),
        );
        check(slice, Some((UID, "")));
    }

    #[test]
    fn cgroupfs_with_each_runtime() {
        check("0::/kubepods/podUID/ab", Some((UID, "ab")));
        check(
            "0::/kubepods/besteffort/podUID/crio-ab",
            Some((UID, "crio-ab")),
        );
        check("0::/kubepods/burstable/podUID", Some((UID, "")));
    }

    #[test]
    fn version_one_and_a_hybrid() {
        check(
            "11:pids:/kubepods/burstable/podUID/ab\n10:cpu,cpuacct:/kubepods/burstable/podUID/ab\n\
             1:name=systemd:/kubepods/burstable/podUID/ab\n0::/",
            Some((UID, "ab")),
        );
        check(
            "4:memory:/\n1:name=systemd:/\n0::/kubepods.slice/kubepods-podU_D.slice/docker-ab.scope\n",
            Some((UID, "docker-ab.scope")),
        );
    }

    #[test]
    fn drivers_that_disagree() {
        check(
            "9:memory:/system.slice/containerd.service/kubepods-burstable-podU_D.slice:cri-containerd:ab",
            Some((UID, "cri-containerd:ab")),
        );
    }

    #[test]
    fn kind_and_a_namespace_of_cgroups() {
        check(
            "0::/kubelet/kubepods/burstable/podUID/ab",
            Some((UID, "ab")),
        );
        check(
            "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-besteffort.slice/\
             kubelet-kubepods-besteffort-podU_D.slice/cri-containerd-ab.scope",
            Some((UID, "cri-containerd-ab.scope")),
        );
        check(
            "0::/docker/5d41/kubelet/kubepods/podUID/ab",
            Some((UID, "ab")),
        );
        check(
            "0::/../../kubepods-burstable-podU_D.slice/cri-containerd-ab.scope",
            Some((UID, "cri-containerd-ab.scope")),
        );
        check("0::/../../podUID/ab", Some((UID, "ab")));
    }

    #[test]
    fn static_pods_are_named_by_a_hash() {
        check(
            &format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{HASH}.slice/crio-ab.scope"
            ),
            Some((HASH, "crio-ab.scope")),
        );
        check(&format!("0::/kubepods/pod{HASH}/ab"), Some((HASH, "ab")));
    }

    #[test]
    fn monitors_are_no_process_of_the_pod() {
        check(
            "0::/kubepods.slice/kubepods-podU_D.slice/crio-conmon-ab.scope",
            None,
        );
        check("0::/kubepods/besteffort/podUID/crio-conmon-ab", None);
    }

    #[test]
    fn a_name_below_the_pods_own_is_not_believed() {
        let other = "deadbeef-1f5e-4c3e-8e4d-6f1f0a3b9c2d";
        check(
            &format!("0::/kubepods/podUID/ab/kubepods/pod{other}/cd"),
            Some((UID, "ab")),
        );
    }

    #[test]
    fn what_is_no_pods() {
        for path in [
            "",
            "0::/",
            "0::/system.slice/kubelet.service",
            "0::/kubepods.slice",
            "0::/kubepods/burstable",
            "0::/kubepods/podX/ab",
            "0::/machine.slice/libpod-0b8bd41c.scope",
            "0::/user.slice/user-podUID",
            "nonsense",
        ] {
            check(path, None);
        }
    }
}
