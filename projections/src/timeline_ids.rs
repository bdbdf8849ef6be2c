//! Ids made short enough to read and still distinct: the beginning of each, as long as it takes to tell it from the others.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Ids up to this long are shown whole: people chose them.
const WHOLE: usize = 10;
/// What is shown of a longer one at least: enough to search for.
const SHORTEST: usize = 6;

/// Fields of events that hold an id.
const FIELDS: [&str; 7] = ["client", "transport", "producer", "consumer", "ea", "ec", "service"];

/// Short forms of the ids of one timeline.
#[derive(Debug, Clone, Default)]
pub struct ShortIds(BTreeMap<String, String>);

impl ShortIds {
    /// Short forms of all ids in these events' data, and of these nodes.
    pub fn of<'a>(events: impl IntoIterator<Item = &'a Value>, nodes: BTreeSet<String>) -> Self {
        let mut ids = nodes;
        for data in events {
            collect(data, &mut ids);
        }
        let sorted: Vec<&String> = ids.iter().collect();
        let mut short = BTreeMap::new();
        for (i, id) in sorted.iter().enumerate() {
            if id.len() <= WHOLE {
                continue;
            }
            // In sorted order the ids that share most with this one are its neighbours.
            let shared = |other: Option<&&String>| {
                other.map_or(0, |o| o.bytes().zip(id.bytes()).take_while(|(a, b)| a == b).count())
            };
            let before = if i == 0 { 0 } else { shared(sorted.get(i - 1)) };
            let length = (before.max(shared(sorted.get(i + 1))) + 1).max(SHORTEST);
            if length + 1 < id.len() {
                short.insert((*id).clone(), format!("{}…", &id[..length]));
            }
        }
        Self(short)
    }

    /// The short form of `id`; `id` itself where there is none.
    pub fn short<'a>(&'a self, id: &'a str) -> &'a str {
        self.0.get(id).map_or(id, String::as_str)
    }
}

fn collect(value: &Value, into: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(id) if FIELDS.contains(&name.as_str()) && id.is_ascii() => {
                        into.insert(id.clone());
                    }
                    Value::Object(_) if matches!(name.as_str(), "placement" | "from" | "to") => {
                        collect(value, into)
                    }
                    Value::Array(_) if name == "candidates" => collect(value, into),
                    _ => {}
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect(value, into)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_are_cut_where_they_differ_and_chosen_ones_are_not() {
        let events = [
            json!({"client": "Zq81mmmmmmmmmmmm", "token": "notAnIdOfAnything"}),
            json!({"producer": "aaaaaaaaaaaaaaa1", "transport": "aaaaaaaabbbbbbbb"}),
            json!({"placement": {"ea": "ea-1"}, "candidates": [{"ea": "frankfurt-ea-number-2"}]}),
        ];
        let short = ShortIds::of(&events, BTreeSet::from(["aNodeWithALongId".to_owned()]));
        assert_eq!(short.short("Zq81mmmmmmmmmmmm"), "Zq81mm…");
        assert_eq!(short.short("aaaaaaaaaaaaaaa1"), "aaaaaaaaa…");
        assert_eq!(short.short("aaaaaaaabbbbbbbb"), "aaaaaaaab…");
        assert_eq!(short.short("ea-1"), "ea-1");
        assert_eq!(short.short("frankfurt-ea-number-2"), "frankf…");
        assert_eq!(short.short("aNodeWithALongId"), "aNodeW…");
        assert_eq!(short.short("notAnIdOfAnything"), "notAnIdOfAnything");
    }
}
