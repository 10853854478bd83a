//! Metadata values: scalars decoded, texts and lists left where they lie in the file.

use std::ops::Range;

use super::cursor::Cursor;

/// GGUF's own types of metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    Text,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    fn from_code(code: u32) -> Result<Self, String> {
        use ValueType as T;
        const TYPES: [ValueType; 13] = [
            T::U8,
            T::I8,
            T::U16,
            T::I16,
            T::U32,
            T::I32,
            T::F32,
            T::Bool,
            T::Text,
            T::Array,
            T::U64,
            T::I64,
            T::F64,
        ];
        let index = usize::try_from(code).unwrap_or(usize::MAX);
        TYPES.get(index).copied().ok_or_else(|| format!("the value type {code} does not exist"))
    }

    /// The bytes that one value has at least.
    fn least_bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::Text | Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array => 12,
        }
    }
}

#[derive(Debug)]
pub enum Value {
    Unsigned(u64),
    Signed(i64),
    F32(f32),
    F64(f64),
    Bool(bool),
    Text(Range<usize>),
    Array(Array),
}

/// A list whose elements are decoded when they are asked for.
#[derive(Debug)]
pub struct Array {
    element: ValueType,
    length: usize,
    start: usize,
}

impl Value {
    /// Reads the type and the value.
    pub fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let value_type = ValueType::from_code(cursor.u32()?)?;
        if value_type == ValueType::Array {
            return Array::read(cursor).map(Self::Array);
        }
        Self::read_scalar(cursor, value_type)
    }

    fn read_scalar(cursor: &mut Cursor<'_>, value_type: ValueType) -> Result<Self, String> {
        Ok(match value_type {
            ValueType::U8 => Self::Unsigned(cursor.u8()?.into()),
            ValueType::I8 => Self::Signed(cursor.u8()?.cast_signed().into()),
            ValueType::U16 => Self::Unsigned(cursor.u16()?.into()),
            ValueType::I16 => Self::Signed(cursor.u16()?.cast_signed().into()),
            ValueType::U32 => Self::Unsigned(cursor.u32()?.into()),
            ValueType::I32 => Self::Signed(cursor.u32()?.cast_signed().into()),
            ValueType::F32 => Self::F32(f32::from_bits(cursor.u32()?)),
            ValueType::Bool => Self::Bool(cursor.u8()? != 0),
            ValueType::Text => Self::Text(cursor.text()?),
            ValueType::U64 => Self::Unsigned(cursor.u64()?),
            ValueType::I64 => Self::Signed(cursor.u64()?.cast_signed()),
            ValueType::F64 => Self::F64(f64::from_bits(cursor.u64()?)),
            ValueType::Array => return Err("lists of lists are not supported".into()),
        })
    }

    /// For messages: what is there instead of what was expected.
    pub fn describe(&self) -> String {
        match self {
            Self::Unsigned(number) => format!("the number {number}"),
            Self::Signed(number) => format!("the number {number}"),
            Self::F32(number) => format!("the number {number}"),
            Self::F64(number) => format!("the number {number}"),
            Self::Bool(flag) => format!("{flag}"),
            Self::Text(range) => format!("a text of {} bytes", range.len()),
            Self::Array(array) => format!("a list of {} {:?} values", array.length, array.element),
        }
    }
}

impl Array {
    fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let element = ValueType::from_code(cursor.u32()?)?;
        if element == ValueType::Array {
            return Err("lists of lists are not supported".into());
        }
        let length = cursor.count("list elements", element.least_bytes())?;
        let start = cursor.position();
        if element == ValueType::Text {
            for _ in 0..length {
                cursor.text()?;
            }
        } else {
            // In range: `count` checked that the file holds so many elements.
            cursor.skip(length * element.least_bytes())?;
        }
        Ok(Self { element, length, start })
    }

    /// Where the texts of a list of texts lie; `None` for other lists.
    pub fn text_ranges(&self, file: &[u8]) -> Option<Vec<Range<usize>>> {
        if self.element != ValueType::Text {
            return None;
        }
        let mut cursor = Cursor::new(file, self.start);
        (0..self.length).map(|_| cursor.text().ok()).collect()
    }

    /// The numbers of a list of whole numbers; `None` for other lists and numbers beyond `i64`.
    pub fn integers(&self, file: &[u8]) -> Option<Vec<i64>> {
        let mut cursor = Cursor::new(file, self.start);
        (0..self.length)
            .map(|_| match Value::read_scalar(&mut cursor, self.element).ok()? {
                Value::Unsigned(number) => i64::try_from(number).ok(),
                Value::Signed(number) => Some(number),
                _ => None,
            })
            .collect()
    }
}
