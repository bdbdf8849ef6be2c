//! Fields that this build does not know, kept and written again: a node of an older version that passes a commit on (to its local copy, an
//! archive, a repaired stream) passes on what a newer version added to it.
//!
//! A type that carries derives its serialization with `#[serde(remote = "Self")]`, which makes it plain functions, and implements the traits
//! through `carries!`: between the format and the derived code it sorts out what the derived code would skip.

use std::fmt;

use serde::{
    Deserializer, Serialize, Serializer,
    de::{DeserializeSeed, Error as _, IntoDeserializer, MapAccess, SeqAccess, Visitor},
    ser::Error as _,
};

use crate::commit::Payload;

/// The fields of a map that this build does not know, in the order they came. They count as part of what they were in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct More(Vec<(String, Payload)>);

impl More {
    /// Whether there are none: always, but after an upgrade of other nodes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Payload)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// With one more.
    pub fn with<T: Serialize>(mut self, name: &str, value: &T) -> Self {
        self.0.push((name.to_owned(), Payload::encode(value)));
        self
    }
}

/// Writes what `derived` writes, which is a struct with named fields, and `more` behind that.
pub(crate) fn write<S: Serializer>(
    serializer: S,
    more: &More,
    derived: &impl Serialize,
) -> Result<S::Ok, S::Error> {
    let mut fields: Vec<(rmpv::Value, rmpv::Value)> = Vec::new();
    if let rmpv::Value::Map(known) = Payload::encode(derived).decode().map_err(S::Error::custom)? {
        fields = known;
    }
    for (name, value) in more.iter() {
        fields.push((name.into(), value.decode().map_err(S::Error::custom)?));
    }
    rmpv::Value::Map(fields).serialize(serializer)
}

/// Implements the serialization of a struct that derives it with `remote = "Self"` and keeps what it does not know in its field `more`.
macro_rules! carries {
    ($($name:ident),*) => { $(
        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let mut more = $crate::carried::More::default();
                let known = $name::deserialize($crate::carried::Keeping { inner: deserializer, more: &mut more })?;
                Ok(Self { more, ..known })
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                struct Known<'a>(&'a $name);
                impl serde::Serialize for Known<'_> {
                    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                        $name::serialize(self.0, serializer)
                    }
                }
                match self.more.is_empty() {
                    true => Known(self).serialize(serializer),
                    false => $crate::carried::write(serializer, &self.more, &Known(self)),
                }
            }
        }
    )* };
}
pub(crate) use carries;

/// A deserializer of one struct that keeps what the struct does not know.
pub(crate) struct Keeping<'a, D> {
    pub(crate) inner: D,
    pub(crate) more: &'a mut More,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Keeping<'_, D> {
    type Error = D::Error;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, D::Error> {
        self.inner.deserialize_struct(name, fields, Sorting { visitor, fields, more: self.more })
    }

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, D::Error> {
        Err(D::Error::custom("only structs carry fields on"))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct newtype_struct seq tuple
        tuple_struct map enum identifier ignored_any
    }
}

struct Sorting<'a, V> {
    visitor: V,
    fields: &'static [&'static str],
    more: &'a mut More,
}

impl<'de, V: Visitor<'de>> Visitor<'de> for Sorting<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.expecting(f)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_map(Known { map, fields: self.fields, more: self.more })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<V::Value, A::Error> {
        self.visitor.visit_seq(seq)
    }
}

/// The entries of a map whose names are known.
struct Known<'a, A> {
    map: A,
    fields: &'static [&'static str],
    more: &'a mut More,
}

/// A field's name: one that is known, or any other.
enum Name {
    Known(&'static str),
    Other(String),
}

struct Naming(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Naming {
    type Value = Name;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl Visitor<'_> for Naming {
    type Value = Name;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Name, E> {
        Ok(match self.0.iter().find(|known| **known == name) {
            Some(known) => Name::Known(known),
            None => Name::Other(name.to_owned()),
        })
    }
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Known<'_, A> {
    type Error = A::Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, A::Error> {
        loop {
            match self.map.next_key_seed(Naming(self.fields))? {
                None => return Ok(None),
                Some(Name::Known(name)) => {
                    let name: serde::de::value::StrDeserializer<'_, A::Error> = name.into_deserializer();
                    return seed.deserialize(name).map(Some);
                }
                Some(Name::Other(name)) => {
                    let value: rmpv::Value = self.map.next_value()?;
                    self.more.0.push((name, Payload::encode(&value)));
                }
            }
        }
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, A::Error> {
        self.map.next_value_seed(seed)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::commit::Cause;

    #[test]
    fn what_is_not_known_is_written_again_and_what_is_known_is_read_as_ever() {
        let later = json!({ "kind": "http", "tenant": { "deep": [1, null, "x"] }, "request": 7, "hops": 3 });
        let bytes = rmp_serde::to_vec_named(&later).unwrap();
        let cause: Cause = rmp_serde::from_slice(&bytes).unwrap();
        assert_eq!((cause.kind.as_str(), cause.request), ("http", Some(7)));
        assert_eq!(cause.more.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["hops", "tenant"]);
        let again: serde_json::Value =
            rmp_serde::from_slice(&rmp_serde::to_vec_named(&cause).unwrap()).unwrap();
        assert_eq!(again, later);
        assert_eq!(serde_json::to_value(&cause).unwrap(), later, "people see it too");
    }

    #[test]
    fn what_must_be_there_is_still_missed() {
        let error = serde_json::from_value::<Cause>(json!({ "tenant": 1 })).unwrap_err();
        assert!(error.to_string().contains("missing field `kind`"), "{error}");
        assert!(
            serde_json::from_value::<Cause>(json!({ "kind": 1 })).is_err(),
            "and what is wrong is an error"
        );
    }
}
