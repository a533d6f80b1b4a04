//! Columns in the making: values that can be taken back, so that a record that fails in its last field leaves
//! nothing behind.

use arrow::array::{
    ArrayRef, ArrowPrimitiveType, BooleanArray, BooleanBufferBuilder, ListArray, MapArray, NullBufferBuilder,
    PrimitiveArray, StringArray, StructArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::*;
use arrow::error::ArrowError;
use std::sync::Arc;
use tidemill_core::format::TimestampUnit;
use tidemill_core::schema::ColumnType;

/// There is no room for a value: Arrow counts the bytes of a column's texts with 31 bits.
#[derive(Debug)]
pub(super) struct Full;

/// Values of one type, null or not.
#[derive(Debug)]
pub(super) struct Column {
    pub values: Values,
    nulls: NullBufferBuilder,
}

/// The values of a [`Column`]; something stands at the place of a null, too.
#[derive(Debug)]
pub(super) enum Values {
    Boolean(BooleanBufferBuilder),
    Int8(Vec<i8>),
    Int16(Vec<i16>),
    Int32(Vec<i32>),
    Int64(Vec<i64>),
    UInt8(Vec<u8>),
    UInt16(Vec<u16>),
    UInt32(Vec<u32>),
    UInt64(Vec<u64>),
    Float32(Vec<f32>),
    Float64(Vec<f64>),
    Decimal {
        values: Vec<i128>,
        precision: u8,
        scale: i8,
    },
    Text(Texts),
    Date(Vec<i32>),
    Timestamp {
        values: Vec<i64>,
        unit: TimestampUnit,
    },
    Struct(Columns),
    List {
        offsets: Vec<i32>,
        elements: Box<Column>,
    },
    Map {
        offsets: Vec<i32>,
        keys: Texts,
        values: Box<Column>,
    },
}

/// Columns side by side, and the order in which an object last named them.
#[derive(Debug, Default)]
pub(super) struct Columns {
    pub columns: Vec<Column>,
    pub order: Vec<u32>,
}

/// Texts, one behind the other.
#[derive(Debug)]
pub(super) struct Texts {
    offsets: Vec<i32>,
    text: String,
    limit: usize,
}

impl Texts {
    pub fn new(rows: usize, limit: usize) -> Self {
        let mut offsets = Vec::with_capacity(rows + 1);
        offsets.push(0);
        Self {
            offsets,
            text: String::new(),
            limit: limit.min(i32::MAX as usize),
        }
    }

    #[inline]
    pub fn push(&mut self, text: &str) -> Result<(), Full> {
        let end = self.text.len() + text.len();
        if end > self.limit {
            return Err(Full);
        }
        self.text.push_str(text);
        // Fits: the limit does.
        self.offsets.push(end as i32);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    pub fn get(&self, index: usize) -> &str {
        let at = |index: usize| self.offsets[index] as usize;
        &self.text[at(index)..at(index + 1)]
    }

    fn push_empty(&mut self) {
        self.offsets.push(self.text.len() as i32);
    }

    fn truncate(&mut self, len: usize) {
        self.offsets.truncate(len + 1);
        let end = self.offsets.last().map_or(0, |end| *end as usize);
        self.text.truncate(end);
    }

    fn finish(self, nulls: Option<NullBuffer>) -> Result<StringArray, ArrowError> {
        let offsets = OffsetBuffer::new(self.offsets.into());
        StringArray::try_new(offsets, self.text.into_bytes().into(), nulls)
    }
}

impl Columns {
    /// Takes back everything behind the first `rows`.
    pub fn truncate(&mut self, rows: usize) {
        for column in &mut self.columns {
            column.truncate(rows);
        }
    }
}

impl Column {
    /// An empty column with room for `rows` values. Its texts may have `limit` bytes in all.
    pub fn new(data_type: &ColumnType, unit: TimestampUnit, rows: usize, limit: usize) -> Self {
        use ColumnType as T;
        let inner = |data_type: &ColumnType| Box::new(Self::new(data_type, unit, 0, limit));
        let values = match data_type {
            T::Boolean => Values::Boolean(BooleanBufferBuilder::new(rows)),
            T::Int8 => Values::Int8(Vec::with_capacity(rows)),
            T::Int16 => Values::Int16(Vec::with_capacity(rows)),
            T::Int32 => Values::Int32(Vec::with_capacity(rows)),
            T::Int64 => Values::Int64(Vec::with_capacity(rows)),
            T::UInt8 => Values::UInt8(Vec::with_capacity(rows)),
            T::UInt16 => Values::UInt16(Vec::with_capacity(rows)),
            T::UInt32 => Values::UInt32(Vec::with_capacity(rows)),
            T::UInt64 => Values::UInt64(Vec::with_capacity(rows)),
            T::Float32 => Values::Float32(Vec::with_capacity(rows)),
            T::Float64 => Values::Float64(Vec::with_capacity(rows)),
            T::Decimal { precision, scale } => Values::Decimal {
                values: Vec::with_capacity(rows),
                precision: *precision,
                scale: *scale,
            },
            T::Text => Values::Text(Texts::new(rows, limit)),
            T::Date => Values::Date(Vec::with_capacity(rows)),
            T::Timestamp => Values::Timestamp {
                values: Vec::with_capacity(rows),
                unit,
            },
            T::Struct(fields) => Values::Struct(Columns {
                columns: fields
                    .iter()
                    .map(|field| Self::new(&field.data_type, unit, rows, limit))
                    .collect(),
                order: Vec::new(),
            }),
            T::Array(element) => Values::List {
                offsets: vec![0],
                elements: inner(element),
            },
            T::Map(value) => Values::Map {
                offsets: vec![0],
                keys: Texts::new(0, limit),
                values: inner(value),
            },
        };
        Self {
            values,
            nulls: NullBufferBuilder::new(rows),
        }
    }

    /// How many values it has.
    #[inline]
    pub fn len(&self) -> usize {
        self.nulls.len()
    }

    /// Counts the value that was just put into [`Column::values`].
    #[inline]
    pub fn value_added(&mut self) {
        self.nulls.append_non_null();
    }

    /// Adds a null.
    pub fn append_null(&mut self) {
        match &mut self.values {
            Values::Boolean(values) => values.append(false),
            Values::Int8(values) => values.push(0),
            Values::Int16(values) => values.push(0),
            Values::Int32(values) | Values::Date(values) => values.push(0),
            Values::Int64(values) | Values::Timestamp { values, .. } => values.push(0),
            Values::UInt8(values) => values.push(0),
            Values::UInt16(values) => values.push(0),
            Values::UInt32(values) => values.push(0),
            Values::UInt64(values) => values.push(0),
            Values::Float32(values) => values.push(0.0),
            Values::Float64(values) => values.push(0.0),
            Values::Decimal { values, .. } => values.push(0),
            Values::Text(values) => values.push_empty(),
            Values::Struct(fields) => fields.columns.iter_mut().for_each(Self::append_null),
            Values::List { offsets, .. } | Values::Map { offsets, .. } => offsets.extend(offsets.last().copied()),
        }
        self.nulls.append_null();
    }

    /// Takes back everything behind the first `rows` values, also what was only begun.
    pub fn truncate(&mut self, rows: usize) {
        let end = |offsets: &mut Vec<i32>| {
            offsets.truncate(rows + 1);
            offsets.last().map_or(0, |end| *end as usize)
        };
        match &mut self.values {
            Values::Boolean(values) => values.truncate(rows),
            Values::Int8(values) => values.truncate(rows),
            Values::Int16(values) => values.truncate(rows),
            Values::Int32(values) | Values::Date(values) => values.truncate(rows),
            Values::Int64(values) | Values::Timestamp { values, .. } => values.truncate(rows),
            Values::UInt8(values) => values.truncate(rows),
            Values::UInt16(values) => values.truncate(rows),
            Values::UInt32(values) => values.truncate(rows),
            Values::UInt64(values) => values.truncate(rows),
            Values::Float32(values) => values.truncate(rows),
            Values::Float64(values) => values.truncate(rows),
            Values::Decimal { values, .. } => values.truncate(rows),
            Values::Text(values) => values.truncate(rows),
            Values::Struct(fields) => fields.truncate(rows),
            Values::List { offsets, elements } => elements.truncate(end(offsets)),
            Values::Map { offsets, keys, values } => {
                let entries = end(offsets);
                keys.truncate(entries);
                values.truncate(entries);
            }
        }
        self.nulls.truncate(rows);
    }

    /// The values as an array of `data_type`, which must be the Arrow type of what it was made for.
    pub fn finish(mut self, data_type: &DataType) -> Result<ArrayRef, ArrowError> {
        let nulls = self.nulls.finish();
        fn primitive<T: ArrowPrimitiveType>(
            values: Vec<T::Native>,
            nulls: Option<NullBuffer>,
        ) -> Result<PrimitiveArray<T>, ArrowError> {
            PrimitiveArray::try_new(values.into(), nulls)
        }
        Ok(match (self.values, data_type) {
            (Values::Boolean(values), _) => Arc::new(BooleanArray::new(values.build(), nulls)),
            (Values::Int8(values), _) => Arc::new(primitive::<Int8Type>(values, nulls)?),
            (Values::Int16(values), _) => Arc::new(primitive::<Int16Type>(values, nulls)?),
            (Values::Int32(values), _) => Arc::new(primitive::<Int32Type>(values, nulls)?),
            (Values::Int64(values), _) => Arc::new(primitive::<Int64Type>(values, nulls)?),
            (Values::UInt8(values), _) => Arc::new(primitive::<UInt8Type>(values, nulls)?),
            (Values::UInt16(values), _) => Arc::new(primitive::<UInt16Type>(values, nulls)?),
            (Values::UInt32(values), _) => Arc::new(primitive::<UInt32Type>(values, nulls)?),
            (Values::UInt64(values), _) => Arc::new(primitive::<UInt64Type>(values, nulls)?),
            (Values::Float32(values), _) => Arc::new(primitive::<Float32Type>(values, nulls)?),
            (Values::Float64(values), _) => Arc::new(primitive::<Float64Type>(values, nulls)?),
            (
                Values::Decimal {
                    values,
                    precision,
                    scale,
                },
                _,
            ) => Arc::new(primitive::<Decimal128Type>(values, nulls)?.with_precision_and_scale(precision, scale)?),
            (Values::Text(values), _) => Arc::new(values.finish(nulls)?),
            (Values::Date(values), _) => Arc::new(primitive::<Date32Type>(values, nulls)?),
            (Values::Timestamp { values, .. }, _) => Arc::new(primitive::<TimestampMicrosecondType>(values, nulls)?),
            (Values::Struct(fields), DataType::Struct(types)) => {
                let arrays: Result<_, _> = fields
                    .columns
                    .into_iter()
                    .zip(types)
                    .map(|(column, field)| column.finish(field.data_type()))
                    .collect();
                Arc::new(StructArray::try_new(types.clone(), arrays?, nulls)?)
            }
            (Values::List { offsets, elements }, DataType::List(field)) => {
                let elements = elements.finish(field.data_type())?;
                let offsets = OffsetBuffer::new(offsets.into());
                Arc::new(ListArray::try_new(field.clone(), offsets, elements, nulls)?)
            }
            (Values::Map { offsets, keys, values }, DataType::Map(field, ordered)) => {
                let DataType::Struct(entry) = field.data_type() else {
                    return Err(unlike(data_type));
                };
                let [_, value] = &entry[..] else {
                    return Err(unlike(data_type));
                };
                let arrays: Vec<ArrayRef> = vec![Arc::new(keys.finish(None)?), values.finish(value.data_type())?];
                let entries = StructArray::try_new(entry.clone(), arrays, None)?;
                let offsets = OffsetBuffer::new(offsets.into());
                Arc::new(MapArray::try_new(field.clone(), offsets, entries, nulls, *ordered)?)
            }
            (_, other) => return Err(unlike(other)),
        })
    }
}

fn unlike(data_type: &DataType) -> ArrowError {
    ArrowError::SchemaError(format!("a column was not made for {data_type}"))
}
