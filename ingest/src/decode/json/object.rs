//! Objects into columns: each field goes straight from the text into its column, and nothing in between is built.
//!
//! A scalar is taken as the text that it has in the record, so that numbers keep their digits; structs, arrays and
//! maps are walked. What was appended before a failure stays for the caller to take back.

use super::column::{Column, Columns, Full, Texts, Values};
use super::fields::{Fields, Shape, Slot};
use super::reading::{Reading, excerpt};
use super::scalar::{Why, append_json, append_literal, is_too_deep};
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use tidemill_core::format::OnUnknownField;

/// Maps of more entries look for repeated keys by hashing.
const FEW: usize = 16;

/// Reads the fields that an object has into `columns`, which have `row` rows before it.
fn read_fields<'de, A: MapAccess<'de>>(
    fields: &Fields,
    Columns { columns, order }: &mut Columns,
    row: usize,
    reading: &mut Reading<'de>,
    mut object: A,
) -> Result<(), A::Error> {
    for position in 0.. {
        let guess = order.get(position).copied();
        let Some(name) = object.next_key_seed(NameSeed { fields, guess })? else {
            break;
        };
        let place = match &name {
            Name::Known(field) => *field,
            Name::Unknown(_) => u32::MAX,
        };
        match order.get_mut(position) {
            Some(before) => *before = place,
            None => order.push(place),
        }
        match name {
            Name::Known(field) => {
                let field = field as usize;
                let (slot, column) = (&fields.slots[field], &mut columns[field]);
                let known = reading.captured.len();
                let read = match column.len() == row {
                    true => object.next_value_seed(ValueSeed { slot, column, reading }),
                    false => Err(reading.wrong("the object has it twice".to_owned())),
                };
                if let Err(error) = read {
                    reading.within(&fields.names[field]);
                    return Err(error);
                }
                if reading.captured.len() > known {
                    reading.captured_within(known, &|| fields.names[field].clone());
                }
            }
            Name::Unknown(name) => match reading.on_unknown {
                OnUnknownField::Ignore => {
                    object.next_value::<IgnoredAny>()?;
                }
                OnUnknownField::Capture => {
                    let value = object.next_value::<&'de RawValue>()?.get();
                    if value.starts_with(['{', '[']) && is_too_deep(value) {
                        let error = reading.wrong("found a value that is nested more than 128 deep".to_owned());
                        reading.within(&name);
                        return Err(error);
                    }
                    reading.captured.push((name.into_owned(), value));
                }
                OnUnknownField::Reject => {
                    let error = reading.wrong("there is no such column or field".to_owned());
                    reading.within(&name);
                    return Err(error);
                }
            },
        }
    }
    Ok(())
}

/// Gives the columns that an object left out their default or null.
pub(super) fn fill_missing(fields: &Fields, columns: &mut [Column], row: usize) -> Result<(), (usize, Why)> {
    for (i, column) in columns.iter_mut().enumerate() {
        if column.len() == row {
            let slot = &fields.slots[i];
            match &slot.default {
                Some(default) => append_literal(column, default).map_err(|why| (i, why))?,
                None if slot.nullable => column.append_null(),
                None => return Err((i, Why::OtherType)),
            }
        }
    }
    Ok(())
}

/// Reads one object as the row behind `row` others; what it lacks is for the caller.
pub(super) struct RowSeed<'a, 'de> {
    pub fields: &'a Fields,
    pub columns: &'a mut Columns,
    pub row: usize,
    pub reading: &'a mut Reading<'de>,
}

impl RowSeed<'_, '_> {
    fn not_an_object<E: Error>(self, found: impl fmt::Display) -> E {
        self.reading.wrong(format!("expected an object, found {found}"))
    }
}

impl<'de> DeserializeSeed<'de> for RowSeed<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RowSeed<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<(), A::Error> {
        read_fields(self.fields, self.columns, self.row, self.reading, object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, _: A) -> Result<(), A::Error> {
        Err(self.not_an_object("an array"))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        let found = format!("\"{text}\"");
        Err(self.not_an_object(excerpt(&found)))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        Err(self.not_an_object(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        Err(self.not_an_object(value))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        Err(self.not_an_object(value))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        Err(self.not_an_object(value))
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        Err(self.not_an_object("null"))
    }
}

/// The name of a field, found among those that are known.
enum Name<'de> {
    Known(u32),
    Unknown(Cow<'de, str>),
}

struct NameSeed<'f> {
    fields: &'f Fields,
    guess: Option<u32>,
}

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Name<'de>;

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Name<'de>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for NameSeed<'_> {
    type Value = Name<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    #[inline]
    fn visit_borrowed_str<E: Error>(self, name: &'de str) -> Result<Name<'de>, E> {
        let known = self.fields.find(name, self.guess).map(Name::Known);
        Ok(known.unwrap_or(Name::Unknown(Cow::Borrowed(name))))
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name<'de>, E> {
        let known = self.fields.find(name, self.guess).map(Name::Known);
        Ok(known.unwrap_or_else(|| Name::Unknown(Cow::Owned(name.to_owned()))))
    }
}

/// Appends one value to a column.
struct ValueSeed<'a, 'de> {
    slot: &'a Slot,
    column: &'a mut Column,
    reading: &'a mut Reading<'de>,
}

impl ValueSeed<'_, '_> {
    fn null<E: Error>(self) -> Result<(), E> {
        match self.slot.nullable {
            true => {
                self.column.append_null();
                Ok(())
            }
            false => Err(self.wrong_type("null")),
        }
    }

    fn wrong_type<E: Error>(self, found: &str) -> E {
        self.reading.not_appended(self.slot, found, Why::OtherType)
    }
}

impl<'de> DeserializeSeed<'de> for ValueSeed<'_, 'de> {
    type Value = ();

    #[inline]
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if !matches!(self.slot.shape, Shape::Scalar) {
            return deserializer.deserialize_any(self);
        }
        let json = <&'de RawValue as serde::Deserialize>::deserialize(deserializer)?.get();
        if json == "null" {
            return self.null();
        }
        let appended = append_json(self.column, json, self.reading.quoted);
        appended.map_err(|why| self.reading.not_appended(self.slot, json, why))
    }
}

impl<'de> Visitor<'de> for ValueSeed<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.slot.data_type)
    }

    fn visit_unit<E: Error>(self) -> Result<(), E> {
        self.null()
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<(), A::Error> {
        let Self { slot, column, reading } = self;
        let (Shape::List(element), Values::List { offsets, elements }) = (&slot.shape, &mut column.values) else {
            return Err(reading.not_appended(slot, "[…", Why::OtherType));
        };
        for index in 0.. {
            let known = reading.captured.len();
            let next = array.next_element_seed(ValueSeed {
                slot: element,
                column: elements,
                reading,
            });
            match next {
                Ok(Some(())) => {}
                Ok(None) => break,
                Err(error) => {
                    reading.within(&format!("[{index}]"));
                    return Err(error);
                }
            }
            if reading.captured.len() > known {
                reading.captured_within(known, &|| format!("[{index}]"));
            }
        }
        offsets.push(i32::try_from(elements.len()).map_err(|_| reading.full(Full))?);
        column.value_added();
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, object: A) -> Result<(), A::Error> {
        let Self { slot, column, reading } = self;
        let row = column.len();
        match (&slot.shape, &mut column.values) {
            (Shape::Struct(fields), Values::Struct(columns)) => {
                read_fields(fields, columns, row, reading, object)?;
                let missing = columns.columns.iter_mut().filter(|column| column.len() == row);
                missing.for_each(Column::append_null);
            }
            (Shape::Map(value), Values::Map { offsets, keys, values }) => {
                read_entries(value, keys, values, reading, object)?;
                offsets.push(i32::try_from(keys.len()).map_err(|_| reading.full(Full))?);
            }
            _ => return Err(reading.not_appended(slot, "{…", Why::OtherType)),
        }
        column.value_added();
        Ok(())
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<(), E> {
        Err(self.wrong_type(&format!("\"{text}\"")))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<(), E> {
        Err(self.wrong_type(&value.to_string()))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<(), E> {
        Err(self.wrong_type(&value.to_string()))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<(), E> {
        Err(self.wrong_type(&value.to_string()))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<(), E> {
        Err(self.wrong_type(&value.to_string()))
    }
}

/// Appends the entries of one map.
fn read_entries<'de, A: MapAccess<'de>>(
    slot: &Slot,
    keys: &mut Texts,
    values: &mut Column,
    reading: &mut Reading<'de>,
    mut object: A,
) -> Result<(), A::Error> {
    let first = keys.len();
    while let Some(()) = object.next_key_seed(KeySeed { keys, reading })? {
        let known = reading.captured.len();
        let read = object.next_value_seed(ValueSeed {
            slot,
            column: values,
            reading,
        });
        let key = keys.get(keys.len() - 1);
        if let Err(error) = read {
            reading.within(key);
            return Err(error);
        }
        if reading.captured.len() > known {
            reading.captured_within(known, &|| key.to_owned());
        }
    }
    if let Some(key) = repeated(keys, first) {
        let error = reading.wrong("the object has it twice".to_owned());
        reading.within(key);
        return Err(error);
    }
    Ok(())
}

/// A key that stands twice among those from `first` on.
fn repeated(keys: &Texts, first: usize) -> Option<&str> {
    let all = first..keys.len();
    if all.len() <= FEW {
        let key = all.clone().find(|i| (first..*i).any(|j| keys.get(j) == keys.get(*i)));
        return key.map(|i| keys.get(i));
    }
    let mut seen = HashSet::with_capacity(all.len());
    all.map(|i| keys.get(i)).find(|key| !seen.insert(*key))
}

/// Appends the key of a map's entry.
struct KeySeed<'a, 'de> {
    keys: &'a mut Texts,
    reading: &'a mut Reading<'de>,
}

impl<'de> DeserializeSeed<'de> for KeySeed<'_, 'de> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for KeySeed<'_, 'de> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<(), E> {
        self.keys.push(key).map_err(|full| self.reading.full(full))
    }
}
