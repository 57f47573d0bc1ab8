//! What the CNI plugin asks.

use tokio::time::Instant;

use super::roster::State;
use super::sandboxes::{Arrival, is_of};
use super::{Enroller, in_one_line};
use crate::cni::{Call, Command, PodRef, Reply};
use crate::model::NamespacedName;
use crate::state::Snapshot;

impl Enroller {
    /// What is not answered at once is after the next pass.
    pub(super) fn take_call(&mut self, call: Call, snapshot: &Snapshot) {
        let Call {
            request,
            netns,
            reply,
        } = call;
        let answer = |text: Reply| reply.try_send(text).unwrap_or_default();
        match (request.command, &request.pod, netns) {
            (Command::Gc, _, _) => {
                self.sandboxes.keep(&request.valid);
                answer(Reply::not_meshed());
            }
            (Command::Add, Some(pod), Some(netns)) => {
                let name = NamespacedName::new(&*pod.namespace, &*pod.name);
                let path = request.netns.clone().into();
                match self.redirector.take_in(&name, netns, path) {
                    Ok(netns) => {
                        let patience = request.patience();
                        let arrival = Arrival {
                            pod: pod.clone(),
                            container: request.container,
                            netns,
                            ips: request.ips,
                            patience,
                            reply,
                        };
                        self.sandboxes.add(arrival, Instant::now());
                    }
                    Err(error) => answer(Reply::refused(in_one_line(error))),
                }
            }
            (Command::Del, Some(pod), _) => {
                let name = NamespacedName::new(&*pod.namespace, &*pod.name);
                let redirector = &self.redirector;
                let empty = || !redirector.is_inhabited(&name);
                self.sandboxes.remove(pod, &request.container, empty);
                // The addresses are free for others as soon as this is answered.
                self.pass(snapshot);
                answer(Reply::not_meshed());
            }
            (Command::Check, Some(pod), _) => answer(self.check(pod, snapshot)),
            (Command::Add | Command::Del | Command::Check, _, _) => {
                answer(Reply::refused("the plugin's request makes no sense"));
            }
        }
    }

    /// Whether a pod that was started is still as it should be.
    fn check(&self, pod: &PodRef, snapshot: &Snapshot) -> Reply {
        let name = NamespacedName::new(&*pod.namespace, &*pod.name);
        let object = snapshot.pods.get(&name);
        let object = object.filter(|object| is_of(pod.uid.as_deref(), object));
        if !object.is_some_and(|object| snapshot.wants(object)) {
            return Reply::not_meshed();
        }
        match self.roster.member(&name).map(|member| &member.state) {
            Some(State::Enrolled) => Reply::enrolled(),
            Some(State::Failed { error, .. }) => Reply::refused(error.clone()),
            Some(State::Pending) | None => Reply::refused("it is not enrolled"),
        }
    }
}
