//! The list of ECs as placement sees it: the log says who is registered, heartbeats say who is there.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use roomlog_bus::{
    bus::Bus,
    commit::{StreamId, StreamKind},
    ids::{EcId, Incarnation},
};
pub use roomlog_projections::membership::Health;
use roomlog_projections::{directory::Directory, membership::Observer};
use tokio::time::Instant;

/// One EC as placement sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcView {
    /// Which.
    pub ec: EcId,
    /// Its current start.
    pub incarnation: Incarnation,
    /// How it is.
    pub health: Health,
    /// Rooms it holds, those placed since it last said so counted.
    pub rooms: u64,
    /// Where its WebSocket is.
    pub address: String,
}

/// An EC whose clients come asking where their room is, is asked itself, this often at most.
const CHECK_EVERY: Duration = Duration::from_millis(250);

/// All ECs.
pub struct Ecs {
    /// What is heard of all nodes.
    pub observer: Arc<Observer>,
    checked: Mutex<BTreeMap<EcId, Instant>>,
}

impl Ecs {
    /// The list over what `observer` hears.
    pub fn new(observer: Arc<Observer>) -> Self {
        Self { observer, checked: Mutex::default() }
    }

    /// A client of `ec` asks where its room is: its socket broke, so the EC may be gone. Asks the EC, without waiting for the answer.
    pub fn check(&self, bus: &Arc<dyn Bus>, ec: &EcId) {
        {
            let mut checked = self.checked.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            if checked.get(ec).is_some_and(|at| now.duration_since(*at) < CHECK_EVERY) {
                return;
            }
            checked.insert(ec.clone(), now);
        }
        let (bus, observer, node) = (bus.clone(), self.observer.clone(), StreamId::from(ec));
        tokio::spawn(async move {
            let _ = observer.ask(&*bus, &node).await;
        });
    }

    /// Every EC that has ever registered, by id.
    pub fn view(&self, directory: &Directory) -> Vec<EcView> {
        let ecs = directory.nodes.iter().filter(|(node, _)| node.kind() == StreamKind::Ec);
        ecs.filter_map(|(node, state)| {
            Some(EcView {
                ec: EcId::new(node.id()).ok()?,
                incarnation: state.incarnation,
                health: self.observer.health(node, state),
                rooms: self.observer.rooms_of(node),
                address: state.address.clone(),
            })
        })
        .collect()
    }

    /// This node has placed a room on `ec`.
    pub fn placed_on(&self, ec: &EcId) {
        self.observer.placed_on(&StreamId::from(ec));
    }

    /// A request to `ec` found nobody listening.
    pub fn found_no_responders(&self, ec: &EcId) {
        self.observer.found_no_responders(&StreamId::from(ec));
    }

    /// `ec` answered a request.
    pub fn answered(&self, ec: &EcId) {
        self.observer.answered(&StreamId::from(ec));
    }
}
