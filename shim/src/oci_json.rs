//! JSON of OCI's specifications, read to the letter: an object where they want an object, and a refusal that names the field.
//!
//! serde alone is more generous than OCI. It fills an object's fields from a list by their order, so `"root": ["rootfs", true]` would be a
//! root; it takes `{"pid": null}` for the word `pid`; and what it refuses it places by line and column of a file that its author never
//! saw. Nor does it mind zero bytes, which no path and no word for the kernel can have. So the bytes become a tree first, and [`Place`] walks it
//! beside the type that is to be made of it.

use std::{fmt, vec};

use serde::{
    de::{self, DeserializeOwned, DeserializeSeed, Expected, IntoDeserializer, Unexpected, Visitor},
    forward_to_deserialize_any,
};
use serde_json::{Map, Value, map};

/// Longest key that is shown as it is; annotations are keys, and their author chooses them.
const KEY_LEN_MAX: usize = 128;
/// Each text ends as a string of the kernel's, which a zero byte cuts short.
const ZERO_BYTE: &str = "a zero byte is in the text, where the kernel would cut it off; take it out";

/// Reads one OCI object.
///
/// # Errors
/// The bytes are no JSON, or not what the type wants; the message begins with the field where there is one.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Misfit> {
    let tree = serde_json::from_slice(bytes).map_err(|error| Misfit { place: Vec::new(), what: error.to_string() })?;
    T::deserialize(Place(tree))
}

/// What is wrong, and where.
#[derive(Debug)]
pub struct Misfit {
    /// The innermost step comes first: each level adds its own on the way out.
    place: Vec<Step>,
    what: String,
}

#[derive(Debug)]
enum Step {
    Key(String),
    Item(usize),
}

impl Misfit {
    fn below(mut self, step: Step) -> Self {
        self.place.push(step);
        self
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.place.iter().rev().enumerate() {
            match step {
                Step::Key(key) if depth == 0 => f.write_str(key)?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Item(number) => write!(f, "[{number}]")?,
            }
        }
        let colon = if self.place.is_empty() { "" } else { ": " };
        write!(f, "{colon}{}", self.what)
    }
}

impl std::error::Error for Misfit {}

impl de::Error for Misfit {
    fn custom<T: fmt::Display>(what: T) -> Self {
        Self { place: Vec::new(), what: what.to_string() }
    }
}

/// One value of the tree, to be made into whatever the type at its place is.
struct Place(Value);

impl Place {
    fn refused<T>(&self, expected: &dyn Expected) -> Result<T, Misfit> {
        let found = match &self.0 {
            Value::Null => Unexpected::Unit,
            Value::Bool(is) => Unexpected::Bool(*is),
            Value::Number(_) => Unexpected::Other("a number"),
            Value::String(text) => Unexpected::Str(text),
            Value::Array(_) => Unexpected::Other("a list"),
            Value::Object(_) => Unexpected::Other("an object"),
        };
        Err(de::Error::invalid_type(found, expected))
    }
}

impl<'de> de::Deserializer<'de> for Place {
    type Error = Misfit;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        match self.0 {
            Value::Null => visitor.visit_unit(),
            Value::Bool(is) => visitor.visit_bool(is),
            Value::Number(number) => number.deserialize_any(visitor).map_err(de::Error::custom),
            Value::String(text) if text.contains('\0') => Err(de::Error::custom(ZERO_BYTE)),
            Value::String(text) => visitor.visit_string(text),
            Value::Array(items) => visitor.visit_seq(Items { rest: items.into_iter(), next: 0 }),
            Value::Object(members) => visitor.visit_map(Members::of(members)),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self.0 {
            Value::Object(members) => visitor.visit_map(Members::of(members)),
            _ => self.refused(&visitor),
        }
    }

    // Every enumeration of OCI is one of some words.
    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Misfit> {
        match self.0 {
            Value::String(word) => visitor.visit_enum(word.into_deserializer()),
            _ => self.refused(&visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Misfit> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct seq tuple tuple_struct map
        identifier
    }
}

/// A list's items, one after another.
struct Items {
    rest: vec::IntoIter<Value>,
    next: usize,
}

impl<'de> de::SeqAccess<'de> for Items {
    type Error = Misfit;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Misfit> {
        let Some(item) = self.rest.next() else { return Ok(None) };
        let number = self.next;
        self.next += 1;
        seed.deserialize(Place(item)).map(Some).map_err(|misfit| misfit.below(Step::Item(number)))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}

/// An object's members, one after another.
struct Members {
    rest: map::IntoIter,
    current: Option<(String, Value)>,
}

impl Members {
    fn of(members: Map<String, Value>) -> Self {
        Self { rest: members.into_iter(), current: None }
    }
}

impl<'de> de::MapAccess<'de> for Members {
    type Error = Misfit;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Misfit> {
        let Some((key, value)) = self.rest.next() else { return Ok(None) };
        let made = seed.deserialize(Place(Value::String(key.clone())));
        self.current = Some((shown(key), value));
        made.map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Misfit> {
        let (key, value) = self.current.take().expect("serde asks for a value after its key");
        seed.deserialize(Place(value)).map_err(|misfit| misfit.below(Step::Key(key)))
    }
}

fn shown(mut key: String) -> String {
    if let Some((end, _)) = key.char_indices().nth(KEY_LEN_MAX) {
        key.truncate(end);
        key.push_str("...");
    }
    key
}

#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests {
    use oci_spec::runtime::{LinuxResources, Process, Spec};

    use super::*;

    fn refused<T: DeserializeOwned + fmt::Debug>(text: &str) -> String {
        parse::<T>(text.as_bytes()).expect_err(text).to_string()
    }

    #[test]
    fn a_list_is_no_object_however_well_it_would_fit() {
        for (text, place) in [
            (r#"{"ociVersion":"1.2.0","root":["rootfs",true]}"#, "root: "),
            (r#"{"ociVersion":"1.2.0","process":{"cwd":"/","user":[0,0]}}"#, "process.user: "),
            (r#"{"ociVersion":"1.2.0","linux":{"namespaces":[["pid"]]}}"#, "linux.namespaces[0]: "),
        ] {
            let message = refused::<Spec>(text);
            assert!(message.starts_with(place) && message.contains("a list"), "{message}");
        }
        assert!(refused::<LinuxResources>("[]").contains("a list"));
        assert!(refused::<Process>("[[]]").contains("a list"));
    }

    #[test]
    fn a_word_is_a_word() {
        let message = refused::<Spec>(r#"{"ociVersion":"1.2.0","linux":{"namespaces":[{"type":{"pid":null}}]}}"#);
        assert!(message.starts_with("linux.namespaces[0].type: ") && message.contains("an object"), "{message}");
    }

    #[test]
    fn what_does_not_fit_is_named_by_its_place() {
        for (text, place) in [
            (r#"{"ociVersion":1}"#, "ociVersion: "),
            (r#"{"ociVersion":"1.2.0","annotations":{"a.b/c":7}}"#, "annotations.a.b/c: "),
            (r#"{"ociVersion":"1.2.0","mounts":[{"destination":"/"},{}]}"#, "mounts[1]: missing field `destination`"),
            (r#"{"ociVersion":"1.2.0","linux":{"resources":{"pids":{"limit":1e30}}}}"#, "linux.resources.pids.limit: "),
        ] {
            assert!(refused::<Spec>(text).starts_with(place), "{}", refused::<Spec>(text));
        }
    }

    #[test]
    fn what_is_no_json_is_placed_by_line_and_column() {
        assert!(refused::<Spec>("{\n\"a\": }").contains("line 2"));
        assert!(refused::<Spec>(&"[".repeat(1000)).contains("recursion limit"));
    }

    #[test]
    fn nobody_chooses_how_long_a_key_in_the_message_is() {
        let message = refused::<Spec>(&format!(r#"{{"ociVersion":"1","annotations":{{"{}":7}}}}"#, "ä".repeat(10_000)));
        assert!(message.len() < 500, "{}", message.len());
    }

    #[test]
    fn a_zero_byte_is_nowhere() {
        for text in [
            r#"{"ociVersion":"1.2.0","hostname":"a\u0000b"}"#,
            r#"{"ociVersion":"1.2.0","linux":{"sysctl":{"net.x\u0000":"1"}}}"#,
        ] {
            let message = refused::<Spec>(text);
            assert!(message.contains(": a zero byte"), "{message}");
        }
    }

    #[test]
    fn fields_that_nobody_knows_are_passed_over() {
        let process: Process = parse(br#"{"cwd":"/","user":{"uid":1,"gid":2},"new":[[{"x":1}]]}"#).expect("a process");
        assert_eq!(process.user().uid(), 1);
    }
}
