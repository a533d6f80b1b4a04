//! What the decoder expects: the fields of the table and of its structs, and how each is named in messages.

use super::column::{Column, Columns};
use std::collections::HashMap;
use tidemill_core::format::TimestampUnit;
use tidemill_core::schema::{ColumnType, Literal};

/// What stands for one column, field of a struct, element or value.
#[derive(Debug)]
pub(super) struct Slot {
    pub data_type: ColumnType,
    pub shape: Shape,
    /// Whether it may be null.
    pub nullable: bool,
    /// What it is if the object lacks it.
    pub default: Option<Literal>,
}

/// What its values are made of.
#[derive(Debug)]
pub(super) enum Shape {
    Scalar,
    Struct(Fields),
    List(Box<Slot>),
    Map(Box<Slot>),
}

impl Slot {
    pub fn new(data_type: &ColumnType, nullable: bool, default: Option<Literal>) -> Self {
        let inner = |data_type: &ColumnType| Box::new(Self::new(data_type, true, None));
        let shape = match data_type {
            ColumnType::Struct(fields) => Shape::Struct(Fields::new(
                fields
                    .iter()
                    .map(|field| (field.name.as_str(), Self::new(&field.data_type, true, None))),
            )),
            ColumnType::Array(element) => Shape::List(inner(element)),
            ColumnType::Map(value) => Shape::Map(inner(value)),
            _ => Shape::Scalar,
        };
        Self {
            data_type: data_type.clone(),
            shape,
            nullable,
            default,
        }
    }

    /// What is expected, for messages.
    pub fn expected(&self) -> String {
        let not_null = if self.nullable { "" } else { " NOT NULL" };
        format!("{}{not_null}", self.data_type)
    }
}

/// Fields of an object by name.
#[derive(Debug)]
pub(super) struct Fields {
    pub names: Vec<String>,
    pub slots: Vec<Slot>,
    /// Those that an object may hold; others are filled from elsewhere.
    index: HashMap<String, u32>,
}

impl Fields {
    pub fn new<'n>(fields: impl Iterator<Item = (&'n str, Slot)>) -> Self {
        let (names, slots): (Vec<String>, Vec<Slot>) = fields.map(|(name, slot)| (name.to_owned(), slot)).unzip();
        let index = names.iter().cloned().zip(0..).collect();
        Self { names, slots, index }
    }

    /// Makes a name one that objects do not have.
    pub fn hide(&mut self, name: &str) {
        self.index.remove(name);
    }

    /// The field called `name`. `guess` is looked at first: objects of one topic mostly come in one order.
    #[inline]
    pub fn find(&self, name: &str, guess: Option<u32>) -> Option<u32> {
        match guess {
            Some(guess) if self.names.get(guess as usize).is_some_and(|known| known == name) => Some(guess),
            _ => self.index.get(name).copied(),
        }
    }

    /// Empty columns for `rows` objects; `unit` says what numbers in a field are, should they be times.
    pub fn columns(&self, rows: usize, limit: usize, unit: impl Fn(&str) -> TimestampUnit) -> Columns {
        let column = |(name, slot): (&String, &Slot)| Column::new(&slot.data_type, unit(name), rows, limit);
        Columns {
            columns: self.names.iter().zip(&self.slots).map(column).collect(),
            order: Vec::new(),
        }
    }
}
