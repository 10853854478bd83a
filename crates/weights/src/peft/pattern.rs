//! Values of single modules in an adapter's configuration: `rank_pattern`, `alpha_pattern`.

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Values by the end of a module's path (`q_proj`, `layers.3.mlp.down_proj`, or the whole path). The first key
/// that fits counts, so the order is kept.
///
/// PEFT takes the keys as regular expressions. Those that use more of them than plain names are
/// refused by [`Pattern::check`].
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern<T>(Vec<(String, T)>);

impl<T> Default for Pattern<T> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<T: Copy> Pattern<T> {
    /// From values whose order has no meaning: a longer key is the more specific one and comes first.
    pub fn most_specific_first(values: impl IntoIterator<Item = (String, T)>) -> Self {
        let mut values: Vec<_> = values.into_iter().collect();
        values.sort_by(|(a, _), (b, _)| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        Self(values)
    }

    /// The value of a module, named by its whole path.
    pub fn get(&self, module: &str) -> Option<T> {
        self.0.iter().find(|(key, _)| fits(key, module)).map(|(_, value)| *value)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, T)> {
        self.0.iter().map(|(key, value)| (key.as_str(), *value))
    }

    /// # Errors
    /// A key that is more than a name, or empty; `field` names the pattern.
    pub fn check(&self, field: &str) -> Result<(), String> {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        match self.0.iter().find(|(key, _)| key.is_empty() || !key.chars().all(plain)) {
            Some((key, _)) => Err(format!(
                "{field} has the key {key:?}: only names of modules are supported, no expressions"
            )),
            None => Ok(()),
        }
    }
}

/// Whether a key is a module's path or its end, whole names only.
pub(crate) fn fits(key: &str, module: &str) -> bool {
    module.strip_suffix(key).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

impl<T: Serialize> Serialize for Pattern<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Pattern<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct InOrder<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for InOrder<T> {
            type Value = Vec<(String, T)>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object, or null")
            }

            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Vec::new())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut values = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    values.push(entry);
                }
                Ok(values)
            }
        }
        deserializer.deserialize_any(InOrder(std::marker::PhantomData)).map(Self)
    }
}
