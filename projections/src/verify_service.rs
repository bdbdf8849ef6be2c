//! Rules of a service's stream.

use roomlog_bus::{
    commit::{Commit, StreamKind},
    events::Event,
};

use crate::verify::Report;

/// A service on its way through the log.
#[derive(Debug, Default)]
pub(crate) struct ServiceCheck {
    made: bool,
    deleted: bool,
}

impl ServiceCheck {
    pub(crate) fn commit(&mut self, commit: &Commit, events: &[Event], report: &mut Report) {
        report.must(commit.writer.node.kind() == StreamKind::Nuve, "service", || {
            format!("written by {}; only NUVE writes of services", commit.writer.node)
        });
        for (version, event) in (commit.version.0..).zip(events) {
            report.at_version(roomlog_bus::ids::Version(version));
            let kind = event.kind();
            match event {
                Event::ServiceCreated(_) => {
                    report.must(!self.made, "service", || "made a second time".into());
                    self.made = true;
                }
                Event::ServiceKeyRotated(_)
                | Event::ServiceOldKeyRevoked(_)
                | Event::ServiceChanged(_)
                | Event::WebhookSet(_)
                | Event::WebhookClaimed(_)
                | Event::WebhookAdvanced(_)
                | Event::WebhookFailed(_)
                | Event::WebhookRemoved(_)
                | Event::ServiceDeleted(_) => {
                    report.must(self.made && !self.deleted, "service", || {
                        format!("{kind} of a service that is not there")
                    });
                    self.deleted |= matches!(event, Event::ServiceDeleted(_));
                }
                Event::Unknown(_) => {}
                _ => {
                    report.must(false, "wrong-stream", || format!("{kind} in the stream of a service"));
                }
            }
        }
    }
}
