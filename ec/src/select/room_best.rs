//! `ROOM-BEST`: the EA with the fewest rooms takes the whole room. Among equals the one that comes first by id.

use roomlog_bus::events::Candidate;

use super::{Choice, EaView};

/// Chooses. EAs in disconnect tolerance, draining, or without a worker take no part.
pub fn choose(eas: &[EaView]) -> Choice {
    let ea = eas
        .iter()
        .filter(|ea| ea.excluded.is_none())
        .min_by_key(|ea| (ea.rooms, &ea.ea))
        .map(|ea| ea.ea.clone());
    let mut candidates: Vec<Candidate> = eas
        .iter()
        .map(|ea| Candidate {
            ea: ea.ea.clone(),
            rooms: Some(ea.rooms),
            rtt_ms: None,
            excluded: ea.excluded.map(str::to_owned),
        })
        .collect();
    candidates.sort_by(|a, b| a.ea.cmp(&b.ea));
    Choice { ea, candidates }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roomlog_bus::ids::{EaId, Incarnation};

    fn ea(id: &str, rooms: u64, excluded: Option<&'static str>) -> EaView {
        EaView { ea: EaId::new(id).unwrap(), incarnation: Incarnation(1), rooms, excluded }
    }

    #[test]
    fn the_ea_with_fewest_rooms_wins_and_the_excluded_are_listed_with_the_reason() {
        let choice = choose(&[ea("c", 1, None), ea("a", 0, Some("suspected")), ea("b", 1, None)]);
        assert_eq!(choice.ea, Some(EaId::new("b").unwrap()));
        assert_eq!(choice.candidates.len(), 3);
        assert_eq!(choice.candidates[0].excluded.as_deref(), Some("suspected"));
    }

    #[test]
    fn nobody_is_chosen_when_all_are_excluded() {
        assert_eq!(choose(&[ea("a", 0, Some("draining"))]).ea, None);
    }
}
